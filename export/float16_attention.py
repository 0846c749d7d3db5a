"""The pass that lets a CUDA kernel take the attention: a float32 graph goes in, its twin comes out.

ONNX Runtime's CUDA provider has a float32 kernel for every node of our graphs, those that multiply
integers aside, but one: GroupQueryAttention comes for float16 and bfloat16 alone. Left as it is,
each of those nodes would run on the CPU, with its cache and a copy there and back. Source: the
names of kernel classes in libonnxruntime_providers_cuda.so of onnxruntime-gpu 1.31.1.

    q, k, v (float32), past (float32)      →   Cast q, k, v → attention, past and present float16
    → attention → x (float32)                  → Cast → x (float32)

All else, the weights first of all, stays what and where it is. The attention bias, which hides left
padding, is dropped: our own loop, the one that runs this graph, never pads. Rotary tables are cast
as well; ONNX Runtime does that once, when it opens the graph.
"""

from __future__ import annotations

import onnx_ir as ir

from .folder import ModelFolder
from .graph_check.graph import check_graph

QUERY, KEY, VALUE, PAST_KEY, PAST_VALUE = range(5)
COSINES, SINES, ATTENTION_BIAS = 7, 8, 10


def float16_attention_graph(folder: ModelFolder) -> bytes:
    """The graph of ``folder`` with its attention in float16, as bytes of a ModelProto.

    Weights stay in the folder's file, which the bytes name relative to it. Raises ModelFolderError
    for a graph that we cannot have written.
    """
    check_graph(folder)
    model = ir.load(folder.graph_file())
    attend_in_float16(model)
    data: bytes = ir.to_proto(model).SerializeToString()
    return data


def attend_in_float16(model: ir.Model) -> int:
    """Rewrites every GroupQueryAttention over float32; returns how many there were."""
    nodes = [
        node
        for node in model.graph
        if node.op_type == "GroupQueryAttention"
        and (past := node.inputs[PAST_KEY]) is not None
        and past.dtype == ir.DataType.FLOAT
    ]
    halves: dict[ir.Value, ir.Value] = {}  # layers share their rotary tables
    for node in nodes:
        _rewrite(model.graph, node, halves)
    return len(nodes)


def _rewrite(graph: ir.Graph, node: ir.Node, halves: dict[ir.Value, ir.Value]) -> None:
    for index in (QUERY, KEY, VALUE, COSINES, SINES):
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None:
            continue
        if value not in halves:
            cast = _cast(value, ir.DataType.FLOAT16)
            graph.insert_before(node, cast)
            halves[value] = cast.outputs[0]
        node.replace_input_with(index, halves[value])
    if len(node.inputs) > ATTENTION_BIAS:
        node.replace_input_with(ATTENTION_BIAS, None)
    attended, *present = node.outputs
    for cached in (node.inputs[PAST_KEY], node.inputs[PAST_VALUE], *present):
        assert cached is not None
        cached.dtype = ir.DataType.FLOAT16
    back = _cast(attended, ir.DataType.FLOAT)
    ir.convenience.replace_all_uses_with(attended, back.outputs[0])
    back.replace_input_with(0, attended)
    attended.dtype = ir.DataType.FLOAT16
    graph.insert_after(node, back)


def _cast(value: ir.Value, to: ir.DataType) -> ir.Node:
    output = ir.Value(
        name=f"{value.name}.{to.name.lower()}", shape=value.shape, type=ir.TensorType(to)
    )
    return ir.node("Cast", [value], {"to": to}, outputs=[output])
