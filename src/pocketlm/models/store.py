"""The cache folder: what is kept where, what there is, and removing it.

    locks/                            one file for each thing that is made; held meanwhile
    models/NAME-PRECISION-KEY/        model folders of checkpoints on this disk, and of the demo
    hub/ORG--NAME/refs/REVISION.json  what the revision meant last time
    hub/ORG--NAME/checkpoint-ID/      a complete download; .checkpoint-ID.partial is not complete
    hub/ORG--NAME/PRECISION-KEY/      model folders

ID is a digest of the names and digests of a checkpoint's files at its commit, so that a commit that
changes none of them changes nothing here. KEY adds the version of pocketlm and a tokenizer from
elsewhere; of a checkpoint on this disk it is made of the files (``fingerprint``) and not
of NAME or place, so that a folder that was moved or renamed finds its model. All are real files;
removing the whole folder is always safe.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from pocketlm.export.cache_folder import cache_folder
from pocketlm.export.download import DOWNLOADED, damaged_file
from pocketlm.export.errors import HubError, ModelFolderError, RequestError
from pocketlm.export.folder import ModelFolder
from pocketlm.export.leftovers import is_alive
from pocketlm.export.lock import locked
from pocketlm.export.strict_json import load_json_object
from pocketlm.models.local import (
    LARGEST_RECORD,
    lock_file,
    sound_model,
    source_of,
    write_record,
)
from pocketlm.models.reference import DEMO
from pocketlm.quantize.precisions import MIXED, PRECISIONS

KEEP = "pocketlm-keep"  # a file that a download has when it was asked for beyond the export
MODEL, DOWNLOAD, UNFINISHED, DAMAGED = "model", "download", "unfinished", "damaged"
# A model folder's name: the first part is of a checkpoint on this disk.
_MODEL_NAME = re.compile(rf"(?:(.+)-)?({'|'.join((*PRECISIONS, MIXED))})-([0-9a-f]{{16}})")
# Cache folders that cannot be written, None for no home, and what this process takes instead.
_temporary: dict[Path | None, Path] = {}


def writable_root(say: Callable[[str], None]) -> Path:
    """The cache folder; where it cannot be written, a temporary one that is removed at exit.

    ``say`` hears of that, once in a process.
    """
    cache = cache_folder()
    trouble: str | None = "there is no home folder, nor POCKETLM_CACHE"
    if cache is not None:
        trouble = unwritable(cache)
        if trouble is None:
            return cache
    if cache not in _temporary:
        say(
            f"no cache: {trouble}; what is fetched and made lies in a temporary folder, and is "
            "made again at every start - name a folder to keep it in POCKETLM_CACHE"
        )
        _temporary[cache] = Path(tempfile.mkdtemp(prefix="pocketlm-"))
        atexit.register(shutil.rmtree, _temporary[cache], ignore_errors=True)
    return _temporary[cache]


def unwritable(cache: Path) -> str | None:
    """Why nothing can be kept in ``cache``, which is made if it is missing; None if it can be."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            return None
    except OSError as error:
        return f"{cache} cannot be written ({error.strerror or error})"


@dataclass(frozen=True)
class Pinned:
    """What a revision meant when it was looked up."""

    commit: str
    checkpoint_id: str  # ID of the module docstring


def checkpoint_id(files: dict[str, str]) -> str:
    """ID of the module docstring; ``files`` has digests by name."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Repository:
    """What the cache at ``root`` has of the hub's repository ``name``."""

    root: Path
    name: str  # org/name

    @property
    def folder(self) -> Path:
        """Everything but the lock."""
        return self.root / "hub" / self.name.replace("/", "--")

    @property
    def lock(self) -> Path:
        """Held while the repository is downloaded, exported or removed."""
        return lock_file(self.root, self.folder.name)

    def pinned(self, revision: str) -> Pinned | None:
        """What ``revision`` meant last time; None if it is not known."""
        try:
            ref = load_json_object(self._ref(revision), LARGEST_RECORD, HubError)
        except HubError:
            return None
        values = [ref.get("commit"), ref.get("checkpoint_id")]
        if ref.get("revision") != revision or not all(isinstance(v, str) for v in values):
            return None
        return Pinned(*map(str, values))

    def pin(self, revision: str, pinned: Pinned) -> None:
        """Remembers it for ``pinned``, as far as the cache can be written."""
        for name in {revision, pinned.commit}:
            record = {
                "revision": name,
                "commit": pinned.commit,
                "checkpoint_id": pinned.checkpoint_id,
            }
            with contextlib.suppress(OSError):
                self._ref(name).parent.mkdir(parents=True, exist_ok=True)
                write_record(self._ref(name), record)

    def _ref(self, revision: str) -> Path:
        return self.folder / "refs" / f"{quote(revision, safe='')[:200]}.json"

    def checkpoint(self, pinned: Pinned, for_torch: bool = False) -> Path:
        """Where its download is, or will be."""
        return self.folder / f"{'torch' if for_torch else 'checkpoint'}-{pinned.checkpoint_id}"

    def model(self, precision: str, key: str) -> Path:
        """Where the model folder is, or will be."""
        return self.folder / f"{precision}-{key}"

    def find_model(self, precision: str | None, default: str, key: str) -> ModelFolder | None:
        """A sound model folder; without ``precision`` the default one, else the newest there is."""
        if precision is not None:
            return sound_model(self.model(precision, key))
        others = sorted(self.folder.glob(f"[!.]*-{key}"), key=_modified, reverse=True)
        folders = [self.model(default, key), *others]
        return next((found for folder in folders if (found := sound_model(folder))), None)

    def kept(self) -> list[Path]:
        """The folders of models and downloads, unfinished ones too."""
        return [folder for folder in _folders(self.folder) if folder.name != "refs"]


def is_download(folder: Path) -> bool:
    """Whether ``folder`` is a complete download with all its files."""
    try:
        files = load_json_object(folder / DOWNLOADED, LARGEST_RECORD, HubError)["files"]
        return all((folder / name).stat().st_size == files[name]["bytes"] for name in files)
    except (HubError, OSError, KeyError, TypeError):
        return False


def damaged_download(folder: Path) -> str | None:
    """The first file of a complete download that is no longer what the hub listed; reads them."""
    if not is_download(folder):
        return None
    record = load_json_object(folder / DOWNLOADED, LARGEST_RECORD, HubError)
    return damaged_file(folder, record["files"])


# What there is -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A folder of the cache, for ``pocketlm list`` and ``remove``."""

    name: str  # org/name; of a checkpoint on this disk the name of its folder
    kind: str  # MODEL, DOWNLOAD, UNFINISHED or DAMAGED
    precision: str | None
    num_bytes: int
    id: str  # tells it from all others
    commit: str | None  # of a repository
    source: str | None  # place of a checkpoint on this disk; None for the demo, or if not known
    modified: float  # seconds since the epoch
    path: Path


def repositories(root: Path) -> list[Repository]:
    """Those of which the cache at ``root`` has more than what a revision meant."""
    names = [folder.name.replace("--", "/", 1) for folder in _folders(root / "hub")]
    return [found for name in names if (found := Repository(root, name)).kept()]


def entries(root: Path) -> list[Entry]:
    """Every model and download in the cache at ``root``, by name, then newest first."""
    found = [_entry(folder, None) for folder in _folders(root / "models")]
    for repository in repositories(root):
        found += [_entry(folder, repository.name) for folder in repository.kept()]
    return sorted(found, key=lambda entry: (entry.name.lower(), -entry.modified))


def named(root: Path, name: str) -> list[Entry]:
    """The entries that ``name`` means: the one with this ID, else those of this place or name.

    If there are none, it is the last word of a repository's name, if no other has the same. As
    everywhere, what is on this disk comes first; elsewhere "demo" is the demo alone.
    """
    everything = entries(root)
    place = os.path.realpath(name)
    meanings: list[Callable[[Entry], bool]] = [
        lambda entry: entry.id == name,
        lambda entry: entry.source is not None and os.path.realpath(entry.source) == place,
        lambda entry: entry.name == name and (name != DEMO or entry.source is None),
    ]
    for meant in meanings:
        if found := [entry for entry in everything if meant(entry)]:
            return found
    short = [entry for entry in everything if entry.name.rpartition("/")[2] == name]
    return short if len({entry.name for entry in short}) == 1 and name != DEMO else []


def remove(root: Path, gone: Iterable[Entry], on_wait: Callable[[str], None]) -> None:
    """Removes what ``entries`` found, after whoever is making it."""
    for entry in gone:
        with locked(_lock_of(root, entry), on_wait):
            if is_alive(entry.path):
                raise RequestError(
                    f"{entry.name}: found a process that is writing {entry.path}, expected none; "
                    "end it first, or wait until it is done"
                )
            discard(entry.path)
    for folder in _folders(root / "hub"):
        if not Repository(root, folder.name.replace("--", "/", 1)).kept():
            discard(folder)


def _lock_of(root: Path, entry: Entry) -> Path:
    """The lock under which ``entry`` is made."""
    if entry.path.parent != root / "models":
        return Repository(root, entry.name).lock
    name = _without_partial(entry.path.name)
    match = _MODEL_NAME.fullmatch(name)
    return lock_file(root, f"{match[2]}-{match[3]}" if match else name)


def discard(folder: Path) -> None:
    """Takes ``folder`` out of sight, then removes it, and what a killed process left of this.

    Of a link, which a user made, only the link goes.
    """
    if folder.is_symlink():
        folder.unlink()
        return
    with contextlib.suppress(FileNotFoundError):
        os.rename(folder, folder.with_name(f".removed-{uuid.uuid4().hex}"))
    for leftover in folder.parent.glob(".removed-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _folders(parent: Path) -> Iterator[Path]:
    try:
        children = sorted(parent.iterdir())
    except OSError:
        return
    for folder in children:
        if folder.is_dir() and not folder.is_symlink() and not folder.name.startswith(".removed-"):
            yield folder


def _entry(folder: Path, repository: str | None) -> Entry:
    kind, precision, commit, name = DAMAGED, None, None, repository
    if (folder / DOWNLOADED).is_file():
        kind = DOWNLOAD if is_download(folder) else DAMAGED
        with contextlib.suppress(HubError):
            commit = load_json_object(folder / DOWNLOADED, LARGEST_RECORD, HubError).get("commit")
    elif _without_partial(folder.name) != folder.name:
        kind = UNFINISHED
    else:
        with contextlib.suppress(ModelFolderError):
            manifest = ModelFolder.open(folder).manifest
            kind = MODEL
            commit = manifest.source.commit
    if match := _MODEL_NAME.fullmatch(_without_partial(folder.name)):
        precision = match[2]
    if name is None:
        name = match[1] if match and match[1] else folder.name
    return Entry(
        name=name,
        kind=kind,
        precision=precision,
        num_bytes=sum(_size(file) for file in folder.rglob("*")),
        id=hashlib.sha256(f"{folder.parent.name}/{folder.name}".encode()).hexdigest()[:8],
        commit=commit if isinstance(commit, str) else None,
        source=None if repository else source_of(folder),
        modified=_modified(folder),
        path=folder,
    )


def _without_partial(name: str) -> str:
    """The name that an unfinished folder (.NAME.partial, .NAME.partial-RANDOM) is to have."""
    return name[1:].partition(".partial")[0] if name.startswith(".") else name


def _size(file: Path) -> int:
    """0 for what has just gone."""
    try:
        return file.lstat().st_size if file.is_file() else 0
    except OSError:
        return 0


def _modified(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0
