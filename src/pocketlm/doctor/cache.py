"""The cache folder: whether it can be written, has room, and holds what is whole.

Nothing is mended here: the advice is what to type.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from pocketlm.doctor.finding import OK, WARNING, WRONG, Finding
from pocketlm.export.cache_folder import cache_folder
from pocketlm.export.errors import ModelFolderError
from pocketlm.export.folder import ModelFolder
from pocketlm.export.leftovers import is_alive
from pocketlm.export.lock import holder
from pocketlm.export.publishing import free_space
from pocketlm.export.quantities import size_text

SET = "set POCKETLM_CACHE=" if sys.platform == "win32" else "export POCKETLM_CACHE="
ELSEWHERE = f"name a folder that can be written: {SET}FOLDER"
LEAST, LITTLE = 50_000_000, 1_000_000_000  # bytes free: for the demo, for a model worth reading


def check_cache() -> Iterator[Finding]:
    """Where it is, whether it can be written, and what it takes."""
    from pocketlm.models.store import unwritable

    root = cache_folder()
    if root is None:
        found = "no home folder, nor POCKETLM_CACHE: models are made again at every start"
        yield Finding("cache", WRONG, found, ELSEWHERE, {"path": None, "num_bytes": 0})
        return
    trouble, size = unwritable(root), _size(root)
    figures = {"path": str(root), "num_bytes": size}
    if trouble is not None:
        found = f"{trouble}: models are made again at every start"
        yield Finding("cache", WRONG, found, ELSEWHERE, figures)
    else:
        yield Finding("cache", OK, f"{root}, {size_text(size)}", None, figures)


def check_disk() -> Iterator[Finding]:
    """The room on its disk."""
    root = cache_folder() or Path.cwd()
    free, files = free_space(root / "model"), _free_files(root)
    figures = {"free_bytes": free, "free_files": files}
    found = f"{size_text(free)} free for the cache"
    advice = f"free some space: pocketlm list, pocketlm remove NAME; or {ELSEWHERE}"
    if files == 0:
        found = f"{found}, but no more files can be made on its disk (no inodes)"
        yield Finding("disk", WRONG, found, "remove files, however small", figures)
    elif free < LEAST:
        yield Finding("disk", WRONG, f"{found}, too little for any model", advice, figures)
    elif free < LITTLE:
        yield Finding("disk", WARNING, found, advice, figures)
    else:
        yield Finding("disk", OK, found, None, figures)


def check_models() -> Iterator[Finding]:
    """What is in it; a file that changed since it was last hashed is hashed."""
    from pocketlm.models import store

    root = cache_folder()
    found = store.entries(root) if root else []
    models = [entry for entry in found if entry.kind == store.MODEL]
    broken = {entry.id: fault for entry in models if (fault := _fault(entry.path))}
    broken |= {e.id: f"{e.path} is not whole" for e in found if e.kind == store.DAMAGED}
    downloads = sum(entry.kind == store.DOWNLOAD for entry in found)
    left = [e for e in found if e.kind == store.UNFINISHED and not is_alive(e.path)]
    removed = _half_removed(root) if root else []
    figures = {
        "models": len(models),
        "downloads": downloads,
        "broken": list(broken),
        "unfinished": [entry.id for entry in left],
    }
    parts = [f"{len(models)} model{'s' * (len(models) != 1)}"]
    parts += [f"{downloads} download{'s' * (downloads != 1)}"] * bool(downloads)
    parts += [f"broken: {fault}" for fault in broken.values()]
    parts += [f"unfinished: {entry.path}" for entry in left]
    parts += [f"half removed: {path}" for path in removed]
    typed = "; ".join(f"pocketlm remove {name}" for name in [*broken, *(e.id for e in left)])
    then = ["ask for it again"] * bool(typed) + [f"remove the folder {path}" for path in removed]
    # A comment, so that a shell takes the line as it is.
    advice = "  # then ".join(filter(None, [typed, ", ".join(then)])) or None
    state = WRONG if broken else WARNING if advice else OK
    yield Finding("models", state, "; ".join(parts), advice, figures)


def check_locks() -> Iterator[Finding]:
    """Who is making something now, and what a killed process left."""
    root = cache_folder()
    files = sorted((root / "locks").glob("*.lock")) if root else []
    holders = {file.stem: who for file in files if (who := holder(file)) is not None}
    stale = [file for file in files if file.stem not in holders and file.exists()]
    parts = [f"{who} is making {name}" for name, who in holders.items()]
    figures = {"held": list(holders), "stale": [str(file) for file in stale]}
    if stale:
        parts.append(f"{len(stale)} left by processes that were killed, which hold up nobody")
        advice = f"nothing, or remove: {_listed(stale)}"
        yield Finding("locks", WARNING, "; ".join(parts), advice, figures)
    else:
        yield Finding("locks", OK, "; ".join(parts) or "none is held", None, figures)


def _fault(path: Path) -> str | None:
    """What is wrong with a model folder."""
    try:
        ModelFolder.open(path).verify()
    except ModelFolderError as error:
        return str(error).partition("; ")[0]
    return None


def _half_removed(root: Path) -> list[Path]:
    """What ``pocketlm remove`` took out of sight and did not come to remove."""
    return sorted([*root.glob("models/.removed-*"), *root.glob("hub/**/.removed-*")])


def _size(root: Path) -> int:
    """Of all files in it; what has just gone takes nothing."""
    total = 0
    for folder, _, names in os.walk(root):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except OSError:
                continue
    return total


def _free_files(root: Path) -> int | None:
    """How many files can still be made there; None where the disk sets no number."""
    if not hasattr(os, "statvfs"):
        return None
    while not root.exists():
        root = root.parent
    status = os.statvfs(root)
    return status.f_favail if status.f_files else None


def _listed(files: Iterable[Path]) -> str:
    return ", ".join(map(str, files))
