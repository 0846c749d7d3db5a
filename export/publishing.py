"""A folder appears whole or not at all: it is written beside its place, then renamed.

Standard library only.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import ModelFolderError, StorageError
from .folder import MANIFEST


@contextlib.contextmanager
def publishing(out: str | Path, *, force: bool = False) -> Iterator[Path]:
    """A temporary sibling of ``out`` to write into, renamed to ``out`` when the block ends well.

    An existing non-empty ``out`` is refused unless ``force``; then it is replaced only after the
    new folder is complete, and only if it is a model folder. On any error, Ctrl-C included,
    the sibling is removed. The next run collects what a killed process left, or puts it back.
    Raises StorageError when the disk is full or the parent cannot be written.
    """
    out = Path(os.path.realpath(out))  # a link stays: what it points to is replaced
    _bring_back(out)
    check_target(out, force)
    with _beside(out) as partial:
        yield partial
        with storage_errors(out):
            for file in sorted(partial.iterdir(), key=lambda file: file.name == MANIFEST):
                sync(file)
            sync(partial)
            _replace(partial, out)


@contextlib.contextmanager
def working_beside(out: str | Path, *, force: bool = False) -> Iterator[Path]:
    """A temporary sibling of ``out`` for files on the way to it; removed in every case.

    Refuses an ``out`` that ``publishing`` will refuse, before anything is done for it.
    """
    out = Path(os.path.realpath(out))
    _bring_back(out)
    check_target(out, force)
    with _beside(out) as folder:
        yield folder


@contextlib.contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A locked temporary sibling; what a killed process left of others is collected first."""
    with storage_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        _collect_leftovers(out)
        partial = out.parent / f".{out.name}.partial-{uuid.uuid4().hex[:12]}"
        partial.mkdir()
    lock = _hold(partial)
    try:
        yield partial
    finally:
        if lock is not None:
            os.close(lock)
        shutil.rmtree(partial, ignore_errors=True)


def check_target(out: Path, force: bool) -> None:
    """Raises ModelFolderError if a folder may not be published at ``out``."""
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise ModelFolderError(
            f"{out}: found a file, expected a folder to write to; choose another name"
        )
    if not any(out.iterdir()):
        return
    if not force:
        raise ModelFolderError(
            f"{out}: found a folder that is not empty, expected a new or empty one; "
            "choose another name, or replace it with --force"
        )
    if not (out / MANIFEST).exists():
        raise ModelFolderError(
            f"{out}: found files that pocketlm did not write, expected a model folder to replace; "
            "--force only replaces model folders - choose another name"
        )


def _replace(partial: Path, out: Path) -> None:
    """Renames ``partial`` to ``out``; an old folder is moved aside first and removed afterwards."""
    old = out.parent / f".{out.name}.partial-{uuid.uuid4().hex[:12]}-old"
    had_old = out.is_dir() and any(out.iterdir())
    try:
        if had_old:
            os.rename(out, old)
        elif out.is_dir():
            out.rmdir()
        os.rename(partial, out)
    except BaseException:  # Ctrl-C included
        if had_old and not out.exists():
            os.rename(old, out)
        raise
    sync(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _bring_back(out: Path) -> None:
    """Undoes a replacement that was killed between its two renames, when nothing was at ``out``."""
    for old in out.parent.glob(f".{glob.escape(out.name)}.partial-*-old"):
        if not os.path.lexists(out):
            with contextlib.suppress(OSError):
                os.rename(old, out)


def _hold(folder: Path) -> int | None:
    """Locks ``folder`` for the life of this process, so that no other run collects it."""
    if sys.platform == "win32":
        return None
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    with contextlib.suppress(OSError):  # a file system without locks costs leftovers, never bytes
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return handle


def _collect_leftovers(out: Path) -> None:
    """Removes partial folders of ``out`` whose process is gone (the kernel frees its lock)."""
    if sys.platform == "win32":
        return
    import fcntl

    for leftover in out.parent.glob(f".{glob.escape(out.name)}.partial-*"):
        with contextlib.suppress(OSError):
            handle = os.open(leftover, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(leftover, ignore_errors=True)
            finally:
                os.close(handle)


def sync(path: Path) -> None:
    """Waits until the file or folder ``path`` is on the disk; folders not on Windows."""
    if sys.platform == "win32" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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


def free_space(out: str | Path) -> int:
    """Free bytes where ``out`` will be written."""
    folder = Path(os.path.abspath(out)).parent
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def check_free_space(out: str | Path, needed: int) -> None:
    """Raises StorageError when ``needed`` bytes are not free where ``out`` will be written."""
    free = free_space(out)
    if free < needed:
        raise StorageError(
            f"{out}: found {free / 1e6:.0f} MB free, expected at least {needed / 1e6:.0f} MB; "
            "free some space or choose another place"
        )


def write_json(file: Path, value: dict[str, Any]) -> None:
    """Writes ``value`` as UTF-8 JSON, the same bytes for the same value."""
    file.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
