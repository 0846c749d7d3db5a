"""A graph whose attention is fused, as onnxruntime-genai's builder writes it, by our contract.

    GroupQueryAttention(…, Cast(ReduceSum(mask) - 1), Cast(Shape(mask)[1]), …)
  ->
    GroupQueryAttention(…, seqlens_k, total, …, bias)      by ``mask_lengths``

    SimplifiedLayerNormalization(x, w)   ->  RMSNormalization(x, w), which is ONNX's
    head(x)                              ->  head(last rows of x)

Positions that an attention is given are left out: it then rotates by the cache's columns, which is
the same for a text without padding.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from ..decoder_inputs import mask_lengths
from ..errors import CheckpointError
from ..graph import IR_VERSION, OPSETS, Graph, Weight
from ..layers import last_rows

ATTENTION = "GroupQueryAttention"
PRODUCTS = ("MatMul", "MatMulNBits", "FusedMatMul")
# Attributes that say what is so without them.
IDLE = {
    "local_window_size": -1,
    "rotary_interleaved": 0,
    "smooth_softmax": 0,
    "softcap": 0.0,
    "kv_cache_bit_width": 0,
    "k_quant_type": "NONE",
    "v_quant_type": "NONE",
    "qk_output": 0,
}
POSITIONS, BIAS = 9, 10  # inputs of an attention


def is_fused(model: ir.Model) -> bool:
    """Whether its attention is ONNX Runtime's."""
    return any(node.op_type == ATTENTION for node in model.graph)


def to_contract(model: ir.Model) -> None:
    """Changes ``model`` in place; CheckpointError for a head whose rows cannot be left out."""
    g = Graph.editing(model)
    inputs = {str(value.name): value for value in model.graph.inputs}
    first = next(iter(model.graph))
    with g.before(first, "mask"):
        lengths = mask_lengths(g, inputs["input_ids"], inputs["attention_mask"])
    for node in list(model.graph):
        if node.op_type == ATTENTION:
            _attend(node, *lengths[1:])
        elif node.op_type == "SimplifiedLayerNormalization":
            node.op_type = "RMSNormalization"
            node.attributes.pop("stash_type", None)
        elif node.op_type == "SkipSimplifiedLayerNormalization":
            _name_outputs(node)
    _keep_rows(g, model)
    common.RemoveUnusedNodesPass()(model)
    model.graph.opset_imports.update(OPSETS)
    model.ir_version = IR_VERSION


def _attend(node: ir.Node, last: ir.Value, total: ir.Value, bias: ir.Value) -> None:
    given = [*node.inputs, *(None,) * (BIAS + 1 - len(node.inputs))]
    if any(value is not None for value in given[BIAS:]):
        raise _refused("an attention with a bias or sinks of its own", "one without")
    node.resize_inputs(BIAS + 1)
    for index, value in {5: last, 6: total, POSITIONS: None, BIAS: bias}.items():
        node.replace_input_with(index, value)
    for name, idle in IDLE.items():
        if name in node.attributes and node.attributes[name].value == idle:
            del node.attributes[name]


def _name_outputs(node: ir.Node) -> None:
    """All four, as our graphs have them."""
    node.resize_outputs(4)
    for index, value in enumerate(node.outputs):
        value.name = value.name or f"{node.name}:{index}"


def _keep_rows(g: Graph, model: ir.Model) -> None:
    """The output head sees the last ``num_logits_to_keep`` rows."""
    logits = next(value for value in model.graph.outputs if value.name == "logits")
    head: ir.Node | None = logits.producer()
    while head is not None and head.op_type not in PRODUCTS:
        # What comes behind it takes each row by itself.
        rest = [value for value in head.inputs if value and not value.is_initializer()]
        known = head.op_type in ("Add", "Cast", "Mul", "Div", "Tanh") and len(rest) == 1
        head = rest[0].producer() if known else None
    weight = head.inputs[1].const_value if head is not None and head.inputs[1] else None
    if head is None or not isinstance(weight, Weight) or head.inputs[0] is None:
        raise _refused("logits that are not made by a product with a weight", "such a head")
    keep = g.input("num_logits_to_keep", np.int64, [])
    g.default(keep, np.array(0, np.int64))
    with g.before(head, "head"):
        head.replace_input_with(0, last_rows(g, head.inputs[0], keep))


def _refused(found: str, expected: str) -> CheckpointError:
    return CheckpointError(
        f"the foreign graph has {found}, expected {expected}; this runtime cannot run it"
    )
