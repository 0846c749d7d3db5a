"""The one verb that writes a model: a checkpoint or an fp32 folder becomes a model folder.

    export_model(open_checkpoint("gpt2"), "out")

A ``Change`` may give the graph other number formats on the way (``pocketlm.quantize.run`` makes
them), so that a quantized folder is written in one pass over the checkpoint and no tensor is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import onnx_ir as ir

from .architectures import find_architecture
from .checkpoint import Checkpoint
from .errors import CheckpointError, RequestError
from .external_data import adopt_weights, plan_files, stored_weights, weights_of, write_weights
from .folder import (
    MANIFEST,
    MINIMUM_ONNXRUNTIME,
    DecoderShape,
    ModelFolder,
    describe_files,
)
from .folder_tokenizer import read_tokenizer
from .genai import genai_config
from .generation_defaults import generation_defaults
from .graph_check.graph import check_graph, inspect
from .graph_check.onnx_file import GraphRefused
from .manifest import (
    DATA_FILE,
    DECODER,
    FLOAT32,
    GRAPH_FILES,
    GROWING,
    IN_PLACE,
    PREFILL_DATA_FILE,
    PREFILL_DECODER,
    CacheKind,
    GraphEntry,
    Manifest,
    PrecisionEntry,
    Source,
    Tracing,
)
from .manifest_file import manifest_bytes
from .memory import memory_errors
from .observer import SILENT, Observer
from .plan import HEADERS_FORMAT, ExportPlan, Forecast, predicted_peak, predicted_seconds
from .publishing import (
    check_free_space,
    free_space,
    publishing,
    storage_errors,
    target_of,
    write_json,
)
from .stored_head import with_stored_head
from .strict_json import LARGEST_CONFIG, load_json_object
from .threads import default_threads
from .tokenizers import TokenizerSource, open_tokenizer

# What transformers.js is told by config.json: model.onnx it is, whatever a browser would take, and
# the weights lie beside it in one file.
TRANSFORMERS_JS = {"transformers.js_config": {"dtype": "fp32", "use_external_data_format": True}}
OTHER_FILES = 4_000_000  # bytes: graph, configs and manifest together, generously


class Change(Protocol):
    """Passes that give a graph other number formats, and what the manifest says of it."""

    def prepared(
        self, declare: Callable[[], Decoder] | None, observer: Observer
    ) -> AbstractContextManager[None]:
        """Measures what the passes need; ``declare`` gives the model anew, None: there is but one.

        The model is written while the context is open.
        """

    def forecast(self, model: ir.Model) -> Forecast | None:
        """What ``prepared`` will take for ``model``, None for nothing worth telling."""

    def apply(self, model: ir.Model) -> None:
        """Rewrites ``model`` in place; weights stay lazy."""

    @property
    def prefill(self) -> ir.Model | None:
        """A second graph for many tokens at a time, once ``apply`` was called; None for none.

        What it shares with the model that was rewritten is not stored again.
        """

    def finish(self, folder: ModelFolder) -> None:
        """May add to the complete folder, which has no name yet, and can be opened."""

    @property
    def name(self) -> str:
        """Of the precision; known once it has been applied."""

    def describe(self, num_parameters: int) -> PrecisionEntry:
        """The manifest's ``precision`` of that many parameters; complete once they are written."""


class Unchanged:
    """Leaves the graph as the architecture declared it."""

    name = "fp32"
    prefill = None

    def prepared(
        self, declare: Callable[[], Decoder] | None, observer: Observer
    ) -> AbstractContextManager[None]:
        """Needs nothing."""
        return nullcontext()

    def forecast(self, model: ir.Model) -> Forecast | None:
        """Measures nothing."""
        return None

    def apply(self, model: ir.Model) -> None:
        """Changes nothing."""

    def finish(self, folder: ModelFolder) -> None:
        """Has nothing to add."""

    def describe(self, num_parameters: int) -> PrecisionEntry:
        """The manifest entry of an fp32 folder."""
        return PrecisionEntry(name=self.name)


@dataclass(frozen=True)
class Decoder:
    """A graph ready to be written, and what belongs beside it in the folder."""

    model: ir.Model
    shape: DecoderShape
    num_tensors: int
    num_parameters: int
    architecture: str
    source: Callable[[], Source]
    bytes_to_read: int
    config: dict[str, Any]
    generation_config: dict[str, Any]
    tokenizer_files: dict[str, bytes]  # by name; none in a plan only
    cache: CacheKind = CacheKind(layout=IN_PLACE, dtype=FLOAT32)
    traced: Tracing | None = None  # None where it is declared
    adapters: tuple[str, ...] = ()  # merged into it
    notes: tuple[str, ...] = ()  # lines that a person should read
    quantized: tuple[str, ...] = ()  # see ``Checkpoint``


def export_model(
    source: Checkpoint | ModelFolder | Decoder,
    out: str | PathLike[str],
    change: Change | None = None,
    *,
    force: bool = False,
    observer: Observer = SILENT,
) -> ModelFolder:
    """Writes ``source`` as a model folder at ``out``, whole or not at all; it stays as it is.

    ``out`` may be a ``Target``, which remembers what was there before the source was opened;
    otherwise ``force`` lets it replace a model folder. ``change`` None leaves the weights in
    float32. Raises CheckpointError, StorageError, ModelFolderError when ``out`` is taken,
    RequestError for a folder that is quantized already, and what ``change`` raises.
    """
    target = target_of(out, force)
    change = change or Unchanged()
    declare = partial(_decoder, source) if _is_declared(source) else None
    with change.prepared(declare, observer):
        decoder = _decoder(source)
        change.apply(decoder.model)
        _check_prefill(decoder, change)
        with publishing(target) as folder:
            plan = _plan(decoder, target, change)
            check_free_space(target, plan.bytes_needed)
            for note in decoder.notes:
                observer.message(note)
            observer.plan(plan)
            short = memory_errors(f"{plan.out}: writing it", plan.peak_memory_bytes)
            with storage_errors(plan.out), short:
                _write(decoder, folder, plan, change, observer)
    return ModelFolder.open(plan.out)


def plan_export(
    checkpoint: Checkpoint,
    out: str | PathLike[str],
    change: Change | None = None,
    *,
    timed: bool = True,
) -> ExportPlan:
    """What ``export_model`` would do with the same arguments; writes nothing.

    A checkpoint from ``open_headers`` will do. Without ``timed`` the seconds are not predicted,
    which takes some itself. Raises as ``export_model``.
    """
    decoder = build_decoder(checkpoint)
    if checkpoint.format != HEADERS_FORMAT:  # from the hub comes config.json alone
        require_tokenizer(checkpoint)
    change = change or Unchanged()
    calibration = change.forecast(decoder.model) if timed else None
    change.apply(decoder.model)
    plan = _plan(decoder, out, change)
    if not timed:
        return plan
    models = [*_files(decoder, change).values()]
    seconds = predicted_seconds(models, plan.bytes_to_read, plan.bytes_to_write)
    return replace(plan, seconds=seconds, calibration=calibration)


def _is_declared(source: Checkpoint | ModelFolder | Decoder) -> bool:
    """Whether ``_decoder`` gives a new model every time, of a graph that we declare."""
    if isinstance(source, ModelFolder):
        return source.graph().traced is None
    return isinstance(source, Checkpoint)


def _decoder(source: Checkpoint | ModelFolder | Decoder) -> Decoder:
    """The float32 model of ``source`` with lazy weights, a new one unless it is one."""
    if isinstance(source, Decoder):
        return source
    if isinstance(source, ModelFolder):
        return _full_decoder(source)
    decoder = build_decoder(source)
    require_tokenizer(source)
    return decoder


def _full_decoder(folder: ModelFolder) -> Decoder:
    """The graph of a folder whose bytes have been verified; RequestError if it is quantized."""
    precision = folder.manifest.precision
    if precision.report is not None or precision.name != Unchanged.name:
        raise RequestError(
            f"{folder.path}: found a model in {precision.name}, expected {Unchanged.name}; "
            "quantizing twice loses more than once - export the checkpoint in the precision you "
            "want"
        )
    folder.verify()
    return open_decoder(folder)


def build_decoder(checkpoint: Checkpoint) -> Decoder:
    """The graph of ``checkpoint``, declared by its architecture, with lazy weights."""
    architecture = find_architecture(checkpoint.config)
    checkpoint, head_notes = with_stored_head(architecture, checkpoint)
    model, shape = architecture.build(checkpoint)
    defaults, defaults_notes = generation_defaults(checkpoint, shape.vocab_size)
    files, tokenizer_notes = read_tokenizer(checkpoint.tokenizer, shape.vocab_size)
    return Decoder(
        model=model,
        shape=shape,
        num_tensors=len(checkpoint.tensors),
        num_parameters=count_parameters(model),
        architecture=str(checkpoint.config["model_type"]),
        source=checkpoint.source,
        bytes_to_read=sum(
            tensor.num_bytes
            for tensor in checkpoint.tensors.values()
            if architecture.bare(tensor.name) is not None
        ),
        config=checkpoint.config,
        generation_config=defaults,
        tokenizer_files=files,
        adapters=tuple(f"{each.name}:{each.weight:g}" for each in checkpoint.adapters),
        quantized=checkpoint.quantized,
        notes=(*head_notes, *defaults_notes, *tokenizer_notes),
    )


def open_decoder(folder: ModelFolder) -> Decoder:
    """The graph of an existing folder with lazy weights, ready to be changed and written again.

    Raises ModelFolderError for a graph that we cannot have written.
    """
    check_graph(folder)
    model = ir.load(folder.graph_file())
    adopt_weights(model, folder.path)
    return Decoder(
        model=model,
        shape=folder.shape,
        num_tensors=len({weight.blob for weight in weights_of(model)}),
        num_parameters=folder.manifest.num_parameters,
        architecture=folder.manifest.architecture,
        source=lambda: folder.manifest.source,
        bytes_to_read=folder.weights_bytes,
        config=load_json_object(folder.path / "config.json", LARGEST_CONFIG, CheckpointError),
        generation_config=load_json_object(
            folder.path / "generation_config.json", LARGEST_CONFIG, CheckpointError
        ),
        tokenizer_files=read_tokenizer(open_tokenizer(folder.path), folder.shape.vocab_size)[0],
        cache=folder.graph().cache,
        traced=folder.graph().traced,
        quantized=folder.manifest.source.quantized or (),
    )


def _write(
    decoder: Decoder, folder: Path, plan: ExportPlan, change: Change, observer: Observer
) -> None:
    """Writes the files of ``decoder``, the manifest last."""
    with ThreadPoolExecutor(1) as beside:
        source = beside.submit(decoder.source)  # hashes what is read: leaves no core idle
        known = write_weights(_files(decoder, change), folder, observer.progress)
        graph = _write_graph(decoder, decoder.model, DECODER, folder)
        graphs = {DECODER: graph}
        if change.prefill is not None:
            graphs[PREFILL_DECODER] = _write_graph(decoder, change.prefill, PREFILL_DECODER, folder)
        write_json(folder / "config.json", decoder.config | TRANSFORMERS_JS)
        write_json(folder / "generation_config.json", decoder.generation_config)
        write_json(
            folder / "genai_config.json",
            genai_config(decoder.shape, decoder.generation_config, graph),
        )
        for name, data in decoder.tokenizer_files.items():
            (folder / name).write_bytes(data)
        manifest = Manifest(
            architecture=decoder.architecture,
            num_parameters=decoder.num_parameters,
            source=source.result(),
            decoder=decoder.shape,
            minimum_onnxruntime=MINIMUM_ONNXRUNTIME,
            graphs=graphs,
            precision=change.describe(decoder.num_parameters),
            files=describe_files(folder, known),
        )
        written = ModelFolder(folder, manifest)
        _check_written(written)
        (folder / MANIFEST).write_bytes(manifest_bytes(manifest))
    change.finish(written)


def _check_prefill(decoder: Decoder, change: Change) -> None:
    """RequestError for a second graph over a cache that cannot be shared with it."""
    if change.prefill is not None and decoder.cache.layout == GROWING:
        raise RequestError(
            "found a second set of weights asked for (in a command: --prefill) with a traced graph "
            "that makes its cache anew with every token, expected one that keeps it in place, "
            "where two graphs can share it; leave it out"
        )


def _write_graph(decoder: Decoder, model: ir.Model, name: str, folder: Path) -> GraphEntry:
    """Writes a graph whose weights are written already."""
    graph = describe_graph(model, GRAPH_FILES[name], decoder.cache, decoder.traced)
    ir.save(model, folder / graph.file)
    return graph


def _files(decoder: Decoder, change: Change) -> Mapping[str, ir.Model]:
    """The data files to write, each with the model whose weights go there."""
    second = {} if change.prefill is None else {PREFILL_DATA_FILE: change.prefill}
    return {DATA_FILE: decoder.model, **second}


def _check_written(folder: ModelFolder) -> None:
    """What is published can be opened: a traced graph may have what no rule knows."""
    try:
        for name in folder.manifest.graphs:
            inspect(folder, name)
    except GraphRefused as refused:
        raise CheckpointError(
            f"the graph of this {folder.manifest.architecture} has {refused.found}, expected "
            f"{refused.expected}; this runtime cannot run it"
        ) from refused


def _plan(decoder: Decoder, out: str | PathLike[str], change: Change) -> ExportPlan:
    files = _files(decoder, change)
    _, sizes = plan_files(files)
    weights_bytes = sum(sizes.values())
    tokenizer = sum(map(len, decoder.tokenizer_files.values()))
    return ExportPlan(
        out=Path(out),
        architecture=decoder.architecture,
        num_tensors=decoder.num_tensors,
        num_parameters=decoder.num_parameters,
        precision=change.name,
        bytes_to_read=decoder.bytes_to_read,
        bytes_to_write=weights_bytes,
        prefill_bytes=sizes.get(PREFILL_DATA_FILE, 0),
        prefill_memory_bytes=_num_bytes(change.prefill) if change.prefill is not None else 0,
        bytes_needed=weights_bytes + tokenizer + OTHER_FILES,
        bytes_free=free_space(out),
        peak_memory_bytes=predicted_peak(*files.values()),
        threads=default_threads(),
        adapters=decoder.adapters,
        notes=decoder.notes,
        quantized=decoder.quantized,
    )


def _num_bytes(model: ir.Model) -> int:
    return sum(weight.nbytes for weight in stored_weights(model))


def count_parameters(model: ir.Model) -> int:
    """Learned numbers of a model that has not been quantized; shared ones count once."""
    blobs = {weight.blob: weight.size for weight in weights_of(model) if weight.learned}
    return sum(blobs.values())


def describe_graph(
    model: ir.Model, file: str, cache: CacheKind, traced: Tracing | None = None
) -> GraphEntry:
    """The manifest's entry of a graph: types and dimensions of its inputs and outputs in words."""

    def describe(value: ir.Value) -> str:
        dims = ", ".join(str(dim) for dim in value.shape or ())
        return f"{value.dtype.name.lower() if value.dtype else '?'}[{dims}]"

    return GraphEntry(
        file=file,
        cache=cache,
        inputs={str(value.name): describe(value) for value in model.graph.inputs},
        outputs={str(value.name): describe(value) for value in model.graph.outputs},
        traced=traced,
    )


def require_tokenizer(checkpoint: Checkpoint) -> TokenizerSource:
    """The tokenizer of ``checkpoint``; CheckpointError without one."""
    if checkpoint.tokenizer is None:
        raise CheckpointError(
            f"{checkpoint.path}: found no tokenizer, expected one beside the weights; "
            "name the folder that has one as tokenizer (in a command: --tokenizer FOLDER)"
        )
    return checkpoint.tokenizer
