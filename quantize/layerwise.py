"""A decoder in parts that are run one after the other: embedding, each layer, head.

    parts = split(model)
    with parts[3].open() as layer:                        # reads this layer's weights, no others
        values = layer.run(token_ids, values)             # what crosses into it -> what crosses out

Only what a part needs is in memory: its weights, and the values that cross its boundaries, a few
(B, S, D). A boundary lies between a GroupQueryAttention node and the projections of the next one,
where the fewest values cross, the last such place; nothing is known of names or architectures. What
depends on no weight, such as the mask arithmetic, crosses nowhere: every part that needs it
computes it.

Weights are inputs of a part's graph, so that a run may replace some of them. The cache is empty:
token ids are whole windows. Letters: B windows, S tokens of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..export.errors import PocketLMError, RequestError
from ..export.graph import IR_VERSION, Weight
from ..export.memory import exhausted, is_exhaustion, memory_errors
from ..export.rotary import TEXT_LENGTH
from ..export.threads import check_threads
from .select import match_product
from .weights import LinearWeight, weight_of

Array = NDArray[Any]
Values = Mapping[str, Array]  # (B, S, …) by name

ATTENTION = "GroupQueryAttention"
FLOATS = ir.TensorType(ir.DataType.FLOAT)
FATAL = 4  # severity of ONNX Runtime's log; errors are raised


@dataclass(frozen=True)
class Part:
    """Consecutive nodes of a decoder."""

    name: str  # "embedding", "layer 0", …, "head"
    layer: int | None
    inputs: tuple[str, ...]  # values that cross into it
    outputs: tuple[str, ...]  # values that cross out of it, of the head the logits
    products: dict[str, str]  # weight of a product -> the value that is multiplied with it
    linear: tuple[LinearWeight, ...] = field(repr=False)  # the weights of ``products``
    _graph: ir.Graph = field(repr=False)

    def weights(self, outputs: Iterable[str] | None = None) -> list[Weight]:
        """The weights that are read to compute ``outputs``; by default what crosses out."""
        return [weight for _, weight in _weights(self._extract(self._computed(outputs)))]

    @contextmanager
    def open(
        self, outputs: Iterable[str] | None = None, threads: int | None = None
    ) -> Iterator[OpenPart]:
        """Reads the weights that ``outputs`` need, and holds them while the block runs.

        By default all that crosses out. ``outputs`` may be any values of the part, as those in
        ``products``. Raises what reading a weight raises, and ResourceError.
        """
        wanted = self.outputs if outputs is None else tuple(dict.fromkeys(outputs))
        weights = self.weights(wanted)
        with memory_errors(f"{self.name} of the model", sum(weight.nbytes for weight in weights)):
            opened = OpenPart(self, wanted, weights, check_threads(threads))
        try:
            yield opened
        finally:
            opened.close()

    def _computed(self, outputs: Iterable[str] | None) -> list[str]:
        """Of ``outputs`` those that do not just pass through."""
        wanted = self.outputs if outputs is None else outputs
        return [name for name in wanted if name not in self.inputs]

    def _extract(self, outputs: Sequence[str]) -> ir.Graph | None:
        """The nodes that ``outputs`` need as a graph of their own; its inputs are those it uses."""
        if not outputs:
            return None
        given = [value for value in self._graph.inputs if value.name]
        crossing = ir.convenience.create_value_mapping(self._graph)
        bounds = [*given, *(crossing[name] for name in self.inputs)]
        bounds += [value for value in self._graph.initializers.values() if weight_of(value)]
        graph = ir.convenience.extract(self._graph, bounds, outputs)
        for value in [value for value in graph.inputs if not value.uses()]:
            graph.inputs.remove(value)
        for value in (*graph.inputs, *graph.outputs):
            value.type = value.type or FLOATS  # a model in full precision has no other
        for name in [name for name, value in graph.initializers.items() if weight_of(value)]:
            del graph.initializers[name]  # or its values would be written into the graph
        return graph


class OpenPart:
    """A part with its weights in memory; from ``Part.open``."""

    def __init__(
        self, part: Part, outputs: tuple[str, ...], weights: Sequence[Weight], threads: int
    ) -> None:
        self.part = part
        self.outputs = outputs
        self._weights = {str(weight.name): _engine_value(weight.read()) for weight in weights}
        self._computed = part._computed(outputs)
        graph = part._extract(self._computed)
        self._inputs = {str(value.name): value for value in graph.inputs} if graph else {}
        self._session: Any = _session(graph, threads) if graph else None

    def run(
        self, token_ids: NDArray[np.int64], values: Values, replaced: Values | None = None
    ) -> dict[str, Array]:
        """The part's outputs for whole windows ``token_ids`` (B, S) and what crosses in.

        ``values`` may hold more than that; ``replaced`` are weights to use instead of the model's,
        by name, of the same shapes. The arrays returned are new, or those that pass through.
        Raises ResourceError, and PocketLMError where ONNX Runtime fails.
        """
        found = {name: values[name] for name in self.outputs if name in self.part.inputs}
        if self._session is not None:
            feeds = {
                **self._weights,
                **self._given(token_ids),
                **{name: _engine_value(values[name]) for name in self.part.inputs},
                **{name: _engine_value(array) for name, array in (replaced or {}).items()},
            }
            results = self._results({name: feeds[name] for name in self._inputs})
            found |= zip(self._computed, (result.numpy() for result in results), strict=True)
        return found

    def _results(self, feeds: dict[str, Any]) -> list[Any]:
        try:
            found: list[Any] = self._session.run_with_ort_values(self._computed, feeds)
            return found
        except Exception as error:
            if is_exhaustion(error):
                raise exhausted(f"{self.part.name} of the model") from error
            raise PocketLMError(
                f"{self.part.name}: ONNX Runtime failed ({str(error).splitlines()[0]:.300}), "
                "expected a run; are the windows longer than the model's context?"
            ) from error

    def close(self) -> None:
        """Gives the memory back."""
        self._weights, self._session = {}, None

    def _given(self, token_ids: NDArray[np.int64]) -> dict[str, Any]:
        """The inputs of the whole graph, of windows that begin with an empty cache."""
        count, length = token_ids.shape
        positions = np.broadcast_to(np.arange(length), token_ids.shape)
        given: dict[str, Array] = {
            "input_ids": np.asarray(token_ids, np.int64),
            "attention_mask": np.ones(token_ids.shape, np.int64),
            "position_ids": positions,
            "num_logits_to_keep": np.array(0, np.int64),
            TEXT_LENGTH: np.array(0, np.int64),
        }
        for name, value in self._inputs.items():
            if name.startswith("past_key_values."):
                assert value.shape is not None
                _, heads, _, size = value.shape
                assert isinstance(heads, int) and isinstance(size, int)
                given[name] = np.empty((count, heads, 0, size), np.float32)
        return {name: _engine_value(array) for name, array in given.items()}


def run_parts(
    parts: Sequence[OpenPart],
    token_ids: NDArray[np.int64],
    values: Values | None = None,
    replaced: Values | None = None,
) -> dict[str, Array]:
    """Runs consecutive parts, ``values`` crossing into the first: what crosses out of the last.

    With all parts, or the last ones and what crosses into them, these are the logits.
    """
    crossing = dict(values or {})
    for part in parts:
        crossing = part.run(token_ids, crossing, replaced)
    return crossing


@contextmanager
def opened(parts: Sequence[Part], threads: int | None = None) -> Iterator[list[OpenPart]]:
    """Several parts open at once, for those that have the memory to run them often."""
    with ExitStack() as stack:
        yield [stack.enter_context(part.open(threads=threads)) for part in parts]


def _engine_value(array: Array) -> Any:
    return _onnxruntime().OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def _onnxruntime() -> Any:
    from ..runtime.engine import onnxruntime  # not above: what only looks at parts needs none

    return onnxruntime


def _session(graph: ir.Graph, threads: int) -> Any:
    onnxruntime = _onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False
    options.log_severity_level = FATAL
    options.add_session_config_entry("session.force_spinning_stop", "1")
    model = ir.to_proto(ir.Model(graph, ir_version=IR_VERSION)).SerializeToString()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _weights(graph: ir.Graph | None) -> list[tuple[str, Weight]]:
    """The weights among the inputs of an extracted graph."""
    inputs = graph.inputs if graph is not None else ()
    return [(str(v.name), weight) for v in inputs if (weight := weight_of(v)) is not None]


# Where to cut -------------------------------------------------------------------------------------


def split(model: ir.Model) -> tuple[Part, ...]:
    """Embedding, layers and head of a decoder with lazy weights; reads none.

    The parts refer to ``model``, which must stay as it is while they are used.
    RequestError for a graph without GroupQueryAttention, which has no layers to tell apart.
    """
    nodes = _weighted_nodes(model.graph)
    attention = [index for index, node in enumerate(nodes) if node.op_type == ATTENTION]
    if not attention:
        raise RequestError(
            f"found a graph without {ATTENTION}, expected one that pocketlm declared; a traced "
            "graph cannot be run layer by layer - quantize it without calibration"
        )
    place = {node: index for index, node in enumerate(nodes)}
    head = max(index for index, node in enumerate(nodes) if _is_product(node))
    crossing = _crossing(nodes, place)
    behind = [0, *attention]
    before = [*(_projections(nodes[index], place) for index in attention), head]
    cuts = [_narrowest(crossing, *between) for between in zip(behind, before, strict=True)]
    starts = [0, *cuts, len(nodes)]
    names = ["embedding", *(f"layer {i}" for i in range(len(attention))), "head"]
    return tuple(
        _part(model.graph, names[i], nodes[start:stop], crossing[start], crossing[stop])
        for i, (start, stop) in enumerate(zip(starts, starts[1:], strict=False))
    )


def _weighted_nodes(graph: ir.Graph) -> list[ir.Node]:
    """The nodes whose results depend on a weight, in order."""
    found: list[ir.Node] = []
    weighted: set[ir.Value] = set()
    for node in graph:
        if any(value in weighted or weight_of(value) for value in node.inputs if value):
            found.append(node)
            weighted.update(node.outputs)
    return found


def _is_product(node: ir.Node) -> bool:
    product = match_product(node)
    return product is not None and product.weight.learned


def _projections(attention: ir.Node, place: Mapping[ir.Node, int]) -> int:
    """The place of the first product that queries, keys and values come from."""
    first, waiting = place[attention], list(attention.inputs[:3])
    while waiting:
        value = waiting.pop()
        node = value.producer() if value is not None else None
        if node is not None and node in place and node.op_type != ATTENTION:
            if _is_product(node):
                first = min(first, place[node])
            else:
                waiting.extend(node.inputs)
    return first


def _crossing(nodes: Sequence[ir.Node], place: Mapping[ir.Node, int]) -> list[list[ir.Value]]:
    """Before each of ``nodes`` and behind the last: results of those before that are used later."""
    crossing: list[list[ir.Value]] = [[] for _ in range(len(nodes) + 1)]
    for index, node in enumerate(nodes):
        for value in node.outputs:
            last = max((place[user] for user, _ in value.uses()), default=index)
            for cut in range(index + 1, last + 1):
                crossing[cut].append(value)
    return crossing


def _narrowest(crossing: Sequence[list[ir.Value]], after: int, before: int) -> int:
    """The last place behind node ``after``, and up to ``before``, that the fewest values cross."""
    places = range(after + 1, before + 1)
    return min(reversed(places), key=lambda cut: len(crossing[cut]))


def _part(
    graph: ir.Graph,
    name: str,
    nodes: Sequence[ir.Node],
    entering: Sequence[ir.Value],
    leaving: Sequence[ir.Value],
) -> Part:
    matched = [(match_product(node), node.inputs[0]) for node in nodes if _is_product(node)]
    found = [(weight, x) for weight, x in matched if weight is not None and x is not None]
    attention = [node for node in nodes if node.op_type == ATTENTION]
    logits = [value for node in nodes for value in node.outputs if value.name == "logits"]
    return Part(
        name=name,
        layer=int(name.split()[-1]) if attention else None,
        inputs=tuple(str(value.name) for value in entering),
        outputs=tuple(str(value.name) for value in leaving or logits),
        products={weight.name: str(x.name) for weight, x in found},
        linear=tuple(weight for weight, _ in found),
        _graph=graph,
    )
