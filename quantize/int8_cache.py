"""The pass that keeps keys and values in 8 bits: a quarter of the bytes a long text reads.

    q, k, v, past (float32)              →  attention  →  x, present (float32)
    q, k, v, past (int8), two scales     →  attention  →  x, present (int8)

A number c of a channel (a head, and a place in it) with the scale s is kept as round(c / s), half
to even, within -128 and 127: what lies beyond is cut off, and nobody is told. The kernel writes new
rows so, and reads a kept n as n · s in float32. The scales, (1, K, 1, E), are small constants in
the graph's own file. All else stays what and where it is, so that this is a second graph over the
weights of the first.

Every attention of ours has a form that the kernel takes, with any head size, window, softcap and
rotation (compared with float32 in onnxruntime 1.32). Source: its ``docs/ContribOperators.md``,
GroupQueryAttention. Letters: K key/value heads, E head size.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..export.graph import Graph
from ..export.graph_check.microsoft import INT8_CACHE
from ..export.graph_pass import Outcome

LIMIT = 127  # the largest number that is kept
PAST_KEY, PAST_VALUE = 3, 4
KEY_SCALE, VALUE_SCALE = 12, 13

# Layer -> the scales of its keys and of its values, positive float32 (K, E) each.
CacheScales = Mapping[int, tuple[NDArray[np.float32], NDArray[np.float32]]]


class Int8Cache:
    """Makes every attention over a float32 cache one over int8, by the ``scales`` of its layer."""

    def __init__(self, scales: CacheScales) -> None:
        self._scales = scales

    def apply(self, model: ir.Model) -> Outcome:
        """Rewrites ``model`` in place; ``changed`` names the nodes."""
        graph, outcome = Graph.editing(model), Outcome()
        for node in model.graph:
            if node.op_type == "GroupQueryAttention":
                _rewrite(graph, node, self._scales)
                outcome.changed.append(str(node.name))
        return outcome


def _rewrite(graph: Graph, node: ir.Node, scales: CacheScales) -> None:
    past = node.inputs[PAST_KEY], node.inputs[PAST_VALUE]
    layer = layer_of(past[0])
    node.resize_inputs(VALUE_SCALE + 1)
    for index, kind, scale in zip(
        (KEY_SCALE, VALUE_SCALE), ("key", "value"), scales[layer], strict=True
    ):
        constant = graph.constant(scale[None, :, None, :], f"cache.{layer}.{kind}.scale")
        node.replace_input_with(index, constant)
    for name, value in INT8_CACHE.items():
        node.attributes.add(ir.convenience.convert_attribute(name, value))
    for cached in (*past, *node.outputs[1:]):
        assert cached is not None
        cached.dtype = ir.DataType.INT8


def layer_of(past: ir.Value | None) -> int:
    """3 of past_key_values.3.key."""
    assert past is not None
    return int(str(past.name).split(".")[1])
