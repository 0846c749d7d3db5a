"""The residual stream of a declared graph: what writes to it, what reads it, found by its values.

    written by    lookups in tables, products with a constant weight, biases
    added by      Add, SkipLayerNormalization, SkipSimplifiedLayerNormalization; scaled by a number
    read by       norms alone, and these by products with a constant weight

Whatever else touches it is named as the reason why there is no such stream: a norm between a
branch and the stream (Gemma 2 and 3, OLMo 2), a product without a norm before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from ..export.graph import Weight
from .select import match_embedding, match_product
from .weights import LinearWeight, weight_of

RMS_NORM, LAYER_NORM = "RMSNormalization", "LayerNormalization"
SKIP_RMS_NORM, SKIP_LAYER_NORM = "SkipSimplifiedLayerNormalization", "SkipLayerNormalization"
# Inputs: of the gain, of the bias of a layer norm, and of that which a fused add brings along.
GAIN = {RMS_NORM: 1, LAYER_NORM: 1, SKIP_RMS_NORM: 2, SKIP_LAYER_NORM: 2}
SHIFT = {LAYER_NORM: 2, SKIP_LAYER_NORM: 3}
ADDED_BIAS = {SKIP_RMS_NORM: 3, SKIP_LAYER_NORM: 4}
NORMED, SUM = 0, 3  # outputs of the fused ones


class Refused(Exception):
    """Why a part of a graph cannot be rotated."""


@dataclass(frozen=True)
class Product:
    """x · W with a constant W."""

    node: ir.Node
    linear: LinearWeight

    @property
    def weight(self) -> ir.Value:
        """The initializer."""
        value = self.node.inputs[1]
        assert value is not None
        return value

    @property
    def in_axis(self) -> int:
        return 1 if self.linear.transposed else 0

    @property
    def out_axis(self) -> int:
        return 1 - self.in_axis


@dataclass(frozen=True)
class Norm:
    """A norm of the stream, and the products that read it."""

    node: ir.Node
    gain: Weight
    shift: Weight | None  # of a layer norm
    readers: list[Product]


@dataclass
class Stream:
    """Everything that touches the stream, in the order it was found."""

    width: int  # D
    lookups: list[ir.Node] = field(default_factory=list)
    writers: list[Product] = field(default_factory=list)
    biases: list[ir.Value] = field(default_factory=list)  # (D,), added to it
    norms: list[Norm] = field(default_factory=list)

    @property
    def is_centred(self) -> bool:
        """Whether its norms are layer norms, which do not see its mean."""
        return self.norms[0].shift is not None

    @property
    def tables(self) -> list[ir.Value]:
        """What is looked up, each once."""
        return list(dict.fromkeys(_given(node, 0) for node in self.lookups))


def product_of(node: ir.Node | None) -> Product | None:
    """``node`` as a product of x with a constant weight, and nothing added."""
    if node is None or node.op_type not in ("MatMul", "FusedMatMul"):
        return None
    linear = match_product(node)
    return Product(node, linear) if linear is not None else None


def find_stream(model: ir.Model) -> Stream:
    """The stream that begins with the lookup of token ids; Refused with the reason."""
    lookups = [node for node in model.graph if match_embedding(node) is not None]
    if not lookups:
        raise Refused("there is no lookup of token ids in a table")
    stream = _Follower(lookups[0]).run()
    _check_uses(stream)
    return stream


class _Follower:
    """Follows values up and down, from the first lookup on."""

    def __init__(self, lookup: ir.Node) -> None:
        table = weight_of(lookup.inputs[0])
        assert table is not None
        self._stream = Stream(int(table.shape.numpy()[1]))
        self._known: set[ir.Value] = set()
        self._norms: dict[ir.Node, None] = {}
        self._waiting = [lookup.outputs[0]]

    def run(self) -> Stream:
        """The stream; Refused at the first thing that is not part of one."""
        while self._waiting:
            value = self._waiting.pop()
            if value in self._known:
                continue
            self._known.add(value)
            if value.is_graph_output():
                raise Refused(f"the residual stream is the output {value.name} of the graph")
            self._take_writer(value)
            for use in value.uses():
                self._take_reader(use.node, use.idx)
        self._stream.norms = [_norm(node) for node in self._norms]
        if len({norm.shift is None for norm in self._stream.norms}) != 1:
            raise Refused("the residual stream is read by norms of different kinds, or by none")
        return self._stream

    def _take_writer(self, value: ir.Value) -> None:
        node = value.producer()
        if node is None:
            raise Refused(f"{value.name}, which no node makes, is added to the residual stream")
        product = product_of(node)
        if product is not None:
            self._stream.writers.append(product)
        elif node.op_type == "Gather" and _is_table(node, self._stream.width):
            self._stream.lookups.append(node)
        elif node.op_type == "Add" or (node.op_type in ADDED_BIAS and value is node.outputs[SUM]):
            for added in node.inputs[:2]:
                self._take_added(added)
            bias = ADDED_BIAS.get(node.op_type, len(node.inputs))
            if bias < len(node.inputs) and node.inputs[bias] is not None:
                self._take_added(node.inputs[bias])
        elif node.op_type == "Mul" and any(map(_is_number, node.inputs)):
            self._waiting += [x for x in node.inputs if x is not None and not _is_number(x)]
        else:
            raise Refused(f"{named(node)} writes to the residual stream")

    def _take_added(self, value: ir.Value | None) -> None:
        assert value is not None
        weight = weight_of(value)
        if weight is None:
            self._waiting.append(value)
        elif tuple(weight.shape.numpy()) == (self._stream.width,):
            self._stream.biases.append(value)
        else:
            raise Refused(f"{value.name} is added to the residual stream")

    def _take_reader(self, node: ir.Node, index: int) -> None:
        if node.op_type in (RMS_NORM, LAYER_NORM) and index == 0:
            self._norms[node] = None
        elif node.op_type in ADDED_BIAS and index < 2:
            self._norms[node] = None
            self._waiting.append(node.outputs[SUM])
        elif node.op_type == "Add" or (node.op_type == "Mul" and any(map(_is_number, node.inputs))):
            self._waiting.append(node.outputs[0])
        else:
            raise Refused(f"{named(node)} reads the residual stream with no norm between")


def _norm(node: ir.Node) -> Norm:
    gain = weight_of(node.inputs[GAIN[node.op_type]])
    at = SHIFT.get(node.op_type)
    shift = weight_of(node.inputs[at]) if at is not None and at < len(node.inputs) else None
    if gain is None:
        raise Refused(f"{named(node)} has a gain that is no weight")
    if at is not None and shift is None:
        raise Refused(f"{named(node)} has a bias that is no weight")
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:SUM]):
        raise Refused(f"{named(node)} hands on its mean or deviation")
    return Norm(node, gain, shift, list(_readers(node.outputs[NORMED])))


def _readers(value: ir.Value) -> Iterator[Product]:
    """The products of a normed value, perhaps of some of its rows; Refused for other uses."""
    if value.is_graph_output():
        raise Refused(f"a norm of the residual stream is the output {value.name} of the graph")
    for use in value.uses():
        product = product_of(use.node)
        if product is not None and use.idx == 0:
            yield product
        elif use.node.op_type == "Slice" and use.idx == 0 and _keeps_the_width(use.node):
            yield from _readers(use.node.outputs[0])
        else:
            raise Refused(f"{named(use.node)} reads a norm, expected a product with a weight")


def _check_uses(stream: Stream) -> None:
    """Every weight has one part in it, but for a table that is the head as well."""
    readers = [product for norm in stream.norms for product in norm.readers]
    parts = Counter(product.weight for product in (*stream.writers, *readers))
    parts.update(stream.biases)
    tables = Counter(_given(node, 0) for node in stream.lookups)
    for value, count in (parts + tables).items():
        tied = count == 2 and tables[value] == 1 and value not in stream.biases
        if len(value.uses()) != count or not (count == 1 or tied):
            raise Refused(f"{value.name} is used elsewhere, too")
    for product in (*stream.writers, *readers):
        if product.weight in tables and not (product in readers and product.linear.transposed):
            raise Refused(f"{product.weight.name} is a table and writes to the stream as well")


def _is_table(node: ir.Node, width: int) -> bool:
    weight = weight_of(node.inputs[0])
    return (
        weight is not None
        and len(weight.shape) == 2
        and int(weight.shape.numpy()[1]) == width
        and node.attributes.get_int("axis", 0) == 0
    )


def _is_number(value: ir.Value | None) -> bool:
    """Whether it is one constant number, which no caller may replace."""
    if value is None or value.const_value is None or value.is_graph_input():
        return False
    return value.const_value.size == 1


def _keeps_the_width(node: ir.Node) -> bool:
    """Whether a Slice of (B, S, D) takes rows, not columns."""
    axes = node.inputs[3] if len(node.inputs) > 3 else None
    constant = axes.const_value if axes is not None else None
    return constant is not None and set(constant.numpy().tolist()) <= {0, 1}


def _given(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value


def named(node: ir.Node) -> str:
    """A node as reasons name it."""
    return f"{node.name} ({node.op_type})"
