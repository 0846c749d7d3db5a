"""The pass: every product with a constant weight becomes the nodes of its number format.

    MatMul(x, W (K, N))                    ->  format.linear(x, W)
    FusedMatMul(x, W (N, K), transB=1)     ->  format.linear(x, W)
    Gemm(x, W, b), W with or without transB  ->  format.linear(x, W) + b
    Gather(W (V, D), input_ids)            ->  format.embedding(input_ids, W)

A weight that is left in float32 is reported with the reason. Weights stay lazy: packing happens
when the folder is written. A weight used twice (tied embedding and head) is packed once, and its
bytes are stored once.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from ..export.errors import CheckpointError
from ..export.graph import Graph, Weight
from .formats.block import Block
from .report import Loss, Report
from .select import Choice, Format
from .weights import LinearWeight, PackedParts, weight_of

PRODUCTS = ("MatMul", "FusedMatMul", "Gemm")


class Rewrite:
    """One run of the pass over one model."""

    def __init__(self, model: ir.Model, choice: Choice, report: Report) -> None:
        self._model = model
        self._graph = Graph.editing(model)
        self._choice = choice
        self._report = report
        self._parts: dict[Weight, PackedParts] = {}
        self._vocabulary = _vocabulary_weights(model)

    def run(self) -> bool:
        """Rewrites the model in place; whether anything changed."""
        changed = False
        for node in list(self._model.graph):
            changed |= self._rewrite(node)
        for name in [n for n, v in self._model.graph.initializers.items() if _unused(v)]:
            del self._model.graph.initializers[name]
        return changed

    def _rewrite(self, node: ir.Node) -> bool:
        if (product := match_product(node)) is not None:
            return self._replace(node, product, self._emit_linear)
        if (table := match_embedding(node)) is not None:
            return self._replace(node, table, self._emit_embedding)
        if node.op_type in PRODUCTS and (weight := weight_of(node.inputs[1])) is not None:
            self._report.skipped[str(weight.name)] = "a product of another form than x · W"
        return False

    def _replace(
        self,
        node: ir.Node,
        weight: LinearWeight,
        emit: Callable[[ir.Node, LinearWeight, Format], ir.Value | str],
    ) -> bool:
        wanted = self._format_for(weight)
        fitted = wanted.fitted(weight) if wanted is not None else "asked to stay in float32"
        result = fitted if isinstance(fitted, str) else emit(node, weight, fitted)
        if isinstance(result, str):
            self._report.skipped[weight.name] = result
            return False
        self._graph.replace(node.outputs[0], result)
        self._model.graph.remove(node, safe=True)
        return True

    def _format_for(self, weight: LinearWeight) -> Format | None:
        if weight.weight in self._vocabulary:
            return self._choice.head_format
        return self._choice.linear_format

    def _emit_linear(
        self, node: ir.Node, weight: LinearWeight, number_format: Format
    ) -> ir.Value | str:
        x = node.inputs[0]
        assert x is not None
        bias = node.inputs[2] if len(node.inputs) > 2 else None  # of a Gemm
        with self._graph.before(node):
            parts = self._packed(weight, number_format)
            product = number_format.linear(self._graph, x, weight, parts)
            return product if bias is None else self._graph.Add(product, bias, name="add_bias")

    def _emit_embedding(
        self, node: ir.Node, weight: LinearWeight, number_format: Format
    ) -> ir.Value | str:
        ids = node.inputs[1]
        assert ids is not None
        if not isinstance(number_format, Block):
            return f"{number_format.name} has no embedding"
        with self._graph.before(node):
            return number_format.embedding(
                self._graph, ids, weight, self._packed(weight, number_format)
            )

    def _packed(self, weight: LinearWeight, number_format: Format) -> PackedParts:
        if weight.weight not in self._parts:
            self._parts[weight.weight] = pack_lazily(number_format, weight, self._report)
        return self._parts[weight.weight]


def pack_lazily(number_format: Format, weight: LinearWeight, report: Report) -> PackedParts:
    """The parts of ``weight``, packed when they are written out; that fills ``report``."""
    loss = report.losses[weight.name] = Loss(weight, number_format)
    step = weight.step if number_format.stored_by_rows else weight.out_features
    return PackedParts(loss.pack, weight.out_features, step, weight.scratch)


def match_product(node: ir.Node) -> LinearWeight | None:
    """The weight of a matrix product with a constant second factor, or None."""
    if node.op_type not in PRODUCTS:
        return None
    weight = weight_of(node.inputs[1])
    if weight is None or len(weight.shape) != 2 or weight.dtype != ir.DataType.FLOAT:
        return None
    neutral = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
    flags = neutral | {name: attribute.value for name, attribute in node.attributes.items()}
    transposed = flags.pop("transB") == 1
    if flags != {name: value for name, value in neutral.items() if name != "transB"}:
        return None
    return LinearWeight(weight, transposed)


def match_embedding(node: ir.Node) -> LinearWeight | None:
    """The table of a lookup by token id, or None; lookups by position are not one."""
    if node.op_type != "Gather" or node.attributes.get_int("axis", 0) != 0:
        return None
    weight = weight_of(node.inputs[0])
    if weight is None or len(weight.shape) != 2 or not _are_token_ids(node.inputs[1]):
        return None
    return LinearWeight(weight, transposed=True)


def _are_token_ids(value: ir.Value | None) -> bool:
    """Whether ``value`` is input_ids, perhaps in another form."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type not in ("Cast", "Identity", "Reshape"):
            return False
        value = node.inputs[0]
    return value is not None and value.name == "input_ids"


def _vocabulary_weights(model: ir.Model) -> set[Weight]:
    """Embedding and head: tables by token id, and products as wide as the logits."""
    found = set()
    width = _vocabulary_size(model)
    for node in model.graph:
        table, product = match_embedding(node), match_product(node)
        if table is not None:
            found.add(table.weight)
        if product is not None and product.transposed and product.out_features == width:
            found.add(product.weight)
    return found


def _vocabulary_size(model: ir.Model) -> object:
    """The last dimension of the logits; CheckpointError where there are none."""
    names = [str(value.name) for value in model.graph.outputs]
    if "logits" not in names:
        raise CheckpointError(
            f"the graph has the outputs {', '.join(names)[:200] or 'none'}, expected logits among "
            "them; it is no decoder - export the checkpoint again with: pocketlm export"
        )
    shape = model.graph.outputs[names.index("logits")].shape
    assert shape is not None
    return shape[-1]


def _unused(value: ir.Value) -> bool:
    return isinstance(value.const_value, Weight) and not value.uses()
