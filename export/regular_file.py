"""Opens regular files only, and reads exact byte ranges from them.

A named pipe must not hang the program and a device must not be read, so the kind is checked on the
opened file. Symbolic links are followed: download caches are made of them. Plain reads instead of
memory maps, because a mapped file that shrinks kills the process with SIGBUS.
"""

from __future__ import annotations

import hashlib
import os
import stat
from io import FileIO
from pathlib import Path
from types import TracebackType

from .errors import PocketLMError

# What Git LFS puts in the place of a file that was not fetched: some 130 bytes of text.
POINTER = b"version https://git-lfs.github.com/spec/"
LARGEST_POINTER = 1024

# O_NONBLOCK lets the opening of a pipe return at once; O_BINARY exists on Windows only.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


class RegularFile:
    """A file open for reading; whatever goes wrong is raised as ``error``. Use it in ``with``."""

    def __init__(self, path: Path, error: type[PocketLMError]) -> None:
        self.path = path
        self._error = error
        try:
            descriptor = os.open(path, _FLAGS)
        except (OSError, ValueError) as cause:  # ValueError: the name has a NUL or half a character
            raise error(
                f"{path.name!r} cannot be opened ({_reason(cause)}), expected a readable file in "
                f"{str(path.parent)!r}; check that it exists and may be read"
            ) from cause
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            os.close(descriptor)
            raise error(
                f"{path.name!r} is {_kind_name(mode)}, expected a regular file in "
                f"{str(path.parent)!r}; put the file itself there"
            )
        self._file = FileIO(descriptor)
        if (
            len(POINTER) < self.num_bytes() < LARGEST_POINTER
            and self.read(0, len(POINTER)) == POINTER
        ):
            self._file.close()
            raise error(
                f"{path.name!r} is a Git LFS pointer, expected the file that it stands for in "
                f"{str(path.parent)!r}; the repository was cloned without Git LFS: run git lfs "
                "pull there"
            )

    def __enter__(self) -> RegularFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def num_bytes(self) -> int:
        """Returns the size that the file has now."""
        return os.fstat(self._file.fileno()).st_size

    def read(self, offset: int, num_bytes: int) -> bytes:
        """Returns ``num_bytes`` bytes from ``offset`` on; fewer only where the file ends."""
        available = max(0, min(num_bytes, self.num_bytes() - offset))
        buffer = memoryview(bytearray(available))
        return bytes(buffer[: self.read_into(offset, buffer)])

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fills ``buffer`` from byte ``offset`` on; returns how many, fewer only at the end."""
        filled = 0
        try:
            self._file.seek(offset)
            while filled < len(buffer):
                count = self._file.readinto(buffer[filled:])
                if not count:
                    break
                filled += count
        except OSError as cause:
            raise self._unreadable(cause) from cause
        return filled

    def sha256(self) -> str:
        """Returns the SHA-256 of the whole file in hexadecimal."""
        try:
            self._file.seek(0)
            return hashlib.file_digest(self._file, "sha256").hexdigest()
        except OSError as cause:
            raise self._unreadable(cause) from cause

    def _unreadable(self, cause: OSError) -> PocketLMError:
        return self._error(
            f"{self.path.name} cannot be read ({_reason(cause)}), expected a readable file; "
            "check the disk, then get the file again"
        )


def _reason(cause: Exception) -> str:
    return str(getattr(cause, "strerror", None) or cause)


def _kind_name(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISFIFO(mode):
        return "a named pipe"
    return "a device or socket"
