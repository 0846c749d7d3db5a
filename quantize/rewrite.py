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

import onnx_ir as ir

from ..export.graph import Graph, Weight
from ..export.graph_pass import Outcome
from .feedback import Feedbacks
from .formats import Format, embeds, find_format
from .plan import ASKED, Plan, check_fit
from .precisions import FULL
from .report import Loss, Report
from .select import match_embedding, match_product, select
from .weights import LinearWeight, PackedParts, Value

Packed = dict[tuple[str, str], PackedParts]  # by names of weight and format


class Rewrite:
    """Gives every weight the format that ``plan`` says; ``report`` is full once they are written.

    A weight that the plan does not name, because another pass brought it, stays as it is. One that
    ``other``, of the same weights, has in the same format is the same bytes, and in its report.
    """

    def __init__(
        self, plan: Plan, feedbacks: Feedbacks | None = None, other: Rewrite | None = None
    ) -> None:
        self._formats = plan.formats
        self._feedbacks = feedbacks
        self._reasons = plan.reasons or {}
        self.report = Report(reasons=self._reasons)
        self._others = other._packed if other is not None else {}
        self._packed: Packed = {}

    def apply(self, model: ir.Model) -> Outcome:
        """Rewrites ``model`` in place; RequestError for a weight that cannot have its format."""
        formats: dict[str, Format] = {}
        for name, selected in select(model).items():
            wanted = self._formats.get(name)
            if wanted == FULL:
                reason = self._reasons.get(name)
                self.report.skipped[name] = reason or selected.obstacle or ASKED
            elif wanted is not None:
                check_fit(wanted, selected)
                formats[name] = find_format(wanted)
        rewriting = _Rewriting(
            Graph.editing(model), formats, self.report, self._feedbacks, self._others
        )
        for node in list(model.graph):
            rewriting.visit(node)
        self._packed = rewriting.packed
        for name in [n for n, v in model.graph.initializers.items() if _unused(v)]:
            del model.graph.initializers[name]
        return Outcome(changed=list(self.report.losses), skipped=self.report.skipped)


class _Rewriting:
    """One run over one model."""

    def __init__(
        self,
        graph: Graph,
        formats: dict[str, Format],
        report: Report,
        feedbacks: Feedbacks | None,
        others: Packed,
    ) -> None:
        self._graph = graph
        self._feedbacks = feedbacks
        self._formats = formats  # of the weights that change, by name
        self._report = report
        self._others = others
        self.packed: Packed = {}

    def visit(self, node: ir.Node) -> None:
        """Puts the nodes of its weight's format in place of ``node``, if that changes."""
        product, table = match_product(node), match_embedding(node)
        weight = product or table
        if weight is None or weight.name not in self._formats:
            return
        with self._graph.before(node):
            result = self._linear(node, product) if product else self._embedding(node, weight)
        self._graph.replace(node.outputs[0], result)
        self._graph.ir.remove(node, safe=True)

    def _linear(self, node: ir.Node, weight: LinearWeight) -> Value:
        x = node.inputs[0]
        assert x is not None
        bias = node.inputs[2] if len(node.inputs) > 2 else None  # of a Gemm
        number_format = self._formats[weight.name]
        product = number_format.linear(self._graph, x, weight, self._packed(weight))
        return product if bias is None else self._graph.Add(product, bias, name="add_bias")

    def _embedding(self, node: ir.Node, weight: LinearWeight) -> Value:
        ids, number_format = node.inputs[1], self._formats[weight.name]
        assert ids is not None and embeds(number_format)
        return number_format.embedding(self._graph, ids, weight, self._packed(weight))

    def _packed(self, weight: LinearWeight) -> PackedParts:
        number_format = self._formats[weight.name]
        key = weight.name, number_format.name
        if key not in self.packed:
            self.packed[key] = self._others.get(key) or pack_lazily(
                number_format, weight, self._report, self._feedbacks
            )
        return self.packed[key]


def pack_lazily(
    number_format: Format,
    weight: LinearWeight,
    report: Report,
    feedbacks: Feedbacks | None = None,
) -> PackedParts:
    """The parts of ``weight``, packed when they are written out; that fills ``report``."""
    loss = report.losses[weight.name] = Loss(weight, number_format, feedbacks)
    step = weight.step if number_format.stored_by_rows else weight.out_features
    return PackedParts(loss.pack, weight.out_features, step, weight.scratch)


def _unused(value: ir.Value) -> bool:
    return isinstance(value.const_value, Weight) and not value.uses()
