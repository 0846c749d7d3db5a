"""What was written beside its place is put there, and replaces nothing but what was found there.

To look and then to rename is not enough: something may appear in between. So a rename takes place
only onto nothing (or an empty folder), which the system decides; and what is to be replaced is
renamed aside first, and looked at there, where nobody else does anything to it. Standard library
only.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .leftovers import OLD, new_name

DROPPINGS = {".DS_Store", "Thumbs.db", "desktop.ini"}  # of macOS and Windows
Snapshot = tuple[Any, ...]  # of the place itself, then (name, of that file) of each in it


class ChangedMeanwhile(Exception):
    """The place does not hold what was found there at first; the message says what it holds."""


def snapshot(path: Path) -> Snapshot:
    """Changes when the file or folder at ``path``, or a file in it, changes or is another one."""
    names = names_in(path) if stat.S_ISDIR(path.lstat().st_mode) else []
    return (_identity(path), *((name, _identity(path / name)) for name in names))


def names_in(folder: Path) -> list[str]:
    """What lies in ``folder``, but for what the system puts into every folder that is looked at."""
    return sorted(set(os.listdir(folder)) - DROPPINGS)


def _identity(path: Path) -> Snapshot:
    status = path.lstat()
    if stat.S_ISDIR(status.st_mode):  # its size and time change with what is in it
        return status.st_dev, status.st_ino
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def put(
    new: Path, place: Path, replaced: Snapshot | None, remove_old: Callable[[Path], None]
) -> None:
    """Renames ``new`` to ``place``, where there is nothing, or what had the snapshot ``replaced``.

    ChangedMeanwhile where there is something else, which stays as it is. ``remove_old`` gets what
    was replaced, under another name. Killed in between, this leaves it there for ``bring_back``.
    """
    aside = new_name(place, OLD)
    try:
        if replaced is not None:
            _set_aside(place, aside, replaced)
        rename_without_replacing(new, place)
        sync(place.parent)
    finally:  # of Ctrl-C, too
        if os.path.lexists(aside):
            if os.path.lexists(new):
                _give_back(aside, place)
            else:
                remove_old(aside)


def rename_without_replacing(source: Path, target: Path) -> None:
    """Renames a file onto nothing, or a folder onto nothing or an empty one; ChangedMeanwhile."""
    try:
        if source.is_dir():
            _rename_folder(source, target)
        else:
            _rename_file(source, target)
    except OSError as error:
        if os.path.lexists(source) and os.path.lexists(target):
            raise ChangedMeanwhile(_found(target)) from error
        raise


def _rename_folder(source: Path, target: Path) -> None:
    try:
        os.rename(source, target)  # POSIX: onto nothing or an empty folder; Windows: onto nothing
    except FileExistsError:
        os.rmdir(target)
        os.rename(source, target)


def _rename_file(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # no hard links on this disk
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.replace(source, target)
    else:
        os.unlink(source)


def _set_aside(place: Path, aside: Path, expected: Snapshot) -> None:
    try:
        os.rename(place, aside)
    except FileNotFoundError:  # then there is nothing to replace
        return
    if snapshot(aside) != expected:
        raise ChangedMeanwhile(_changed(aside, expected))


def _give_back(aside: Path, place: Path) -> None:
    try:
        rename_without_replacing(aside, place)
    except (ChangedMeanwhile, OSError):  # taken in the very moment: never hide what is not ours
        os.rename(aside, place.with_name(f"{place.name}.before-{uuid.uuid4().hex[:8]}"))


def bring_back(place: Path, left: Path) -> None:
    """Undoes a ``put`` that was killed after it set ``left`` aside, if nothing is at ``place``."""
    if not os.path.lexists(place):
        with contextlib.suppress(ChangedMeanwhile, OSError):
            rename_without_replacing(left, place)


def _found(path: Path) -> str:
    what = "a file"
    if path.is_dir():
        names = sorted(os.listdir(path))
        what = f"a folder that is not empty ({_listed(names)})" if names else "a folder"
    return f"{what}, which was not there when this began"


def _changed(path: Path, expected: Snapshot) -> str:
    now = snapshot(path)
    if now[0] != expected[0] or not path.is_dir():
        return f"another {'folder' if path.is_dir() else 'file'} than when this began"
    names = sorted({name for name, _ in set(now[1:]) ^ set(expected[1:])})
    return f"changes in it since this began ({_listed(names)})"


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])}{', …' if names[3:] else ''}"


def sync(path: Path) -> None:
    """Waits until the file or folder ``path`` is on the disk; folders not on Windows."""
    if sys.platform == "win32" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
