"""Which operators there may be: how many inputs and outputs, which attributes, and their rule.

``DECLARED`` are those of the graphs that the architectures declare and ``quantize`` rewrites;
``TRACED`` are those that torch's tracer writes for decoders, on top of them: 38 of the 41 decoders
on the list of Optimum 2.1 were traced for it, with transformers 4.55 (tiny deepseek_v3, gemma3 and
internlm2 could not be exported). Those of ``dynamic`` are in graphs of other runtimes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from ..strict_json import quoted, shown
from . import dynamic, microsoft, plain
from .call import Rule
from .onnx_file import Attribute, GraphRefused, Node, Tensor


@dataclass(frozen=True)
class Whole:
    """An attribute that is a whole number from ``low`` to ``high``."""

    low: int
    high: int

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low} to {self.high}"


@dataclass(frozen=True)
class Number:
    """An attribute that is a finite number from ``low`` up."""

    low: float = -math.inf

    def __str__(self) -> str:
        return f"a number from {self.low} up" if math.isfinite(self.low) else "a finite number"


# A range of numbers, the words there are for a text, or a kind of value that the rule looks at.
Allowed = Whole | Number | frozenset[str] | type


@dataclass(frozen=True)
class Operator:
    """What a node of one kind may look like."""

    rule: Rule
    inputs: tuple[int, int]  # at least, at most
    outputs: tuple[int, int] = (1, 1)
    attributes: dict[str, Allowed] = field(default_factory=dict)
    # Inputs that may be left out in front of others, or as ''. ONNX Runtime's own passes crash
    # on those that nobody leaves out (LayerNormalization without its bias, in 1.32).
    gaps: frozenset[int] = frozenset()

    def check(self, node: Node) -> None:
        """Raises GraphRefused for a node of another form."""
        for what, (low, high), found in (
            ("inputs", self.inputs, len(node.inputs)),
            ("outputs", self.outputs, len(node.outputs)),
        ):
            if not low <= found <= high:
                raise GraphRefused(f"{found} {what}", f"{low} to {high}")
        for index, name in enumerate(node.inputs):
            if not name and index not in self.gaps:
                raise GraphRefused(f"input {index} left out", "it there")
        for name, value in node.attributes.items():
            allowed = self.attributes.get(name)
            if allowed is None:
                known = ", ".join(self.attributes) or "none"
                raise GraphRefused(f"the attribute {quoted(name)}", known)
            if isinstance(allowed, Whole):
                fits = isinstance(value, int) and allowed.low <= value <= allowed.high
            elif isinstance(allowed, Number):
                fits = isinstance(value, float) and allowed.low <= value < math.inf
            elif isinstance(allowed, frozenset):
                fits = value in allowed
            else:
                fits = isinstance(value, allowed) and isinstance(value, Tensor) == (
                    allowed is Tensor
                )
            if not fits:
                raise GraphRefused(f"{name} {_named(value)}", _listed(allowed))


def _named(value: Attribute) -> str:
    if isinstance(value, int | float):
        return str(value)
    return "a tensor" if isinstance(value, Tensor) else shown(value)


def _listed(allowed: Allowed) -> str:
    if isinstance(allowed, frozenset):
        return " or ".join(sorted(allowed))
    return (
        {tuple: "a list", Tensor: "a tensor"}[allowed]
        if isinstance(allowed, type)
        else str(allowed)
    )


FLAG = Whole(0, 1)
AXIS = Whole(-8, 7)
SIZE = Whole(1, (1 << 31) - 1)
COUNT = 1 << 10  # inputs of a Concat and outputs of a Split, at most

_REDUCED: dict[str, Allowed] = {
    "keepdims": FLAG,
    "noop_with_empty_axes": FLAG,
}
_EPSILON = Number(0)

ATTENTION = ("com.microsoft", "GroupQueryAttention")
DECLARED: dict[tuple[str, str], Operator] = {
    ("", "Abs"): Operator(plain.absolute, (1, 1)),
    ("", "Add"): Operator(plain.add, (2, 2)),
    ("", "Cast"): Operator(plain.cast, (1, 1), attributes={"to": Whole(1, 16)}),
    ("", "Concat"): Operator(plain.concat, (1, COUNT), attributes={"axis": AXIS}),
    ("", "Cos"): Operator(plain.unary, (1, 1)),
    ("", "Div"): Operator(plain.divide, (2, 2)),
    ("", "Expand"): Operator(plain.expand, (2, 2)),
    ("", "Gather"): Operator(plain.gather, (2, 2), attributes={"axis": AXIS}),
    ("", "Gelu"): Operator(
        plain.unary, (1, 1), attributes={"approximate": frozenset({"none", "tanh"})}
    ),
    ("", "LayerNormalization"): Operator(
        plain.norm,
        (2, 3),
        attributes={"axis": AXIS, "epsilon": _EPSILON, "stash_type": Whole(1, 1)},
    ),
    ("", "Less"): Operator(plain.compare, (2, 2)),
    ("", "MatMul"): Operator(plain.matmul, (2, 2)),
    ("", "Max"): Operator(plain.maximum, (1, COUNT)),
    ("", "Mul"): Operator(plain.multiply, (2, 2)),
    ("", "Neg"): Operator(plain.negative, (1, 1)),
    ("", "Pow"): Operator(plain.power, (2, 2)),
    ("", "QuantizeLinear"): Operator(microsoft.quantize_linear, (3, 3)),
    ("", "RMSNormalization"): Operator(
        plain.norm, (2, 2), attributes={"axis": AXIS, "epsilon": _EPSILON}
    ),
    ("", "Range"): Operator(plain.range_, (3, 3)),
    ("", "ReduceMax"): Operator(plain.reduce_to_one, (1, 2), attributes=_REDUCED),
    ("", "ReduceMin"): Operator(plain.reduce_to_one, (1, 2), attributes=_REDUCED),
    ("", "ReduceSum"): Operator(plain.reduce_sum, (1, 2), attributes=_REDUCED),
    ("", "Relu"): Operator(plain.unary, (1, 1)),
    ("", "Reshape"): Operator(plain.reshape, (2, 2), attributes={"allowzero": FLAG}),
    ("", "RotaryEmbedding"): Operator(
        microsoft.rotation_by_angles,
        (3, 3),
        attributes={"num_heads": SIZE, "rotary_embedding_dim": SIZE},
    ),
    ("", "Shape"): Operator(plain.shape, (1, 1), attributes={"start": AXIS, "end": AXIS}),
    ("", "Sin"): Operator(plain.unary, (1, 1)),
    ("", "Slice"): Operator(plain.slice_, (3, 5)),
    ("", "Split"): Operator(
        plain.split, (1, 2), (1, COUNT), {"axis": AXIS, "num_outputs": Whole(1, COUNT)}
    ),
    ("", "Squeeze"): Operator(plain.squeeze, (1, 2)),
    ("", "Sub"): Operator(plain.subtract, (2, 2)),
    ("", "Tanh"): Operator(plain.unary, (1, 1)),
    ("", "Unsqueeze"): Operator(plain.unsqueeze, (2, 2)),
    ("", "Where"): Operator(plain.where, (3, 3)),
    ("com.microsoft", "BiasGelu"): Operator(microsoft.gelu_of_sum, (2, 2)),
    ("com.microsoft", "FastGelu"): Operator(microsoft.gelu_of_sum, (1, 2)),
    ("com.microsoft", "FusedMatMul"): Operator(
        microsoft.fused_matmul, (2, 2), attributes={"transB": FLAG}
    ),
    ("com.microsoft", "GatherBlockQuantized"): Operator(
        microsoft.gather_block_quantized,
        (3, 4),
        attributes={
            "bits": SIZE,
            "block_size": SIZE,
            "gather_axis": Whole(0, 0),
            "quantize_axis": Whole(1, 1),
        },
    ),
    ATTENTION: Operator(
        microsoft.group_query_attention,
        (11, 14),
        (3, 3),
        gaps=frozenset({1, 2, 7, 8, 9, 11}),
        attributes={
            "num_heads": SIZE,
            "kv_num_heads": SIZE,
            "scale": Number(0),
            "do_rotary": FLAG,
            "local_window_size": SIZE,
            "softcap": Number(0),
            "k_quant_type": frozenset({"PER_CHANNEL"}),
            "v_quant_type": frozenset({"PER_CHANNEL"}),
            "kv_cache_bit_width": Whole(8, 8),
        },
    ),
    ("com.microsoft", "MatMulIntegerToFloat"): Operator(microsoft.matmul_integer_to_float, (5, 5)),
    ("com.microsoft", "MatMulNBits"): Operator(
        microsoft.matmul_nbits,
        (3, 4),
        attributes={
            "K": SIZE,
            "N": SIZE,
            "bits": SIZE,
            "block_size": SIZE,
            "accuracy_level": Whole(0, 4),
        },
    ),
    ("com.microsoft", "QuickGelu"): Operator(plain.unary, (1, 1), attributes={"alpha": Number()}),
    ("com.microsoft", "RotaryEmbedding"): Operator(
        microsoft.rotary_embedding,
        (4, 4),
        attributes={"num_heads": SIZE, "rotary_embedding_dim": SIZE},
    ),
    ("com.microsoft", "SkipLayerNormalization"): Operator(
        microsoft.skip_norm, (4, 5), (4, 4), {"epsilon": _EPSILON}, frozenset({4})
    ),
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): Operator(
        microsoft.skip_norm, (3, 4), (4, 4), {"epsilon": _EPSILON}, frozenset({3})
    ),
}

_ALPHA: dict[str, Allowed] = {"alpha": Number()}
_SCATTERED = frozenset({"none", "add", "mul", "max", "min"})

_TRACED: dict[str, Operator] = {
    **{
        name: Operator(plain.unary, (1, 1))
        for name in (
            "Ceil Erf Exp Floor HardSwish Log Reciprocal Round Sigmoid Sign Softplus Sqrt"
        ).split()
    },
    **{name: Operator(plain.unary, (1, 1), attributes=_ALPHA) for name in ("Elu", "LeakyRelu")},
    **{
        name: Operator(plain.over_axis, (1, 1), attributes={"axis": AXIS})
        for name in ("LogSoftmax", "Softmax")
    },
    **{
        name: Operator(plain.compare, (2, 2))
        for name in "And Greater GreaterOrEqual LessOrEqual Or Xor".split()
    },
    **{name: Operator(plain.truth, (1, 1)) for name in ("IsNaN", "Not")},
    **{
        name: Operator(plain.reduce_any, (1, 2), attributes=_REDUCED)
        for name in ("ReduceL2", "ReduceProd", "ReduceSumSquare")
    },
    **{
        name: Operator(
            plain.arg,
            (1, 1),
            attributes={"axis": AXIS, "keepdims": FLAG, "select_last_index": FLAG},
        )
        for name in ("ArgMax", "ArgMin")
    },
    "Clip": Operator(plain.clip, (1, 3), gaps=frozenset({1, 2})),
    "ConstantOfShape": Operator(plain.constant_of_shape, (1, 1), attributes={"value": Tensor}),
    "CumSum": Operator(plain.running_sum, (2, 2), attributes={"exclusive": FLAG, "reverse": FLAG}),
    "DequantizeLinear": Operator(dynamic.dequantize_linear, (3, 3)),
    "DynamicQuantizeLinear": Operator(dynamic.dynamic_quantize_linear, (1, 1), (3, 3)),
    "Equal": Operator(plain.is_equal, (2, 2)),
    "Flatten": Operator(plain.flatten, (1, 1), attributes={"axis": AXIS}),
    "GatherElements": Operator(plain.gather_elements, (2, 2), attributes={"axis": AXIS}),
    "GatherND": Operator(plain.gather_nd, (2, 2), attributes={"batch_dims": Whole(0, 7)}),
    "Gemm": Operator(
        plain.gemm,
        (2, 3),
        attributes={"alpha": Number(), "beta": Number(), "transA": FLAG, "transB": FLAG},
    ),
    "Identity": Operator(plain.identity, (1, 1)),
    "MatMulInteger": Operator(dynamic.matmul_integer, (4, 4)),
    "Min": Operator(plain.minimum, (1, COUNT)),
    "Mod": Operator(plain.modulo, (2, 2), attributes={"fmod": FLAG}),
    "NonZero": Operator(plain.non_zero, (1, 1)),
    "OneHot": Operator(plain.one_hot, (3, 3), attributes={"axis": AXIS}),
    "Pad": Operator(
        plain.pad,
        (2, 4),
        attributes={"mode": frozenset({"constant", "edge", "reflect"})},
        gaps=frozenset({2}),
    ),
    "ReduceMean": Operator(plain.reduce_to_one, (1, 2), attributes=_REDUCED),
    "ScatterElements": Operator(
        plain.scatter, (3, 3), attributes={"axis": AXIS, "reduction": _SCATTERED}
    ),
    "ScatterND": Operator(plain.scatter, (3, 3), attributes={"reduction": _SCATTERED}),
    "Size": Operator(plain.size, (1, 1)),
    "Tile": Operator(plain.tile, (2, 2)),
    "TopK": Operator(plain.top_k, (2, 2), (2, 2), {"axis": AXIS, "largest": FLAG, "sorted": FLAG}),
    "Transpose": Operator(plain.transpose, (1, 1), attributes={"perm": tuple}),
    "Trilu": Operator(plain.unary, (1, 2), attributes={"upper": FLAG}),
}
# What is other in a graph that reads an int8 cache in float32, and gives the new rows.
ROWS = {
    ATTENTION: replace(
        DECLARED[ATTENTION],
        rule=microsoft.attention_over_copy,
        inputs=(11, 11),
        attributes={
            name: allowed
            for name, allowed in DECLARED[ATTENTION].attributes.items()
            if name not in microsoft.INT8_CACHE
        },
    ),
    ("", "QuantizeLinear"): Operator(microsoft.quantize_rows, (3, 3)),
}
TRACED = DECLARED | {("", name): operator for name, operator in _TRACED.items()}
# Attention over a cache in place is another contract than a cache that the graph makes longer.
GROWN = {kind: operator for kind, operator in TRACED.items() if kind != ATTENTION}
