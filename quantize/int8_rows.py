"""The pass for many tokens over a cache of int8: attention in float32, the new rows in int8.

    past (int8) → Slice to the P tokens there are → Cast → Mul scale → past (float32)
    q, k, v, past (float32)  →  attention  →  x, present (float32)
    present → Slice behind the P tokens → Div scale → QuantizeLinear → new (int8)

The kernel's own form of an int8 cache (``int8_cache``) is made for a few tokens: with hundreds of
them it takes several times as long as in float32 (onnxruntime 1.32: 163 against 36 ms of a prompt
of 512 tokens, GPT-2 124M). So here a layer's past becomes float32 for as long as its attention
takes, and whoever runs the graph puts the outputs ``new.{layer}.{key|value}``, (1, K, S, E), behind
what the cache holds. They are what the kernel would have kept: round(c / s), half to even, within
-128 and 127. A token sees those of its own step as they were before they were rounded.

Whoever opens the graph sets ``SessionOptions.execution_order`` to ``PRIORITY_BASED``, the order of
the nodes in the file; ONNX Runtime's own puts the rounding off until all layers are done, so that
the float32 keys and values of all of them live at once (SmolLM2-135M, 256 tokens behind 1,024: 92
MB instead of 20). One sequence at a time: the rows of several would end at different places.
Letters: K key/value heads, P past tokens, S new ones, T = P + S, E head size.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx_ir as ir

from ..export.folder import NEW_ROWS
from ..export.graph import Graph
from ..export.graph_pass import Outcome
from .int8_cache import PAST_KEY, CacheScales, layer_of

TOKENS = 2  # the axis of (1, K, T, E)
KINDS = ("key", "value")


class Int8Rows:
    """Has every attention read a past of int8, and give the new rows, by the layers' ``scales``."""

    def __init__(self, scales: CacheScales) -> None:
        self._scales = scales

    def apply(self, model: ir.Model) -> Outcome:
        """Rewrites ``model`` in place; ``changed`` names the nodes."""
        graph, outcome = Graph.editing(model), Outcome()
        nodes = list(model.graph)
        length: ir.Value | None = None
        for node, following in pairwise(nodes):
            if node.op_type == "GroupQueryAttention":
                length = length or _past_length(graph, node)
                for kind in KINDS:
                    self._rewrite(graph, node, following, kind, length)
                outcome.changed.append(str(node.name))
        return outcome

    def _rewrite(
        self, g: Graph, node: ir.Node, following: ir.Node, kind: str, length: ir.Value
    ) -> None:
        number = KINDS.index(kind)
        past, present = node.inputs[PAST_KEY + number], node.outputs[1 + number]
        assert past is not None and past.shape is not None
        layer = layer_of(past)
        scope = f"cache.{layer}.{kind}"
        scale = g.constant(self._scales[layer][number][None, :, None, :], f"{scope}.scale")
        tokens, end = g.int64s(TOKENS), g.int64s(np.iinfo(np.int64).max)
        with g.before(node, scope):
            kept = g.Slice(past, g.int64s(0), length, tokens, name="kept")
            copy = g.Mul(g.Cast(kept, to=ir.DataType.FLOAT, name="float"), scale, name="past")
            node.replace_input_with(PAST_KEY + number, copy)
        with g.before(following, scope):  # at once, or all layers' would live on to the end
            rows = g.Div(g.Slice(present, length, end, tokens, name="rows"), scale, name="steps")
            one, zero = g.constant(np.float32(1), "one_float"), g.constant(np.int8(0), "int8.0")
            rows = g.QuantizeLinear(rows, one, zero, name="rounded")
        past.dtype = rows.dtype = ir.DataType.INT8
        past.shape = ir.Shape([1, *past.shape[1:]])
        rows.shape = ir.Shape([1, past.shape[1], "sequence_length", past.shape[3]])
        rows.name = f"{NEW_ROWS}.{layer}.{kind}"
        g.ir.outputs[g.ir.outputs.index(present)] = rows
        present.name = f"{scope}.present"


def _past_length(g: Graph, first: ir.Node) -> ir.Value:
    """(1,): the tokens before those that are new."""
    given = {value.name: value for value in g.ir.inputs}
    with g.before(first, "cache"):
        total = g.Shape(given["attention_mask"], start=1, end=2, name="total")
        new = g.Shape(given["input_ids"], start=1, end=2, name="new")
        return g.Sub(total, new, name="past_length")
