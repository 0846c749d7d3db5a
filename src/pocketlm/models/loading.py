"""``load``: what a name means, made if need be, is opened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketlm.export.cache_folder import cache_folder
from pocketlm.export.errors import ModelFolderError, RequestError
from pocketlm.export.folder import ModelFolder
from pocketlm.export.observer import SILENT, Observer
from pocketlm.models.local import carried_demo, demo_model
from pocketlm.models.reference import (
    Demo,
    OnDisk,
    check_options,
    find_reference,
    foreign_path,
)
from pocketlm.runtime.model import Model

if TYPE_CHECKING:
    from pocketlm.export.lora.adapter import Adapter
    from pocketlm.export.lora.asked import AskedAdapter

OnProgress = Callable[[str, int, int], object]  # what is under way, done, total
OPENING = ("threads", "provider", "kv", "prefill", "prefix_cache_bytes")  # options of ``Model``


def load(
    path: str | Path | None = None,
    *,
    precision: str | None = None,
    threads: int | None = None,
    provider: str = "auto",
    kv: str = "auto",
    prefill: str = "auto",
    tokenizer: str | Path | None = None,
    revision: str | None = None,
    offline: bool = False,
    keep_download: bool = False,
    prefix_cache_bytes: int | None = None,
    adapters: Sequence[str | Path] | None = None,
    allow_foreign: bool = False,
    observer: Observer = SILENT,
) -> Model:
    """Opens a model folder, or a checkpoint after exporting it; without ``path``, the demo model.

    ``path`` may also be "demo", or a name on the hub, see below; what exists on this disk comes
    first, and a ``pathlib.Path`` is never anything else.

    A checkpoint is exported once to the cache folder with ``precision`` ("fp32", "int8",
    "int8-weight" or "int4"; "int8" unless given) and opened from there the next time; that needs
    the extra "export". ``threads`` None means the cores this process may use. ``provider`` is
    "cpu", "cuda" (needs the extra "cuda") or "auto": CUDA where it can be had, else the CPU, with
    a FallbackWarning if ONNX Runtime is built for CUDA. ``kv`` is what the KV cache holds, "fp32",
    "int8" (a quarter of the memory, faster on long texts; needs a folder with a graph for it, and
    the CPU), or "auto", which is fp32: int8 reads prompts slower unless
    the folder has a second set of weights for them. ``prefill`` is which weights
    compute prompts and many rows: "int8", the second set that ``pocketlm export --prefill int8``
    writes, opened by the first step of 64 tokens and closed after a minute without one; "none",
    those that generate; "auto" takes "int8" where the model has it and memory is free for it
    (``model.session.prefill`` says which it is). ``prefix_cache_bytes`` is what
    prompts that were computed may take in memory, so that what begins as one of them is not
    computed again; 0 keeps none, None up to 256 MB. ``adapters`` are folders of LoRA adapters,
    each with a weight behind a colon or none ("lora/:0.5"), that are merged into a checkpoint
    before it is exported. ``allow_foreign`` takes the
    ONNX graph of another runtime (onnxruntime-genai, transformers.js, optimum), by its model folder
    or its file: it is checked, copied to the cache as a model folder, and first run by a child
    process (docs/interop.md). ``observer`` is told of what is
    downloaded and exported, and how far that is: see ``Observer``.

    A string that is no path here and reads org/name (or org/name@revision) is a repository on the
    hub: its ``revision`` (a branch, tag or commit; "main" unless given) is looked up, and what the
    cache lacks is downloaded and exported; that needs the extra "hub". Without ``precision`` it is
    the one in the cache, else "int8". ``offline`` never touches the network. A download is removed
    after its export unless ``keep_download``.

    An option that would do nothing is refused: ``tokenizer`` and ``adapters`` with a model folder,
    ``revision`` and ``keep_download`` with what is not on the hub, another ``precision`` than a
    model folder's.

    Raises ModelFolderError, CheckpointError, StorageError, RequestError, ProviderError,
    HubError or MissingExtraError.
    """
    folder = find_folder(
        path,
        precision=precision,
        tokenizer=tokenizer,
        revision=revision,
        offline=offline,
        keep_download=keep_download,
        adapters=adapters,
        allow_foreign=allow_foreign,
        observer=observer,
    )
    return Model(folder, threads, provider, kv, prefix_cache_bytes, prefill)


async def load_async(
    path: str | Path | None = None,
    *,
    on_progress: OnProgress = lambda stage, done, total: None,
    **options: Any,
) -> Model:
    """``load`` while the event loop goes on: in a thread, with the options and errors of ``load``.

    ``on_progress`` is called in the loop's thread with what is under way ("download", "export" or
    "open"), and how much of it is done: bytes, or 0 and 1 of "open".

        model = await pocketlm.load_async("gpt2-int4/", on_progress=print)

    Python's other threads wait while the tokenizers library reads a tokenizer: 0.05 s for 50,000
    tokens, 0.3 s for 128,000. An ``observer`` may be given instead; its calls come from the thread
    that loads.
    """
    import asyncio

    loop = asyncio.get_running_loop()

    def tell(stage: str, done: int, total: int) -> None:
        loop.call_soon_threadsafe(on_progress, stage, done, total)

    def open_it() -> Model:
        observer = options.pop("observer", None) or Observer(
            progress=partial(tell, "export"),
            download=lambda repository, total: nullcontext(partial(tell, "download")),
        )
        chosen = {name: options.pop(name) for name in OPENING if name in options}
        folder = find_folder(path, observer=observer, **options)
        tell("open", 0, 1)
        model = Model(folder, **chosen)
        tell("open", 1, 1)
        return model

    return await asyncio.to_thread(open_it)


def find_folder(
    path: str | Path | None = None,
    *,
    precision: str | None = None,
    tokenizer: str | Path | None = None,
    revision: str | None = None,
    offline: bool = False,
    keep_download: bool = False,
    adapters: Sequence[str | Path] | None = None,
    allow_foreign: bool = False,
    observer: Observer = SILENT,
) -> ModelFolder:
    """The model folder that ``load`` opens, exported if need be; raises what ``load`` raises."""
    asked = () if adapters is None else _asked(adapters)
    reference = find_reference(path)
    given = {"tokenizer": tokenizer, "revision": revision, "keep_download": keep_download}
    given["adapters"] = ", ".join(str(adapter.folder) for adapter in asked) or None
    check_options(reference, given | {"allow_foreign": allow_foreign})
    if precision is not None:
        _check_precision(precision)
    if allow_foreign:
        from pocketlm.models.making import import_once

        return import_once(foreign_path(reference).absolute(), precision, tokenizer, observer)
    if isinstance(reference, OnDisk) and reference.is_made:
        folder = ModelFolder.open(reference.path)
        found = folder.manifest.precision.name
        if precision not in (None, found):
            raise ModelFolderError(
                f"{path}: found a model folder in {found}, expected {precision}; leave precision "
                "out, or make another folder with: pocketlm quantize"
            )
        return folder
    if isinstance(reference, Demo) and tokenizer is None and not asked:
        if carried := carried_demo(precision):
            return carried
        cache = cache_folder()
        if cache is not None and (made := demo_model(precision).find(cache)):
            return made
    # Not above: what makes a model takes as long to import as a small one to open.
    from pocketlm.models.making import HubOptions, export_once

    options = HubOptions(revision, offline, keep_download, _opened(asked), observer)
    return export_once(reference, precision, tokenizer, options)


def _asked(adapters: Sequence[str | Path]) -> Sequence[AskedAdapter]:
    from pocketlm.export.lora.asked import asked_adapters

    return asked_adapters(adapters)


def _opened(asked: Sequence[AskedAdapter]) -> tuple[Adapter, ...]:
    if not asked:
        return ()
    from pocketlm.export.lora.adapter import open_adapter

    return tuple(map(open_adapter, asked))


def _check_precision(precision: str) -> None:
    from pocketlm.quantize.precisions import PRECISIONS

    if precision not in PRECISIONS:
        raise RequestError(f"precision is {precision!r}, expected one of {', '.join(PRECISIONS)}")
