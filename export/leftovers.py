"""Temporary files and folders beside what they become, and which of them nobody needs any more.

    .NAME.partial-HOST-PID-START-RANDOM        being written, to be NAME
    .NAME.partial-HOST-PID-START-RANDOM-old    was NAME until something else took its place

The process PID, begun at START, made it; HOST is a digest of the host's name and, on Linux, of the
namespace that PID counts in, so that of two containers none takes the other's for its own. A name
instead of a lock: there are disks on which locks do nothing. Standard library only.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import platform
import re
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

IDLE_SECONDS = 86_400  # what another host made is left alone for so long after its last change
OLD = "-old"
_OWNER = re.compile(r"\.partial-([0-9a-f]{8})-(\d{1,9})-(\d*)-[0-9a-f]{8}(?:-old)?")


def new_name(target: Path, end: str = "") -> Path:
    """A name beside ``target`` that nothing has yet, and that says whose it is."""
    pid = os.getpid()
    owner = f"{_host()}-{pid}-{_process(pid)[1]}"
    return target.parent / f".{target.name}.partial-{owner}-{uuid.uuid4().hex[:8]}{end}"


def leftovers(target: Path) -> Iterator[Path]:
    """What was made beside ``target`` and is needed by nobody: its process is gone."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.partial-*"):
        if is_abandoned(path):
            yield path


def is_abandoned(path: Path) -> bool:
    """Whether the process that made ``path`` is gone, as far as its name or its age tells."""
    alive = is_alive(path)
    return _idle_seconds(path) > IDLE_SECONDS if alive is None else not alive


def is_alive(path: Path) -> bool | None:
    """Whether the process that made ``path`` still runs; None where that cannot be known."""
    owner = _OWNER.search(path.name)
    # On Windows, os.kill would end the process.
    if owner is None or owner[1] != _host() or sys.platform == "win32":
        return None
    pid, start = int(owner[2]), owner[3]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    state, started = _process(pid)
    return state not in ("Z", "X") and started in ("", start)


def remove(path: Path) -> None:
    """Removes a file or folder of ours, as far as that is possible."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _host() -> str:
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return hashlib.sha256(f"{platform.node()}\0{namespace}".encode()).hexdigest()[:8]


def _process(pid: int) -> tuple[str, str]:
    """Its state and when it began, in clock ticks; ("", "") where the system does not tell."""
    try:
        # The name of the program, in parentheses, may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].decode().split()
        return fields[0], fields[19]
    except (OSError, IndexError):
        return "", ""


def _idle_seconds(path: Path) -> float:
    """How long ago ``path`` or what is in it was last changed or renamed."""
    try:
        found = [path.lstat(), *(inner.lstat() for inner in path.rglob("*"))]
    except OSError:  # somebody is changing it
        return 0
    return time.time() - max(max(status.st_mtime, status.st_ctime) for status in found)
