"""Exports a checkpoint once, and finds the result in the cache folder from then on.

The checkpoint is one on this disk, the demo, or a repository on the hub, which is downloaded first.
Of the processes that ask for the same model at the same time one makes it, and the others wait.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from pocketlm import __version__, store
from pocketlm.export.checkpoint import Checkpoint, open_checkpoint
from pocketlm.export.download import OnDownload, download, download_config, held_bytes
from pocketlm.export.errors import (
    HubError,
    ModelFolderError,
    PocketLMError,
    RequestError,
    StorageError,
    missing_extra,
)
from pocketlm.export.folder import MANIFEST, ModelFolder, cache_folder
from pocketlm.export.hub import (
    ATTEMPTS,
    DEFAULT_REVISION,
    Hub,
    Snapshot,
    offline_by_environment,
    offline_error,
    split_name,
)
from pocketlm.export.hub_selection import relevant_files
from pocketlm.export.lock import locked
from pocketlm.export.quantities import size_text
from pocketlm.export.tokenizers import TokenizerSource, open_tokenizer
from pocketlm.quantize.precisions import FULL
from pocketlm.store import Pinned, Repository, discard, is_download, sound_model

DEMO_CHECKPOINT = Path(__file__).parent / "demo"
DEFAULT_PRECISION = "int8"
OnExport = Callable[[Path], dict[str, Any]]


def say(message: str) -> None:
    """One line on stderr: what a user should know although nothing failed."""
    print(f"pocketlm: {message}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class HubOptions:
    """How a repository on the hub is used."""

    revision: str | None = None  # branch, tag or commit; None: "main"
    offline: bool = False
    keep_download: bool = False  # also after the export
    on_download: OnDownload | None = None


def export_once(
    checkpoint: str | Path | None,
    precision: str | None,
    tokenizer: str | Path | None,
    on_export: OnExport | None,
    options: HubOptions,
) -> ModelFolder:
    """The model folder of ``checkpoint`` (None: the demo) in ``precision``, exported if need be.

    Without a writable cache folder it goes to a temporary folder that is removed at exit.
    """
    if wanted := _on_hub(checkpoint, options):
        return wanted.model(precision, tokenizer, on_export)
    opened = open_checkpoint(checkpoint or DEMO_CHECKPOINT, tokenizer)
    files = [*opened.files, *(opened.tokenizer.files if opened.tokenizer else ())]
    precision = precision or DEFAULT_PRECISION
    key = _key(files, precision, json.dumps(opened.generation_config, sort_keys=True))
    name = f"{'demo' if checkpoint is None else opened.path.stem}-{precision}-{key}"
    cache = cache_folder()
    if cache is not None and (found := sound_model(cache / "models" / name)):
        return found
    root = store.writable_root()
    out = root / "models" / name
    with locked(store.lock_file(root, name), _waiting_for(name)):
        return sound_model(out) or _export(opened, out, precision, on_export)


@contextlib.contextmanager
def opened_checkpoint(
    checkpoint: str | Path, tokenizer: str | Path | None, options: HubOptions
) -> Iterator[Checkpoint]:
    """The checkpoint at a path, or of the hub's repository, downloaded if need be.

    When the block ends well, a download goes unless it is to be kept. Raises as ``load``.
    """
    wanted = _on_hub(checkpoint, options)
    if wanted is None:
        yield open_checkpoint(checkpoint, tokenizer)
        return
    with wanted.checkpoint(for_torch=False) as (folder, origin):
        yield replace(open_checkpoint(folder, tokenizer), origin=origin)


@contextlib.contextmanager
def checkpoint_folder(
    checkpoint: str | Path, options: HubOptions, *, for_torch: bool = False
) -> Iterator[tuple[Path, dict[str, str]]]:
    """The folder of ``opened_checkpoint``, unopened, and its repository and commit if it has any.

    ``for_torch`` brings what transformers loads: see ``export.download``.
    """
    wanted = _on_hub(checkpoint, options)
    if wanted is None:
        yield Path(checkpoint), {}
        return
    with wanted.checkpoint(for_torch) as found:
        yield found


@contextlib.contextmanager
def headers_folder(checkpoint: str | Path, options: HubOptions) -> Iterator[Path]:
    """A folder to plan an export from: of a repository on the hub no more than config.json."""
    wanted = _on_hub(checkpoint, options)
    if wanted is None:
        yield Path(checkpoint)
        return
    with wanted.headers() as folder:
        yield folder


def names_model(word: str) -> bool:
    """Whether ``word`` alone is a model: a path that exists, or a full name that is cached."""
    return _exists(word) or (split_name(word) is not None and _cached_name(word) is not None)


def _cached_name(word: str) -> str | None:
    """The hub's name of the one repository in the cache that ``word`` means, if there is one."""
    root = cache_folder()
    names = [repository.name for repository in store.repositories(root)] if root else []
    if split := split_name(word):
        return word if split[0] in names else None
    found = [name for name in names if name.rpartition("/")[2] == word]
    return found[0] if len(found) == 1 else None


def _on_hub(checkpoint: str | Path | None, options: HubOptions) -> _Wanted | None:
    """The repository that ``checkpoint`` names; None for what is on this disk."""
    split = None
    if checkpoint is not None and not _exists(checkpoint):
        name = Path(checkpoint).as_posix()
        split = split_name(name) or split_name(_cached_name(name) or "")
    if split is None:
        if options.revision is not None:
            raise RequestError(
                f"revision: found {options.revision!r:.100} for a model on this disk, expected it "
                "only for one on the hub (org/name); leave it out"
            )
        return None
    repository, revision = split
    if revision is not None and options.revision not in (None, revision):
        raise RequestError(
            f"revision: found {revision!r} in the name and {options.revision!r:.100}, expected "
            "one; leave one of them out"
        )
    return _Wanted(repository, options.revision or revision or DEFAULT_REVISION, options)


def _exists(path: str | Path) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # longer than a file name may be, or with a NUL
        return False


@dataclass(frozen=True)
class _Wanted:
    """A repository on the hub at a revision."""

    name: str
    revision: str
    options: HubOptions

    def model(
        self, precision: str | None, tokenizer: str | Path | None, on_export: OnExport | None
    ) -> ModelFolder:
        """Its model folder; without ``precision`` the one that is in the cache, else int8."""
        others = _key([] if tokenizer is None else [*_open_tokenizer(tokenizer).files])
        pinned, answer = self._look_up()
        key = hashlib.sha256(f"{pinned.checkpoint_id}\0{others}".encode()).hexdigest()[:16]
        if found := self._cached().find_model(precision, DEFAULT_PRECISION, key):
            self._note_cached(pinned, answer)
            return found
        precision = precision or DEFAULT_PRECISION
        repository = Repository(store.writable_root(), self.name)
        out = repository.model(precision, key)
        with locked(repository.lock, _waiting_for(self.name)):
            if found := sound_model(out):
                return found
            with self._downloaded(repository, pinned, answer, precision) as (folder, origin):
                opened = replace(open_checkpoint(folder, tokenizer), origin=origin)
                return _export(opened, out, precision, on_export)

    @contextlib.contextmanager
    def checkpoint(self, for_torch: bool) -> Iterator[tuple[Path, dict[str, str]]]:
        """Its checkpoint's folder, which goes after the block unless it is to be kept."""
        pinned, answer = self._look_up()
        repository = Repository(store.writable_root(), self.name)
        with (
            locked(repository.lock, _waiting_for(self.name)),
            self._downloaded(repository, pinned, answer, for_torch=for_torch) as found,
        ):
            yield found

    @contextlib.contextmanager
    def headers(self) -> Iterator[Path]:
        """A folder with config.json at least."""
        pinned, answer = self._look_up()
        folder = self._cached().checkpoint(pinned)
        if is_download(folder):
            self._note_cached(pinned, answer)
            yield folder
            return
        if isinstance(answer, HubError):
            raise answer
        with tempfile.TemporaryDirectory(prefix="pocketlm-") as temporary:
            download_config(Hub(say=say), answer, Path(temporary))
            yield Path(temporary)

    def _cached(self) -> Repository:
        """To look into; not necessarily writable."""
        return Repository(cache_folder() or store.writable_root(), self.name)

    def _look_up(self) -> tuple[Pinned, Snapshot | HubError]:
        """What the revision means, and what the hub has of it, or why it was not asked or heard.

        What it meant last time goes on being used while the hub cannot be asked.
        """
        repository = self._cached()
        known = repository.pinned(self.revision)
        if self._is_offline():
            error = offline_error(self.name, self.revision)
            if known is None:
                raise error
            return known, error
        usable = known and any(not folder.name.startswith(".") for folder in repository.kept())
        try:
            hub = Hub(attempts=1 if usable else ATTEMPTS, say=say)
            snapshot = hub.snapshot(self.name, self.revision)
        except HubError as error:
            if known is None:
                raise
            return known, error
        pinned = Pinned(snapshot.commit, store.checkpoint_id(relevant_files(snapshot)))
        if pinned != known:
            repository.pin(self.revision, pinned)
        return pinned, snapshot

    def _is_offline(self) -> bool:
        return self.options.offline or offline_by_environment()

    def _note_cached(self, pinned: Pinned, answer: Snapshot | HubError) -> None:
        if isinstance(answer, HubError) and not self._is_offline():
            say(f"{answer}; using what is in the cache, of commit {pinned.commit[:12]}")

    @contextlib.contextmanager
    def _downloaded(
        self,
        repository: Repository,
        pinned: Pinned,
        answer: Snapshot | HubError,
        precision: str | None = None,
        for_torch: bool = False,
    ) -> Iterator[tuple[Path, dict[str, str]]]:
        """The complete download and its origin; the repository's lock must be held.

        With ``precision`` a model in it is to be made on the same disk.
        """
        folder = repository.checkpoint(pinned, for_torch)
        if is_download(folder):
            self._note_cached(pinned, answer)
        elif isinstance(answer, HubError):
            raise answer
        else:
            if not for_torch:
                self._check_ahead(folder, answer, precision)
            discard(folder)
            heard = self.options.on_download
            download(Hub(say=say), answer, folder, for_torch=for_torch, on_download=heard)
        if self.options.keep_download:
            (folder / store.KEEP).touch()
        yield folder, {"repository": self.name, "commit": pinned.commit}
        if not (folder / store.KEEP).exists():
            discard(folder)

    def _check_ahead(self, folder: Path, snapshot: Snapshot, precision: str | None) -> None:
        """Refuses, before the weights are fetched, what cannot be exported or has no room."""
        with tempfile.TemporaryDirectory(prefix="pocketlm-") as temporary:
            download_config(Hub(say=say), snapshot, Path(temporary))
            planned = precision or FULL
            plan = _exporting().plan_checkpoint(temporary, folder, planned, timed=False)
        needed = max(0, plan.bytes_to_read - held_bytes(folder))
        needed += plan.bytes_needed if precision else 0
        if needed > plan.bytes_free:
            raise StorageError(
                f"{self.name}: found {size_text(plan.bytes_free)} free in {folder.parent}, "
                f"expected {size_text(needed)} for its download"
                f"{' and the model' if precision else ''}; free some space, or name another place "
                "in POCKETLM_CACHE"
            )


def _waiting_for(name: str) -> Callable[[str], None]:
    return lambda holder: say(f"waiting for {holder}, which is making {name}")


def _export(
    opened: Checkpoint, out: Path, precision: str, on_export: OnExport | None
) -> ModelFolder:
    """Exports to ``out``, in place of what is damaged there: nobody but this cache wrote it."""
    options = on_export(out) if on_export else {}
    replacing = (out / MANIFEST).is_file()
    if not replacing:
        shutil.rmtree(out, ignore_errors=True)
    try:
        made: ModelFolder = _exporting().export_checkpoint(
            opened, out, precision, force=replacing, **options
        )
        return made
    except (ModelFolderError, StorageError):
        # Where locks do not hold, another process may have finished the same in the meantime.
        if found := sound_model(out):
            return found
        raise


def _exporting() -> ModuleType:
    """Imported only for an export: what it needs is an extra, and takes time and memory."""
    try:
        import pocketlm.quantize.run
    except ImportError as error:
        if isinstance(error, PocketLMError):
            raise
        raise missing_extra("export", "exporting a checkpoint", error) from error
    return pocketlm.quantize.run


def _key(files: list[Path], *others: str) -> str:
    """Changes with the checkpoint's files, the precision and the version of pocketlm."""
    parts = [__version__, *others]
    for file in files:
        status = file.stat()
        parts += [str(file.resolve()), str(status.st_size), str(status.st_mtime_ns)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _open_tokenizer(tokenizer: str | Path) -> TokenizerSource:
    return open_tokenizer(Path(tokenizer).absolute())
