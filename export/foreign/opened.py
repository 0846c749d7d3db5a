"""Another runtime's model folder becomes a decoder for ``export_model``, or is refused by name.

    with_first_load(foreign_decoder(open_foreign("their-folder")))

Nothing of the folder is trusted: the graph is parsed without its weights, its operators are looked
up before anything else is done with it, its inputs and outputs must be a decoder's, and what is
written passes the check that all graphs pass before ONNX Runtime sees it, first in a child process
(``first_load``). The folder stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from ..checkpoint import Checkpoint
from ..errors import CheckpointError, RequestError
from ..folder import ModelFolder
from ..folder_tokenizer import read_tokenizer
from ..generation_defaults import generation_defaults
from ..graph import Graph, Weight
from ..graph_check.operators import TRACED
from ..manifest import FLOAT32, GROWING, IN_PLACE, CacheKind, DecoderShape, PrecisionEntry, Tracing
from ..observer import Observer
from ..plan import Forecast
from ..regular_file import RegularFile
from ..strict_json import quoted
from ..tokenizers import given_tokenizer
from ..tokenizers.opening import open_source
from ..traced.contract import read_shape
from ..traced.in_place import ATTENTION, AttendInPlace
from ..traced.simplify import LiftConstants, Simplify
from ..writing import Change, Decoder, Unchanged, require_tokenizer
from .first_load import first_load
from .folder import ForeignFolder
from .fused import is_fused, to_contract
from .weights import adopt_foreign, in_single_precision

LARGEST_FILE = 2 << 30  # bytes: protobuf has no larger ones
OPSETS = range(14, 25)
AXES_AS_INPUT = 18  # the first opset in which all reductions take their axes as an input
# What is rewritten before a graph is checked by the operators that ours may have.
REWRITTEN = {("", "Constant"), ("", "SimplifiedLayerNormalization")}
PACKED = "MatMulNBits"


def foreign_decoder(folder: ForeignFolder, tokenizer: str | Path | None = None) -> Decoder:
    """The graph of ``folder`` by our contract, with lazy weights that are read from there.

    Raises CheckpointError, which names what this runtime cannot run.
    """
    checkpoint = Checkpoint(
        path=folder.path,
        config=folder.config,
        tensors={},
        generation_config=folder.generation_config,
        format="onnx",
        files=folder.files,
        tokenizer=given_tokenizer(tokenizer, folder.path),
    )
    open_source(require_tokenizer(checkpoint))
    model = _load(folder.graph)
    made_by = " ".join(filter(None, (model.producer_name, model.producer_version)))
    check_foreign(model, folder.graph)
    constants = LiftConstants().apply(model).changed
    adopt_foreign(model, folder.graph.parent)
    for name in constants:
        tensor = model.graph.initializers[name].const_value
        if isinstance(tensor, Weight):
            tensor.learned = False
    in_single_precision(model)
    _axes_as_inputs(model)
    _name_head_size(model, folder.sizes)
    fused = is_fused(model)
    shape = _shape(model, folder)
    num_parameters = _num_parameters(model)
    reason = None
    if fused:
        to_contract(model)
    else:
        Simplify().apply(model)
        reason = AttendInPlace(shape).apply(model).skipped.get(ATTENTION)
    defaults, defaults_notes = generation_defaults(checkpoint, shape.vocab_size)
    files, tokenizer_notes = read_tokenizer(checkpoint.tokenizer, shape.vocab_size)
    return Decoder(
        model=model,
        shape=shape,
        num_tensors=len(model.graph.initializers),
        num_parameters=num_parameters,
        architecture=str(folder.config["model_type"]),
        source=checkpoint.source,
        bytes_to_read=sum(tensor.nbytes for tensor in _weights(model)),
        config=folder.config,
        generation_config=defaults,
        tokenizer_files=files,
        notes=(*defaults_notes, *tokenizer_notes),
        cache=CacheKind(layout=GROWING if reason else IN_PLACE, dtype=FLOAT32),
        traced=Tracing(made_by=made_by or "unknown", not_rewritten=reason),
    )


def check_foreign(model: ir.Model, file: Path) -> None:
    """Raises CheckpointError for what no rule here knows; reads no weight."""
    opset = model.opset_imports.get("", 0)
    if opset not in OPSETS:
        raise _refused(file, f"opset {opset}", f"{OPSETS.start} to {OPSETS.stop - 1}")
    if model.functions:
        raise _refused(file, f"{len(model.functions)} functions", "none")
    made: set[ir.Value] = set()
    for node in model.graph:
        kind = ("" if node.domain == "ai.onnx" else node.domain, node.op_type)
        attributes = {a.type for a in node.attributes.values() if isinstance(a, ir.Attr)}
        if attributes & {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}:
            raise _refused(
                file,
                f"branches ({node.op_type} in {quoted(str(node.name))}), as of a merged decoder",
                "one graph for prompts and tokens, with past_key_values",
            )
        if any(kind.name.startswith("SPARSE") for kind in attributes):
            raise _refused(file, f"a sparse tensor in {quoted(str(node.name))}", "dense ones")
        if kind not in TRACED and kind not in REWRITTEN:
            raise _refused(
                file,
                f"the operator {quoted('::'.join(filter(None, kind)))}",
                "one of those that decoders need",
            )
        for attribute in node.attributes.values():
            if isinstance(attribute, ir.Attr) and attribute.type == ir.AttributeType.TENSOR:
                if isinstance(attribute.as_tensor(), ir.ExternalTensor):
                    raise _refused(file, "a constant in another file", "weights alone there")
        if any(v is not None and v.producer() and v not in made for v in node.inputs):
            raise _refused(file, f"an input of {quoted(str(node.name))} that comes later", "none")
        made.update(node.outputs)


def precision_name(model: ir.Model) -> str:
    """What the manifest calls the number formats that the weights came in."""
    widths = {
        node.attributes["bits"].as_int() if "bits" in node.attributes else 4
        for node in model.graph
        if node.op_type == PACKED
    }
    if len(widths) > 1:
        return "mixed"
    return {4: "int4", 8: "int8-weight"}.get(next(iter(widths), 0), "mixed" if widths else "fp32")


@dataclass
class FirstLoaded:
    """A ``Change`` of another's graph: what is written is opened once, by a child process."""

    change: Change
    found: str  # the precision that it came in

    def prepared(
        self, declare: Callable[[], Decoder] | None, observer: Observer
    ) -> AbstractContextManager[None]:
        """What the change measures."""
        return self.change.prepared(declare, observer)

    def forecast(self, model: ir.Model) -> Forecast | None:
        """Of the change."""
        return self.change.forecast(model)

    def apply(self, model: ir.Model) -> None:
        """As the change does."""
        self.change.apply(model)

    @property
    def prefill(self) -> ir.Model | None:
        """The change's."""
        return self.change.prefill

    def finish(self, folder: ModelFolder) -> None:
        """Raises CheckpointError where the child ends otherwise than well: nothing is published."""
        first_load(folder)
        self.change.finish(folder)

    @property
    def name(self) -> str:
        """Of the precision."""
        return self.found if isinstance(self.change, Unchanged) else self.change.name

    def describe(self, num_parameters: int) -> PrecisionEntry:
        """The change's, under the name of what it found."""
        return replace(self.change.describe(num_parameters), name=self.name)


def with_first_load(decoder: Decoder, change: Change | None = None) -> FirstLoaded:
    """The change to export ``decoder`` with; RequestError where it is quantized already."""
    found = precision_name(decoder.model)
    if change is not None and found != Unchanged.name:
        raise RequestError(
            f"found a foreign graph in {found}, expected {Unchanged.name}; quantizing twice loses "
            "more than once - leave out what asks for a precision, or take the fp32 graph"
        )
    return FirstLoaded(change or Unchanged(), found)


# Its parts ----------------------------------------------------------------------------------------


def _load(file: Path) -> ir.Model:
    with RegularFile(file, CheckpointError) as opened:
        if opened.num_bytes() > LARGEST_FILE:
            raise _refused(file, f"{opened.num_bytes():,} bytes", f"at most {LARGEST_FILE:,}")
    try:
        return ir.load(file)
    except Exception as error:  # whatever protobuf and onnx-ir raise
        raise _refused(file, f"no graph ({error!s:.200})", "an ONNX file") from error


def _weights(model: ir.Model) -> list[Weight]:
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return [tensor for tensor in tensors if isinstance(tensor, Weight)]


def _axes_as_inputs(model: ir.Model) -> None:
    """The reductions of older opsets as in opset 18; what else decoders have is the same there."""
    if model.opset_imports[""] >= AXES_AS_INPUT:
        return
    g = Graph.editing(model)
    for node in list(model.graph):
        axes = node.attributes.get("axes")
        if node.op_type.startswith("Reduce") and axes is not None:
            del node.attributes["axes"]
            node.resize_inputs(2)
            node.replace_input_with(1, g.int64s(*axes.as_ints()))
        elif node.op_type == "Split" and len(node.inputs) < 2:
            node.attributes["num_outputs"] = ir.AttrInt64("num_outputs", len(node.outputs))
    model.graph.opset_imports[""] = AXES_AS_INPUT


def _name_head_size(model: ir.Model, sizes: dict[str, int]) -> None:
    """Its builder leaves the size of a head to the configuration."""
    for value in (*model.graph.inputs, *model.graph.outputs):
        if str(value.name).startswith(("past_key_values.", "present.")) and value.shape is not None:
            dims = list(value.shape)
            if len(dims) == 4 and not isinstance(dims[3], int) and "head_size" in sizes:
                value.shape = ir.Shape([*dims[:3], sizes["head_size"]])


def _shape(model: ir.Model, folder: ForeignFolder) -> DecoderShape:
    try:
        return read_shape(model, folder.sizes)
    except CheckpointError as error:
        raise CheckpointError(f"{folder.graph}: {error}") from error


def _num_parameters(model: ir.Model) -> int:
    """Learned numbers; those of a packed weight as many as its product has."""
    packed = {
        node.inputs[1]: math.prod(node.attributes[name].as_int() for name in ("K", "N"))
        for node in model.graph
        if node.op_type == PACKED and {"K", "N"} <= node.attributes.keys()
    }
    rest = {input for node in model.graph if node.op_type == PACKED for input in node.inputs[1:]}
    values = [value for value in model.graph.initializers.values() if value not in rest]
    learned = [v.const_value for v in values if isinstance(v.const_value, Weight)]
    return sum(packed.values()) + sum(tensor.size for tensor in learned if tensor.learned)


def _refused(file: Path, found: str, expected: str) -> CheckpointError:
    return CheckpointError(
        f"{file}: found {found}, expected {expected}; this runtime cannot run it"
    )
