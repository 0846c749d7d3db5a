"""Exports a checkpoint once, and finds the result in the cache folder from then on.

The checkpoint is one on this disk, the demo, or a repository on the hub, which is downloaded first.
Of the processes that ask for the same model at the same time one makes it, and the others wait.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pocketlm.export.cache_folder import cache_folder
from pocketlm.export.checkpoint import Checkpoint, open_checkpoint
from pocketlm.export.download import download, download_config, held_bytes
from pocketlm.export.errors import (
    HubError,
    ModelFolderError,
    RequestError,
    StorageError,
)
from pocketlm.export.folder import ModelFolder
from pocketlm.export.hub import (
    ATTEMPTS,
    DEFAULT_REVISION,
    Hub,
    Snapshot,
    offline_by_environment,
    offline_error,
)
from pocketlm.export.hub_selection import relevant_files
from pocketlm.export.importing import importing
from pocketlm.export.lock import locked
from pocketlm.export.observer import SILENT, Observer
from pocketlm.export.quantities import size_text
from pocketlm.export.tokenizers import (
    TokenizerSource,
    find_tokenizer,
    given_tokenizer,
    open_tokenizer,
)
from pocketlm.models import store
from pocketlm.models.local import (
    DEFAULT_PRECISION,
    LocalModel,
    demo_checkpoint,
    demo_model,
    lock_file,
    model_key,
    sound_model,
)
from pocketlm.models.reference import Demo, OnDisk, OnHub, Reference, nothing_here
from pocketlm.models.store import PRECISION_NAMES, Pinned, Repository, discard, is_download
from pocketlm.quantize.precisions import FULL

if TYPE_CHECKING:
    from pocketlm.export.lora.adapter import Adapter


@dataclass(frozen=True)
class HubOptions:
    """How a checkpoint is fetched from the hub, and made ready."""

    revision: str | None = None  # branch, tag or commit; None: "main"
    offline: bool = False
    keep_download: bool = False  # also after the export
    adapters: tuple[Adapter, ...] = ()  # merged into the checkpoint
    observer: Observer = SILENT
    tokenizer_given: bool = False  # so that it does not matter what the repository's is like


def export_once(
    reference: Reference,
    precision: str | None,
    tokenizer: str | Path | None,
    options: HubOptions,
) -> ModelFolder:
    """The model folder of the checkpoint ``reference`` in ``precision``, exported if need be.

    Without a writable cache folder it goes to a temporary folder that is removed at exit.
    """
    if isinstance(reference, OnHub):
        options = replace(options, tokenizer_given=tokenizer is not None)
        return _Wanted.of(reference, options).model(precision, tokenizer)
    path = checkpoint_path(reference)
    opened = open_checkpoint(path, tokenizer)
    precision = precision or DEFAULT_PRECISION
    if isinstance(reference, Demo) and tokenizer is None and not options.adapters:
        made = demo_model(precision)
    else:
        made = _local_model(path, reference, opened, precision, options)
    cache = cache_folder()
    if cache is not None and (found := made.find(cache)):
        return found
    root = store.writable_root(options.observer.note)
    with locked(made.lock(root), _waiting_for(made.name, options.observer)):
        if found := made.find(root):
            return found
        opened = _with_adapters(opened, options)
        folder = _export(opened, made.place(root), precision, options.observer)
        made.note(folder.path)
        return folder


def import_once(
    path: Path,
    precision: str | None,
    tokenizer: str | Path | None,
    observer: Observer,
) -> ModelFolder:
    """The model folder of another runtime's at ``path``, made from its graph if need be.

    Without ``precision`` in the one that it comes in.
    """
    with _exporting():
        from pocketlm.export.foreign.folder import open_foreign
        from pocketlm.export.foreign.opened import foreign_decoder, with_first_load
        from pocketlm.export.writing import export_model
        from pocketlm.quantize.run import precision_of
    folder = open_foreign(path)
    source = given_tokenizer(tokenizer, folder.path)
    files = [*folder.files, *(source.files if source else ())]
    key = model_key(files, "foreign", precision or "")

    def found(root: Path | None) -> ModelFolder | None:
        named = (LocalModel(folder.path.name, name, key, path) for name in names)
        return next((model for each in named if root and (model := each.find(root))), None)

    names = (precision,) if precision else PRECISION_NAMES
    if made := found(cache_folder()):
        return made
    root = store.writable_root(observer.note)
    with locked(lock_file(root, f"foreign-{key}"), _waiting_for(folder.path.name, observer)):
        if made := found(root):
            return made
        decoder = foreign_decoder(folder, tokenizer)
        change = None if precision in (None, FULL) else precision_of(precision or FULL)
        checked = with_first_load(decoder, change, precision)
        place = LocalModel(folder.path.name, checked.name, key, path)
        out = place.place(root)
        if out.exists():
            discard(out)  # damaged, or ``found`` had taken it
        model = export_model(decoder, out, checked, observer=observer)
        place.note(model.path)
        return model


def _local_model(
    path: Path, reference: Demo | OnDisk, opened: Checkpoint, precision: str, options: HubOptions
) -> LocalModel:
    files = [*opened.files, *(opened.tokenizer.files if opened.tokenizer else ())]
    files += _adapter_files(options)
    settings = json.dumps(opened.generation_config, sort_keys=True)
    others = (precision, settings, *_weights(options))
    key = model_key(files, *others, with_times=not _is_carried(reference, path))
    name = (path.stem if path.is_file() else path.name).lstrip(".") or "model"
    return LocalModel(name, precision, key, None if isinstance(reference, Demo) else path)


@contextlib.contextmanager
def opened_checkpoint(
    reference: Reference, tokenizer: str | Path | None, options: HubOptions
) -> Iterator[Checkpoint]:
    """The checkpoint on this disk, the demo, or the hub's repository, downloaded if need be.

    When the block ends well, a download goes unless it is to be kept. Raises as ``load``.
    """
    options = replace(options, tokenizer_given=tokenizer is not None)
    with checkpoint_folder(reference, options) as (folder, origin):
        opened = replace(open_checkpoint(folder, tokenizer), origin=origin)
        yield _with_adapters(opened, options)


@contextlib.contextmanager
def checkpoint_folder(
    reference: Reference, options: HubOptions, *, for_torch: bool = False
) -> Iterator[tuple[Path, dict[str, str]]]:
    """The folder of ``opened_checkpoint``, unopened, and its repository and commit if it has any.

    ``for_torch`` brings what transformers loads: see ``export.download``.
    """
    if isinstance(reference, OnHub):
        with _Wanted.of(reference, options).checkpoint(for_torch) as found:
            yield found
    else:
        yield checkpoint_path(reference), {}


@contextlib.contextmanager
def headers_folder(reference: Reference, options: HubOptions) -> Iterator[Path]:
    """A folder to plan an export from: of a repository on the hub no more than config.json."""
    if isinstance(reference, OnHub):
        with _Wanted.of(reference, options).headers() as folder:
            yield folder
    else:
        yield checkpoint_path(reference)


def checkpoint_path(reference: Demo | OnDisk) -> Path:
    """Where a checkpoint is that need not be downloaded, absolute."""
    if isinstance(reference, Demo):
        return demo_checkpoint()
    path = reference.path.absolute()
    return path.resolve() if ".." in path.parts else path


def _is_carried(reference: Reference, path: Path) -> bool:
    """Whether ``path`` came with the program, so that its times are those of an installation.

    A frozen application in one file even unpacks what it carries at every start.
    """
    unpacked = getattr(sys, "_MEIPASS", None)
    return isinstance(reference, Demo) or (unpacked is not None and path.is_relative_to(unpacked))


@dataclass(frozen=True)
class _Wanted:
    """A repository on the hub at a revision."""

    name: str
    revision: str
    options: HubOptions

    @classmethod
    def of(cls, reference: OnHub, options: HubOptions) -> _Wanted:
        """RequestError when name and options ask for different revisions."""
        revision = reference.revision
        if revision is not None and options.revision not in (None, revision):
            raise RequestError(
                f"revision is {revision!r} in the name and {options.revision!r:.100}, expected "
                "one; leave one of them out"
            )
        chosen = options.revision or revision or DEFAULT_REVISION
        return cls(reference.repository, chosen, options)

    def model(self, precision: str | None, tokenizer: str | Path | None) -> ModelFolder:
        """Its model folder; without ``precision`` the one that is in the cache, else int8."""
        files = [] if tokenizer is None else [*_open_tokenizer(tokenizer).files]
        others = model_key([*files, *_adapter_files(self.options)], *_weights(self.options))
        pinned, answer = self._look_up()
        key = hashlib.sha256(f"{pinned.checkpoint_id}\0{others}".encode()).hexdigest()[:16]
        if found := self._cached().find_model(precision, DEFAULT_PRECISION, key):
            self._note_cached(pinned, answer)
            return found
        precision = precision or DEFAULT_PRECISION
        repository = Repository(store.writable_root(self.options.observer.note), self.name)
        out = repository.model(precision, key)
        with locked(repository.lock, _waiting_for(self.name, self.options.observer)):
            if found := sound_model(out):
                return found
            with self._downloaded(repository, pinned, answer, precision) as (folder, origin):
                opened = replace(open_checkpoint(folder, tokenizer), origin=origin)
                opened = _with_adapters(opened, self.options)
                return _export(opened, out, precision, self.options.observer)

    @contextlib.contextmanager
    def checkpoint(self, for_torch: bool) -> Iterator[tuple[Path, dict[str, str]]]:
        """Its checkpoint's folder, which goes after the block unless it is to be kept."""
        pinned, answer = self._look_up()
        repository = Repository(store.writable_root(self.options.observer.note), self.name)
        with (
            locked(repository.lock, _waiting_for(self.name, self.options.observer)),
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
            download_config(Hub(say=self.options.observer.note), answer, Path(temporary))
            yield Path(temporary)

    def _cached(self) -> Repository:
        """To look into; not necessarily writable."""
        return Repository(
            cache_folder() or store.writable_root(self.options.observer.note), self.name
        )

    def _look_up(self) -> tuple[Pinned, Snapshot | HubError]:
        """What the revision means, and what the hub has of it, or why it was not asked or heard.

        What it meant last time goes on being used while the hub cannot be asked.
        """
        repository = self._cached()
        known = repository.pinned(self.revision)
        if self._is_offline():
            error = offline_error(self.name, self.revision)
            if known is None:
                raise self._unknown(error)
            return known, error
        usable = known and any(not folder.name.startswith(".") for folder in repository.kept())
        try:
            hub = Hub(attempts=1 if usable else ATTEMPTS, say=self.options.observer.note)
            snapshot = hub.snapshot(self.name, self.revision)
        except HubError as error:
            if known is None:
                raise self._unknown(error) from error
            return known, error
        pinned = Pinned(snapshot.commit, store.checkpoint_id(relevant_files(snapshot)))
        if pinned != known:
            repository.pin(self.revision, pinned)
        return pinned, snapshot

    def _unknown(self, error: HubError) -> HubError:
        """A name that only was not found on this disk may have been a path."""
        return HubError(f"{error}; {nothing_here(self.name)}")

    def _is_offline(self) -> bool:
        return self.options.offline or offline_by_environment()

    def _note_cached(self, pinned: Pinned, answer: Snapshot | HubError) -> None:
        if isinstance(answer, HubError) and not self._is_offline():
            self.options.observer.note(
                f"{answer}; using what is in the cache, of commit {pinned.commit[:12]}"
            )

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
        if damaged := store.damaged_download(folder):
            problem = f"{self.name}: found {folder / damaged} changed since it was downloaded"
            if isinstance(answer, HubError):
                raise HubError(f"{problem}, expected what the hub listed; use the network once")
            self.options.observer.note(f"{problem}; downloading it again")
            discard(folder)
        if is_download(folder):
            self._note_cached(pinned, answer)
        elif isinstance(answer, HubError):
            raise answer
        else:
            if not for_torch:
                self._check_ahead(folder, answer, precision)
            discard(folder)
            download(
                Hub(say=self.options.observer.note),
                answer,
                folder,
                for_torch=for_torch,
                observer=self.options.observer,
                check=self._check_tokenizer if for_torch else self._check_small_files,
            )
        if self.options.keep_download:
            (folder / store.KEEP).touch()
        yield folder, {"repository": self.name, "commit": pinned.commit}
        if not (folder / store.KEEP).exists():
            discard(folder)

    def _check_tokenizer(self, folder: Path) -> None:
        """Refuses, before the weights are fetched, a tokenizer that cannot be run."""
        found = None if self.options.tokenizer_given else find_tokenizer(folder)
        if found is not None:
            from pocketlm.export.tokenizers.opening import open_source

            open_source(found)

    def _check_small_files(self, folder: Path) -> None:
        """Refuses, before the weights are fetched, what can be told without them."""
        with _exporting():
            from pocketlm.export.plan import open_without_weights
            from pocketlm.export.writing import build_decoder, require_tokenizer
        opened = open_without_weights(folder)
        if self.options.tokenizer_given:
            opened = replace(opened, tokenizer=None)
        else:
            require_tokenizer(opened)
        build_decoder(opened)

    def _check_ahead(self, folder: Path, snapshot: Snapshot, precision: str | None) -> None:
        """Refuses, before the weights are fetched, what cannot be exported or has no room."""
        with tempfile.TemporaryDirectory(prefix="pocketlm-") as temporary:
            download_config(Hub(say=self.options.observer.note), snapshot, Path(temporary))
            with _exporting():
                from pocketlm.export.plan import open_headers
                from pocketlm.export.writing import plan_export
                from pocketlm.quantize.run import precision_of
            change = precision_of(precision or FULL)
            silent = replace(self.options, observer=SILENT)
            opened = _with_adapters(open_headers(temporary), silent)
            plan = plan_export(opened, folder, change, timed=False)
        needed = max(0, plan.bytes_to_read - held_bytes(folder))
        needed += plan.bytes_needed if precision else 0
        if needed > plan.bytes_free:
            raise StorageError(
                f"{self.name}: found {size_text(plan.bytes_free)} free in {folder.parent}, "
                f"expected {size_text(needed)} for its download"
                f"{' and the model' if precision else ''}; free some space, or name another place "
                "in POCKETLM_CACHE"
            )


def _waiting_for(name: str, observer: Observer) -> Callable[[str], None]:
    return lambda holder: observer.note(f"waiting for {holder}, which is making {name}")


def _export(opened: Checkpoint, out: Path, precision: str, observer: Observer) -> ModelFolder:
    """Exports to ``out``, in place of what is damaged there: nobody but this cache wrote it."""
    # Where locks do not hold, another process may finish the same at any time: what appears after
    # this line is not what is damaged.
    damaged = out.exists()
    if found := sound_model(out):
        return found
    if damaged:
        discard(out)
    with _exporting():
        from pocketlm.export.writing import export_model
        from pocketlm.quantize.run import precision_of
    try:
        return export_model(opened, out, precision_of(precision), observer=observer)
    except (ModelFolderError, StorageError):
        if found := sound_model(out):
            return found
        raise


def _with_adapters(opened: Checkpoint, options: HubOptions) -> Checkpoint:
    if not options.adapters:
        return opened
    with _exporting():
        from pocketlm.export.lora.merging import merged
    return merged(opened, options.adapters, options.observer.message)


def _adapter_files(options: HubOptions) -> list[Path]:
    return [file for adapter in options.adapters for file in adapter.files]


def _weights(options: HubOptions) -> list[str]:
    return [f"adapter {adapter.weight!r}" for adapter in options.adapters]


def _exporting() -> AbstractContextManager[None]:
    """Around imports that only an export makes: they need an extra, time and memory."""
    return importing("exporting a checkpoint", "export")


def _open_tokenizer(tokenizer: str | Path) -> TokenizerSource:
    return open_tokenizer(Path(tokenizer).absolute())
