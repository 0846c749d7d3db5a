"""A folder appears whole or not at all: it is written beside its place, then renamed.

Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import ModelFolderError, StorageError
from .folder import MANIFEST, ModelFolder
from .leftovers import OLD, leftovers, new_name, remove
from .manifest import WRITTEN_FILES
from .manifest_file import read_manifest
from .placing import (
    DROPPINGS,
    ChangedMeanwhile,
    Snapshot,
    bring_back,
    names_in,
    put,
    snapshot,
    sync,
)
from .quantities import size_text


class Target:
    """A place for a model folder, and what was there when this was made: only that is replaced.

    Nothing or an empty folder; with ``force`` also a model folder, of which every file is ours.
    ModelFolderError for anything else. Stands for its path in every call.
    """

    def __init__(self, out: str | os.PathLike[str], *, force: bool = False) -> None:
        self._given = os.fspath(out)
        self.path = Path(os.path.realpath(out))  # a link stays: what it points to is replaced
        _check_not_here(self.path)
        for left in leftovers(self.path):
            if left.name.endswith(OLD) and (left / MANIFEST).exists():
                bring_back(self.path, left)
        self._replaced = _replaceable(self.path, force)

    def __fspath__(self) -> str:
        return self._given

    def __str__(self) -> str:
        return self._given

    def take(self, new: Path) -> None:
        """Renames ``new`` to this place; ModelFolderError where something else came meanwhile."""
        try:
            put(new, self.path, self._replaced, _remove_model_folder)
        except ChangedMeanwhile as found:
            raise ModelFolderError(
                f"{self.path}: found {found}, expected "
                f"{'what was there' if self._replaced else 'a new or empty folder'}; it stays, and "
                "what was to be written here is gone - choose another name"
            ) from None


def target_of(out: str | os.PathLike[str], force: bool) -> Target:
    """``out`` if it is a Target, which has looked already; else one, with ``force``."""
    return out if isinstance(out, Target) else Target(out, force=force)


@contextlib.contextmanager
def publishing(out: str | os.PathLike[str], *, force: bool = False) -> Iterator[Path]:
    """A temporary sibling of ``out`` to write into, renamed to ``out`` when the block ends well.

    What may be at ``out`` is as for ``Target``, which ``out`` may be; what is replaced is so only
    after the new folder is complete. On any error, Ctrl-C included, the sibling is removed. The
    next run collects what a killed process left, or puts it back. Raises StorageError when the disk
    is full, the parent cannot be written, or somebody took away what was written.
    """
    target = target_of(out, force)
    with folder_beside(target.path) as partial:
        yield partial
        with storage_errors(target.path):
            _check_complete(target.path, partial)
            for file in sorted(partial.iterdir(), key=lambda file: file.name == MANIFEST):
                sync(file)
            sync(partial)
            target.take(partial)


@contextlib.contextmanager
def folder_beside(target: Path) -> Iterator[Path]:
    """A temporary sibling of ``target``, removed in the end unless it was renamed.

    What killed processes left of others is collected first.
    """
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        collect_leftovers(target)
        partial = new_name(target)
        partial.mkdir()
    try:
        yield partial
    finally:
        remove(partial)


def collect_leftovers(target: Path) -> None:
    """Removes what killed processes left beside ``target``."""
    for left in leftovers(target):
        if left.name.endswith(OLD):
            _remove_model_folder(left)
        else:
            remove(left)


def _check_complete(out: Path, partial: Path) -> None:
    """Whether all that was written is still there, before it gets its name."""
    try:
        ModelFolder.open(partial)
    except ModelFolderError as error:
        raise StorageError(
            f"{out}: found what was written for it changed ({error}), expected it as it was "
            "written; nothing was kept - see who else uses this disk, and try again"
        ) from error


def _replaceable(out: Path, force: bool) -> Snapshot | None:
    """What of ``out`` may be replaced: None where nothing has to be. ModelFolderError if not."""
    if not os.path.lexists(out):
        return None
    if not out.is_dir():
        raise ModelFolderError(
            f"{out}: found a file, expected a folder to write to; choose another name"
        )
    if not os.listdir(out):
        return None
    if not force:
        raise ModelFolderError(
            f"{out}: found a folder that is not empty, expected a new or empty one; "
            "choose another name, or replace it with --force"
        )
    found = snapshot(out)
    foreign = sorted(set(names_in(out)) - _our_names(out))
    if not (out / MANIFEST).exists():
        raise ModelFolderError(
            f"{out}: found files that pocketlm did not write, expected a model folder to replace; "
            "--force only replaces model folders - choose another name"
        )
    if foreign:
        raise ModelFolderError(
            f"{out}: found {', '.join(foreign[:3])}{', …' if foreign[3:] else ''}, which pocketlm "
            "did not write, expected nothing but a model folder to replace; move it elsewhere, or "
            "choose another name"
        )
    return found


def _check_not_here(out: Path) -> None:
    """A folder that is replaced is another one: whoever stands in it stands nowhere."""
    with contextlib.suppress(FileNotFoundError):  # nor does this process stand anywhere
        here = Path.cwd()
        if here.is_relative_to(out):
            raise ModelFolderError(
                f"{out}: found the current folder or one around it, expected another, since a "
                "model folder appears as a whole; name a new folder in it"
            )


def _our_names(folder: Path) -> set[str]:
    """Names of the files in ``folder`` that an export writes, now or when this one was made."""
    names = {MANIFEST, *WRITTEN_FILES}
    with contextlib.suppress(ModelFolderError):  # damaged
        names |= read_manifest(folder / MANIFEST).files.keys()
    return {name for name in names if (folder / name).is_file()}


def _remove_model_folder(folder: Path) -> None:
    """Removes the files of a model folder, and the folder, unless somebody put more into it.

    The manifest goes first: what is left of a killed removal is not brought back.
    """
    with contextlib.suppress(OSError):
        names = _our_names(folder) | (DROPPINGS & set(os.listdir(folder)))
        for name in sorted(names, key=lambda name: name != MANIFEST):
            (folder / name).unlink()
        folder.rmdir()


@contextlib.contextmanager
def storage_errors(out: Path) -> Iterator[None]:
    """Turns an OSError of writing into a StorageError that names the folder and the cause."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{out}: cannot write ({error.strerror or error}), expected a writable folder with "
            "enough free space; nothing was kept - free some space or choose another place"
        ) from error


def free_space(out: str | os.PathLike[str]) -> int:
    """Free bytes where ``out`` will be written."""
    folder = Path(os.path.abspath(out)).parent
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def check_free_space(out: str | os.PathLike[str], needed: int) -> None:
    """Raises StorageError when ``needed`` bytes are not free where ``out`` will be written."""
    free = free_space(out)
    if free < needed:
        raise StorageError(
            f"{out}: found {size_text(free)} free, expected at least {size_text(needed)}; free "
            "some space or choose another place"
        )


def write_json(file: Path, value: dict[str, Any]) -> None:
    """Writes ``value`` as UTF-8 JSON, the same bytes for the same value."""
    file.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
