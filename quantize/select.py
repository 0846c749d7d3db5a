"""Which weights of a graph a plan gives formats to: linear layers, embedding and head.

    MatMul(x, W (K, N))                      FusedMatMul(x, W (N, K), transB=1)
    Gemm(x, W, b), W with or without transB  Gather(W (V, D), input_ids)

A product of another form is selected too, with the reason why it stays in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ..export.errors import CheckpointError
from .formats import Format, embeds
from .weights import LinearWeight, weight_of

PRODUCTS = ("MatMul", "FusedMatMul", "Gemm")
OTHER_FORM = "a product of another form than x · W"


@dataclass
class Selected:
    """A weight, and what the graph does with it."""

    weight: LinearWeight
    vocabulary: bool = False  # embedding or head
    looked_up: bool = False  # by token id
    obstacle: str | None = None  # why it can only be float32

    def fitted(self, number_format: Format) -> Format | str:
        """``number_format`` as this weight can have it, or why it cannot."""
        if self.obstacle is not None:
            return self.obstacle
        if self.looked_up and not embeds(number_format):
            return f"{number_format.name} has no embedding"
        return number_format.fitted(self.weight)


def select(model: ir.Model) -> dict[str, Selected]:
    """The weights by name, in the order of the graph; CheckpointError for one without logits."""
    found: dict[str, Selected] = {}
    width = _vocabulary_size(model)
    for node in model.graph:
        table, product = match_embedding(node), match_product(node)
        if table is not None:
            selected = _use(found, table)
            selected.looked_up = selected.vocabulary = True
        elif product is not None:
            selected = _use(found, product)
            selected.vocabulary |= product.transposed and product.out_features == width
        elif node.op_type in PRODUCTS and (weight := weight_of(node.inputs[1])) is not None:
            selected = found.setdefault(str(weight.name), Selected(LinearWeight(weight, True)))
            selected.obstacle = OTHER_FORM
    return found


def _use(found: dict[str, Selected], weight: LinearWeight) -> Selected:
    selected = found.setdefault(weight.name, Selected(weight))
    if selected.weight.transposed != weight.transposed:
        selected.obstacle = "used both as it is stored and transposed"
    return selected


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
