"""Hashes of files, and the memory of those that were right: a verified file is not read again.

Standard library only.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from .cache_folder import cache_folder
from .errors import ModelFolderError


def file_sha256(file: Path) -> str:
    """Hex SHA-256 of a file; ModelFolderError if it cannot be read."""
    try:
        with open(file, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ModelFolderError(
            f"{file}: cannot read ({error.strerror}), expected a readable file; check permissions"
        ) from error


def file_identity(file: Path, sha256: str) -> str:
    """Changes with the file (device, inode, size, times), and with what it was expected to be."""
    status = file.stat()
    return (
        f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}:"
        f"{status.st_ctime_ns}:{sha256}"
    )


class VerifiedFiles:
    """Identities of files whose hash was right; kept as lines of one file, newest last."""

    LIMIT = 1000

    def __init__(self, file: Path | None, identities: list[str]) -> None:
        self.file = file
        self.identities = identities
        self.changed = False

    @classmethod
    def load(cls) -> VerifiedFiles:
        """What is remembered; nothing where that cannot be read."""
        cache = cache_folder()
        file = cache / "verified" if cache else None
        try:
            lines = file.read_text("utf-8").splitlines() if file else []
        except (OSError, UnicodeDecodeError):
            lines = []
        return cls(file, lines)

    def add(self, identity: str) -> None:
        """Remembers one more, once ``save`` is called."""
        self.identities.append(identity)
        self.changed = True

    def save(self) -> None:
        """Best effort: a read-only or missing cache only means hashing again next time."""
        if self.file is None or not self.changed:
            return
        with contextlib.suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.file.with_name(f"verified.{os.urandom(6).hex()}")
            temporary.write_text("\n".join(self.identities[-self.LIMIT :]) + "\n", "utf-8")
            os.replace(temporary, self.file)
