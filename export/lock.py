"""One process at a time: a lock on a file, which the kernel frees when its holder dies.

The file holds the holder's process id, for those who wait to be told. The holder removes it at the
end; whoever waited for it then finds that it is gone, and begins again. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

POLL_SECONDS = 0.2  # where the platform cannot wait for a lock itself
# A byte that is locked cannot be read on Windows: this one is behind the text.
_LOCKED_BYTE = 1 << 20


@contextlib.contextmanager
def locked(file: Path, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Holds the lock ``file`` while the block runs; waits for it as long as another holds it.

    ``on_wait`` is called with the holder ("process 123") before waiting. A file system without
    locks counts as a free lock: what is written under one must stay right without it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    handle = _acquired(file, on_wait)
    try:
        os.truncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows keeps a file that is open
            file.unlink()
        os.close(handle)  # frees the lock


def holder(file: Path) -> str | None:
    """Who holds the lock ``file`` now ("process 123"); None where nobody does, or it is gone."""
    try:
        handle = os.open(file, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        return None if acquire(handle, wait=False) else _holder(file)
    finally:
        os.close(handle)


def _acquired(file: Path, on_wait: Callable[[str], None]) -> int:
    """A handle that has the lock of what is at ``file`` now: its last holder removed the file."""
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not acquire(handle, wait=False):
                on_wait(_holder(file))
                acquire(handle, wait=True)
            if os.path.samestat(os.fstat(handle), os.stat(file)):
                return handle
        except FileNotFoundError:
            pass
        except BaseException:  # Ctrl-C while waiting included
            os.close(handle)
            raise
        os.close(handle)


def _holder(file: Path) -> str:
    try:
        return f"process {int(file.read_text('ascii'))}"
    except (OSError, ValueError):  # it has not written yet
        return "another process"


if sys.platform == "win32":
    import msvcrt

    def acquire(handle: int, *, wait: bool) -> bool:
        """Whether the open file is locked for this process now; it is until it is closed."""
        while True:
            os.lseek(handle, _LOCKED_BYTE, os.SEEK_SET)
            try:
                msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
                return True
            except PermissionError:
                if not wait:
                    return False
            finally:
                os.lseek(handle, 0, os.SEEK_SET)
            time.sleep(POLL_SECONDS)

else:
    import fcntl

    def acquire(handle: int, *, wait: bool) -> bool:
        """Whether the open file is locked for this process now; it is until it is closed."""
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        except OSError:  # no locks here
            pass
        return True
