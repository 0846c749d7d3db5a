"""The values of an attention's heads: the product they come from, and the one they go to.

    value = [Split of] x · W_v [+ b]    ->  GroupQueryAttention  ->  attended · W_o

W_v may have queries and keys beside (GPT-2's c_attn, Phi-3's qkv_proj). Letters: K key/value heads,
E head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from .residual import Product, Refused, named, product_of
from .weights import weight_of

VALUE, PAST_VALUE = 2, 4  # inputs of GroupQueryAttention; the first is all three if packed


@dataclass(frozen=True)
class Heads:
    """Where values come from and go to."""

    size: int  # E
    product: Product
    start: int  # of the values among its output features: K·E of them
    stop: int
    bias: ir.Value | None
    reader: Product


def find_heads(node: ir.Node) -> Heads:
    """The heads of a GroupQueryAttention; Refused with the reason where they are not found."""
    past, value = node.inputs[PAST_VALUE], node.inputs[VALUE]
    size = past.shape[3] if past is not None and past.shape is not None else None
    packed = value is None
    value = node.inputs[0] if packed else value
    assert value is not None
    if not isinstance(size, int):
        raise Refused("the size of its heads is not known")
    width = node.attributes["kv_num_heads"].as_int() * size
    bias: ir.Value | None = None
    start = 0
    while (product := product_of(value.producer())) is None:
        _check_sole(value)
        maker = value.producer()
        added = maker.inputs[1] if maker is not None and maker.op_type == "Add" else None
        if maker is not None and maker.op_type == "Split":
            start += sum(_sizes(maker)[: value.index()])
            following = maker.inputs[0]
        elif maker is not None and bias is None and weight_of(added) is not None:
            bias, following = added, maker.inputs[0]
        else:
            raise Refused(f"its values come from {named(maker) if maker else value.name}")
        assert following is not None
        value = following
    _check_sole(value)
    if packed:
        start = product.linear.out_features - width
    if start % size or not 0 <= start <= product.linear.out_features - width:
        raise Refused(f"{product.linear.name} does not have its values in whole heads")
    (use, *others) = node.outputs[0].uses() or (None,)
    reader = product_of(use.node) if use is not None and use.idx == 0 else None
    if reader is None or others:
        raise Refused("what it makes goes to something else than one product with a weight")
    for weight in (product.weight, reader.weight, *([bias] if bias is not None else [])):
        _check_sole(weight)
    return Heads(size, product, start, start + width, bias, reader)


def _check_sole(value: ir.Value) -> None:
    if len(value.uses()) != 1 or value.is_graph_output():
        raise Refused(f"{value.name} is used elsewhere, too")


def _sizes(node: ir.Node) -> list[int]:
    """Of the parts that a Split makes along the last axis."""
    sizes = node.inputs[1].const_value if len(node.inputs) > 1 and node.inputs[1] else None
    if sizes is None or node.attributes.get_int("axis", 0) != -1:
        raise Refused(f"{named(node)} splits otherwise than by sizes of the last axis")
    return [int(size) for size in sizes.numpy()]
