"""A file written for a user appears whole or not at all, and replaces no file but one of ours.

Standard library only.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from .errors import RequestError, StorageError
from .leftovers import OLD, leftovers, new_name, remove
from .placing import ChangedMeanwhile, Snapshot, bring_back, put, snapshot


class OutputFile:
    """A place for a file, and what was there when this was made: only that is replaced.

    Nothing, an empty file, or one whose content ``is_ours`` says yes to. To be made before the work
    whose result it gets: RequestError where that could not be written, or another file is there.
    """

    def __init__(
        self, path: str | os.PathLike[str], is_ours: Callable[[bytes], bool] | None = None
    ) -> None:
        self._given = os.fspath(path)
        try:
            self.path = Path(os.path.realpath(path))  # a link stays: what it points to is replaced
            self._replaced = self._replaceable(is_ours)
        except RequestError:  # a ValueError, too
            raise
        except (OSError, ValueError) as cause:  # ValueError: a name with a NUL
            raise RequestError(
                f"{self._given}: cannot be written ({getattr(cause, 'strerror', None) or cause}), "
                "expected a place that can; choose another, or change its permissions"
            ) from cause

    def write(self, data: bytes) -> None:
        """Puts ``data`` there, as often as there is news.

        RequestError where another file came meanwhile, StorageError where the disk is full.
        """
        temporary = new_name(self.path)
        try:
            with open(temporary, "xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            if self._replaced is not None:
                with contextlib.suppress(OSError):
                    shutil.copymode(self.path, temporary)
            put(temporary, self.path, self._replaced, remove)
            self._replaced = snapshot(self.path)
        except ChangedMeanwhile as found:
            raise RequestError(
                f"{self._given}: found {found}, expected what was there; it stays - choose "
                "another name"
            ) from None
        except OSError as cause:
            raise StorageError(
                f"{self._given}: cannot be written ({cause.strerror}), expected room for "
                f"{len(data):,} bytes; free some space or choose another place"
            ) from cause
        finally:
            remove(temporary)

    def _replaceable(self, is_ours: Callable[[bytes], bool] | None) -> Snapshot | None:
        """What may be replaced; RequestError for what is in the way, OSError of the system."""
        self._check_place()
        for left in leftovers(self.path):
            if left.name.endswith(OLD):
                bring_back(self.path, left)
            remove(left)
        # Permissions alone do not tell: of a read-only file system, or to root.
        trial = new_name(self.path)
        open(trial, "xb").close()
        trial.unlink()
        if not self.path.exists():
            return None
        if not os.access(self.path, os.W_OK):
            raise PermissionError(errno.EACCES, "the file is read-only")
        found = snapshot(self.path)
        data = self.path.read_bytes()
        if data and not (is_ours and is_ours(data)):
            raise RequestError(
                f"{self._given}: found a file, expected a new name"
                f"{', or a file that this command wrote' if is_ours else ''}; choose another"
            )
        return found

    def _check_place(self) -> None:
        if self.path.is_dir():
            raise RequestError(
                f"{self._given}: found a folder, expected a file; add a name to it, or choose "
                "another"
            )
        if self.path.exists() and not self.path.is_file():
            raise RequestError(
                f"{self._given}: found no regular file, expected one or none; choose another"
            )
        parent = self.path.parent
        if not parent.is_dir():
            found = "a file" if parent.exists() else "nothing"
            raise RequestError(
                f"{self._given}: found {found} at {parent}, expected a folder; make it first"
            )
