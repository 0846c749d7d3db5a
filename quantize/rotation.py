"""The pass that spreads outliers before numbers are rounded; in full precision it changes nothing.

    Rotation(seed=0).apply(model)       a declared float32 graph, its weights lazy before and after

Orthogonal matrices (``orthogonal``) go into the weights on both sides of a value, so that it is
another one, without outliers, and all that is computed from it is the same:

- R1, the residual stream. W · R1 for all that writes to it, R1ᵀ · diag(gain) · W for all that reads
  a norm of it; the norm itself is left without gain. A layer norm becomes an RMS norm: R1 is such
  that the mean is one number of a row, and that one is left out of all that is written and read;
  its bias goes into the bias behind the products that read it.
- R2, the values of a head. W_v · R2 and R2ᵀ · W_o, the same for all heads.
- R4, the input of the down projection. In blocks of up to 64 at run time, its inverse absorbed:

    (B, S, F) -> Reshape (B, S, F / 64, 64) -> MatMul R4 (64, 64) -> Reshape (B, S, F) -> MatMul

A table that is the head as well stays one, stored as table · R1. What the head is given is turned
back, multiplied by the gain, and turned again, by two small products each time: R1 is left ⊗ right
behind a signed permutation, which gain and bias take over.

    x -> Reshape (B, S, a, b) -> left · x · right -> Mul gain (-> Add bias) -> left · x · right
      -> Reshape (B, S, D) -> MatMul W

Behind a layer norm, what is looked up in such a table loses its mean in one Mul.

Memory: a matrix whose rows are mixed by R1 is made whole, (D, N) of those that read the stream or
(out, in) = (D, F) of those that write to it, in its own size and little beside. Of Llama 8B that is
235 MB at most: by its plan, an export takes 0.4 GB in float32, 0.6 in int8; of 405B 3.7 and 6.4 GB.

Letters: D width, F feed-forward width, H heads, K key/value heads, E head size; a · b = D. Sources:
Ashkboos et al. 2024 (arXiv 2404.00456, QuaRot); Liu et al. 2024 (arXiv 2405.16406, SpinQuant) for
the names; Ashkboos et al. 2024 (arXiv 2401.15024, SliceGPT) for layer norms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from ..export.errors import RequestError
from ..export.graph import Graph, Weight
from ..export.graph_check.operators import DECLARED
from ..export.graph_pass import Outcome
from .heads import find_heads
from .orthogonal import LARGEST_ODD_FACTOR, Orthogonal, factors
from .residual import (
    ADDED_BIAS,
    GAIN,
    NORMED,
    SHIFT,
    SKIP_LAYER_NORM,
    SUM,
    Norm,
    Product,
    Refused,
    Stream,
    find_stream,
    product_of,
)
from .turned import Turn, rearranged, shifted, turned
from .weights import Floats, weight_of

PARTS = ("R1", "R2", "R4")
LARGEST_BLOCK = 64  # of R4, and of the right one of the two products before a tied head
SMALLEST_BLOCK = 16  # of R4: fewer numbers spread too little
ACTIVATIONS = frozenset({"BiasGelu", "FastGelu", "Gelu", "QuickGelu", "Relu"})
MARK = "pocketlm.rotation"  # in the metadata of a model that has been rotated


class Rotation:
    """The pass with the ``parts`` to try; RequestError for unknown ones or a negative seed."""

    def __init__(self, seed: int = 0, parts: tuple[str, ...] = PARTS) -> None:
        unknown = [part for part in parts if part not in PARTS]
        if unknown:
            listed = ", ".join(PARTS)
            raise RequestError(f"found the rotation {unknown[0]!r}, expected some of {listed}")
        if seed < 0:
            raise RequestError(f"the seed of the rotation is {seed}, expected 0 or more")
        self.seed = seed
        self.parts = parts
        self.outcome = Outcome()

    def apply(self, model: ir.Model) -> Outcome:
        """Rewrites ``model`` in place; ``changed`` names the parts that were done.

        ``skipped`` has a reason by part, or by weight or node where a part leaves only some out.
        RequestError for a model that has been rotated before.
        """
        if MARK in model.metadata_props:
            raise RequestError(
                f"found a model rotated by {model.metadata_props[MARK]}, expected one that is not; "
                "export the checkpoint again"
            )
        self.outcome = Outcome()
        # R1 comes last: weights that it makes whole have been turned by the others row by row.
        for part, rotate in (
            ("R4", self._rotate_hidden),
            ("R2", self._rotate_values),
            ("R1", self._rotate_stream),
        ):
            if part in self.parts:
                self._attempt(part, rotate, model)
        self.outcome.changed.sort()
        if self.outcome.changed:
            model.metadata_props[MARK] = f"{', '.join(self.outcome.changed)} of seed {self.seed}"
        return self.outcome

    def describe(self) -> dict[str, Any]:
        """The manifest's entry: what was done, and why the rest was not."""
        return {
            "seed": self.seed,
            "parts": list(self.outcome.changed),
            "skipped": dict(self.outcome.skipped),
        }

    def _attempt(self, part: str, rotate: Callable[[ir.Model], None], model: ir.Model) -> None:
        try:
            _check_declared(model)
            rotate(model)
        except Refused as refused:
            self.outcome.skipped[part] = str(refused)
        else:
            self.outcome.changed.append(part)

    def _matrix(self, part: str, size: int, *, signed: bool = True) -> Orthogonal:
        odd, power = factors(size)
        if odd > LARGEST_ODD_FACTOR:
            most = LARGEST_ODD_FACTOR
            raise Refused(f"{size} is {power} · {odd}, whose odd factor is above {most}")
        return Orthogonal(size, (self.seed, int(part[1:])), signed=signed)

    def _rotate_stream(self, model: ir.Model) -> None:
        stream = find_stream(model)
        matrix = self._matrix("R1", stream.width, signed=not stream.is_centred)
        StreamRotation(Graph.editing(model), stream, matrix).run()

    def _rotate_values(self, model: ir.Model) -> None:
        nodes = [node for node in model.graph if node.op_type == "GroupQueryAttention"]
        self._each(nodes, self._rotate_heads, "no node is an attention over a cache in place")

    def _rotate_hidden(self, model: ir.Model) -> None:
        g = Graph.editing(model)
        nodes = [node for node in model.graph if _reads_activation(node)]
        self._each(
            nodes, lambda node: self._rotate_input(g, node), "no product reads an activation"
        )

    def _each(self, nodes: list[ir.Node], rotate: Callable[[ir.Node], None], none: str) -> None:
        """Rotates what can be; Refused where that is nothing, with ``none`` or the first reason."""
        reasons: dict[str, str] = {}
        for node in nodes:
            try:
                rotate(node)
            except Refused as refused:
                reasons[str(node.name)] = str(refused)
        if len(reasons) == len(nodes):
            raise Refused(next((f"{name}: {why}" for name, why in reasons.items()), none))
        self.outcome.skipped |= reasons

    def _rotate_heads(self, node: ir.Node) -> None:
        heads = find_heads(node)
        matrix = self._matrix("R2", heads.size)
        values = Turn(matrix, heads.start, heads.stop)
        _absorb(heads.product.weight, heads.product.out_axis, values)
        if heads.bias is not None:
            _absorb(heads.bias, 0, values)
        _absorb(heads.reader.weight, heads.reader.in_axis, Turn(matrix))

    def _rotate_input(self, g: Graph, node: ir.Node) -> None:
        product = product_of(node)
        assert product is not None
        width = product.linear.in_features
        block = min(factors(width)[1], LARGEST_BLOCK)
        if block < SMALLEST_BLOCK:
            raise Refused(f"{width} input features are not a multiple of {SMALLEST_BLOCK}")
        if len(product.weight.uses()) > 1:
            raise Refused(f"{product.weight.name} is used elsewhere, too")
        matrix = self._matrix("R4", block)
        with g.before(node):
            x = g.Reshape(node.inputs[0], g.int64s(0, 0, -1, block), name="blocks")
            x = g.MatMul(x, g.constant(matrix.dense(), f"rotation.R4.{block}"), name="R4")
            node.replace_input_with(0, g.Reshape(x, g.int64s(0, 0, -1), name="joined"))
        _absorb(product.weight, product.in_axis, Turn(matrix))


def _check_declared(model: ir.Model) -> None:
    """Refused for a graph that was traced: it may say the same in other ways."""
    for node in model.graph:
        if (node.domain, node.op_type) not in DECLARED:
            raise Refused(f"the graph has {node.op_type}, which no architecture declares")


def _reads_activation(node: ir.Node) -> bool:
    """Whether it is a product of an activation, or of what one lets through a gate."""
    value = node.inputs[0] if product_of(node) is not None else None
    maker = value.producer() if value is not None else None
    if maker is not None and maker.op_type == "Mul":
        makers = [x.producer() for x in maker.inputs if x is not None]
    else:
        makers = [maker]
    return any(maker is not None and maker.op_type in ACTIVATIONS for maker in makers)


def _absorb(value: ir.Value, axis: int, turn: Turn) -> None:
    value.const_value = turned(_weight(value), axis, turn)


def _weight(value: ir.Value) -> Weight:
    weight = weight_of(value)
    assert weight is not None
    return weight


class StreamRotation:
    """One run of R1 over one graph."""

    def __init__(self, g: Graph, stream: Stream, matrix: Orthogonal) -> None:
        self._g = g
        self._stream = stream
        self._matrix = matrix
        self._centred = stream.is_centred
        heads = [product.weight for norm in stream.norms for product in norm.readers]
        self._tied = set(heads) & set(stream.tables)

    def run(self) -> None:
        """Turns all weights that touch the stream, and rewrites its norms."""
        written = Turn(self._matrix, centred=self._centred)
        for table in self._stream.tables:
            _absorb(table, 1, Turn(self._matrix) if table in self._tied else written)
        for product in self._stream.writers:
            _absorb(product.weight, product.out_axis, written)
        for bias in self._stream.biases:
            _absorb(bias, 0, written)
        for lookup in self._stream.lookups:
            if self._centred and lookup.inputs[0] in self._tied:
                self._take_mean_from(lookup)
        for norm in self._stream.norms:
            for product in norm.readers:
                if product.weight in self._tied:
                    self._turn_for_head(norm, product)
                else:
                    self._turn_reader(norm, product)
            self._take_gain_from(norm.node)

    def _take_mean_from(self, lookup: ir.Node) -> None:
        mask = np.ones(self._stream.width, np.float32)
        mask[0] = 0
        centre = self._g.constant(mask, "rotation.centre")
        self._behind(lookup, lambda rows: self._g.Mul(rows, centre, name="centred"))

    def _turn_reader(self, norm: Norm, product: Product) -> None:
        if norm.shift is not None:
            self._shift(product, norm.shift)
        turn = Turn(self._matrix, gain=norm.gain, centred=self._centred)
        _absorb(product.weight, product.in_axis, turn)

    def _shift(self, product: Product, shift: Weight) -> None:
        """Adds shift · W behind the product, in the bias that is there or one of its own."""
        bias = _bias_behind(product.node)
        if bias is not None:
            bias.const_value = shifted(_weight(bias), product.linear, shift)
            return
        made = shifted(f"{product.linear.name}.shift", product.linear, shift)
        value = self._g.weight(str(made.name), made.shape.numpy(), made.blob)
        value.const_value = made  # no parameter of the model's own
        self._behind(product.node, lambda y: self._g.Add(y, value, name="add_shift"))

    def _turn_for_head(self, norm: Norm, product: Product) -> None:
        g, width = self._g, self._stream.width
        b = min(factors(width)[1], LARGEST_BLOCK)
        a = width // b
        left, right = self._matrix.spread(b)

        def spread(x: ir.Value) -> ir.Value:
            if b > 1:
                x = g.MatMul(x, g.constant(right, "rotation.R1.right"), name="right")
            if a > 1:
                x = g.MatMul(g.constant(left, "rotation.R1.left"), x, name="left")
            return x

        with g.before(product.node):
            x = g.Reshape(product.node.inputs[0], g.int64s(0, 0, a, b), name="split")
            x = g.Mul(spread(x), self._ordered(norm.gain, (a, b)), name="gain")
            if norm.shift is not None:
                shift = self._ordered(norm.shift, (a, b), self._matrix.signs)
                x = g.Add(x, shift, name="shift")
            x = g.Reshape(spread(x), g.int64s(0, 0, -1), name="joined")
        product.node.replace_input_with(0, x)

    def _ordered(
        self, weight: Weight, shape: tuple[int, int], signs: Floats | None = None
    ) -> ir.Value:
        """A gain or bias (D,) behind the signed permutation of R1, as (a, b)."""
        order = self._matrix.order

        def change(values: Floats) -> Floats:
            values = values[order] if signs is None else values[order] * signs
            return values.reshape(shape)

        return self._g.table(f"{weight.name}.ordered", shape, rearranged(weight, change))

    def _take_gain_from(self, node: ir.Node) -> None:
        """Leaves an RMS norm without gain; gain and bias go if nothing else has them."""
        learned = [node.inputs[GAIN[node.op_type]]]
        ones = self._g.constant(np.ones(self._stream.width, np.float32), "rotation.ones")
        if node.op_type in SHIFT:
            learned.append(node.inputs[SHIFT[node.op_type]])
            self._replace_layer_norm(node, ones)
        else:
            node.replace_input_with(GAIN[node.op_type], ones)
        for value in learned:
            if value is not None and not value.uses():
                del self._g.ir.initializers[str(value.name)]

    def _replace_layer_norm(self, node: ir.Node, ones: ir.Value) -> None:
        epsilon = node.attributes.get_float(
            "epsilon", 1e-12 if node.op_type == SKIP_LAYER_NORM else 1e-5
        )
        with self._g.before(node):
            x = node.inputs[0]
            assert x is not None
            if node.op_type == SKIP_LAYER_NORM:
                for added in (node.inputs[1], *node.inputs[ADDED_BIAS[node.op_type] :][:1]):
                    x = x if added is None else self._g.Add(x, added, name="add")
                self._g.replace(node.outputs[SUM], x)
            normed = self._g.RMSNormalization(x, ones, axis=-1, epsilon=epsilon, name="rms_norm")
        self._g.replace(node.outputs[NORMED], normed)
        self._g.ir.remove(node, safe=True)

    def _behind(self, node: ir.Node, make: Callable[[ir.Value], ir.Value]) -> None:
        """Puts the node that ``make`` makes of the node's output in that one's place."""
        value = node.outputs[0]
        with self._g.before(node):
            made = make(value)
        maker = made.producer()
        assert maker is not None
        self._g.ir.remove(maker)
        self._g.ir.insert_after(node, maker)
        self._g.replace(value, made)
        maker.replace_input_with(0, value)


def _bias_behind(node: ir.Node) -> ir.Value | None:
    """The bias that is added to a product and to nothing else, where there is one."""
    (use, *others) = node.outputs[0].uses() or (None,)
    if use is None or others or use.node.op_type not in ("Add", "BiasGelu", "FastGelu"):
        return None
    bias = use.node.inputs[1] if use.idx == 0 and len(use.node.inputs) > 1 else None
    weight = weight_of(bias)
    if bias is None or weight is None or len(weight.shape) != 1 or len(bias.uses()) != 1:
        return None
    return bias
