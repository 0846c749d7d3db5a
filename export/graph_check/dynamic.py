"""Products of whole numbers as ONNX has them: what onnxruntime's ``quantize_dynamic`` writes.

    a, scale, zero = DynamicQuantizeLinear(x)          one scale for all of x
    y = Cast(MatMulInteger(a, weight, zero, weight_zero)) · (scale · weight_scale)

    x = DequantizeLinear(Gather(weight, ids), weight_scale, weight_zero)

A weight is int8 or uint8 with one scale and one zero point, that of a product perhaps with one for
each of its N columns. Source: ``docs/Operators.md`` of onnx 1.23.
"""

from __future__ import annotations

import math

from ..strict_json import quoted
from .call import Call
from .facts import Fact, fact, same, shown
from .microsoft import initializer, number
from .onnx_file import FLOAT, INT8, INT32, UINT8, GraphRefused, type_name

WEIGHTS = (INT8, UINT8)


def dequantize_linear(call: Call) -> Fact:
    """(x - zero point) · scale, in float32."""
    x = call.fact(0)
    _check_bytes(call, 0)
    scale = number(call, 1, FLOAT)
    if not 0 < scale[0] < math.inf:
        raise GraphRefused(f"a scale of {shown(scale)}", "a positive number")
    number(call, 2, x.dtype)
    return fact(FLOAT, x.dims, most=x.most)


def dynamic_quantize_linear(call: Call) -> tuple[Fact, ...]:
    """x as uint8, and the scale and the zero point that all of it has."""
    x = call.fact(0)
    if x.dtype != FLOAT:
        raise GraphRefused(f"quantizing of {type_name(x.dtype)}", "float32")
    return fact(UINT8, x.dims, most=x.most), fact(FLOAT, ()), fact(UINT8, ())


def matmul_integer(call: Call) -> Fact:
    """x (…, K) of uint8 times weights (K, N), with the zero points of both: (…, N) of int32."""
    x, weight, zero = call.fact(0), call.fact(1), call.fact(2)
    _check_bytes(call, 1)
    inputs, outputs = initializer(call, 1, weight.dtype, 2)
    if x.dtype != UINT8 or x.rank < 2:
        raise GraphRefused(
            f"a product of {type_name(x.dtype)} in {x.rank} dimensions", "uint8 in 2 or more"
        )
    same(x.dims[-1], (inputs, inputs), "a product")
    if (zero.dtype, zero.rank) != (UINT8, 0):
        raise GraphRefused(
            f"a zero point of {type_name(zero.dtype)} in {zero.rank} dimensions", "uint8 in 0"
        )
    if call.fact(3).rank:
        initializer(call, 3, weight.dtype, 1, (outputs,))
    else:
        initializer(call, 3, weight.dtype, 0)
    return fact(INT32, (*x.dims[:-1], (outputs, outputs)))


def _check_bytes(call: Call, index: int) -> None:
    dtype = call.fact(index).dtype
    if dtype not in WEIGHTS:
        raise GraphRefused(
            f"{quoted(call.node.inputs[index])} of {type_name(dtype)}", "int8 or uint8"
        )
