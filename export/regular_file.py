"""Opens regular files only and reads exact byte ranges from them.

A named pipe must not hang the program and a device must not be read, so the kind is checked on the
opened file. Symbolic links are followed: download caches are made of them. Plain reads instead of
memory maps, because a mapped file that shrinks kills the process with SIGBUS.
"""

from __future__ import annotations

import os
import stat
from io import FileIO
from pathlib import Path

from .errors import PocketLMError

# O_NONBLOCK lets the opening of a pipe return at once; O_BINARY exists on Windows only.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def open_regular(path: Path, error: type[PocketLMError]) -> FileIO:
    """Opens ``path`` unbuffered; raises ``error`` unless it is a readable regular file."""
    try:
        file = FileIO(os.open(path, _FLAGS), closefd=True)
    except (OSError, ValueError) as cause:  # ValueError: a NUL byte or half a character in the name
        reason = getattr(cause, "strerror", None) or cause
        raise error(
            f"{path.name!r} cannot be opened ({reason}), expected a readable file in "
            f"{str(path.parent)!r}; check that it exists and may be read"
        ) from cause
    kind = os.fstat(file.fileno()).st_mode
    if not stat.S_ISREG(kind):
        file.close()
        raise error(
            f"{path.name!r} is {_kind_name(kind)}, expected a regular file in "
            f"{str(path.parent)!r}; put the file itself there"
        )
    return file


def _kind_name(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISFIFO(mode):
        return "a named pipe"
    return "a device or socket"


def file_size(file: FileIO) -> int:
    """Returns the size in bytes that ``file`` has now."""
    return os.fstat(file.fileno()).st_size


def read_into(file: FileIO, offset: int, buffer: memoryview) -> bool:
    """Fills ``buffer`` from byte ``offset`` on; returns False if the file ends too soon."""
    file.seek(offset)
    filled = 0
    while filled < len(buffer):
        count = file.readinto(buffer[filled:])
        if not count:
            return False
        filled += count
    return True


def read_bytes(file: FileIO, offset: int, num_bytes: int) -> bytes:
    """Returns ``num_bytes`` bytes from ``offset`` on, fewer only where the file ends."""
    file.seek(offset)
    parts = []
    while num_bytes > 0:
        part = file.read(num_bytes)
        if not part:
            break
        parts.append(part)
        num_bytes -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
