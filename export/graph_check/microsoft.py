"""What ONNX Runtime's own operators make of their inputs, and what they must be given.

These kernels take sizes from attributes, and do not all compare them with the arrays that they are
given: so here every size is compared, with the manifest's or with an initializer's. Letters: H
heads, K key/value heads (of a product: input features), E head size, N output features.
Source: ``docs/ContribOperators.md`` of onnxruntime 1.32; the layouts are those of ``quantize``.
"""

from __future__ import annotations

import math
import struct

from ..strict_json import quoted
from .call import Call
from .facts import NEW, ONE, TOTAL, Fact, Span, Spans, broadcast, fact, is_exact, same, shown
from .onnx_file import FLOAT, INT8, INT32, UINT8, GraphRefused, Tensor, type_name
from .plain import check_vector, unary

BLOCK_SIZES = (16, 32, 64, 128, 256)
# What an attention says of a cache of int8, and nothing of one of float32; and how many inputs.
INT8_CACHE: dict[str, str | int] = {
    "k_quant_type": "PER_CHANNEL",
    "v_quant_type": "PER_CHANNEL",
    "kv_cache_bit_width": 8,
}
CACHE_INPUTS = {FLOAT: 11, INT8: 14}
ROTATED_STEP = 8  # the attention kernel rotates pairs in eights


def group_query_attention(call: Call) -> tuple[Fact, ...]:
    """(B, S, H·E), and the longer cache: (B, K, T, E) twice.

    There are as many queries, keys and values as new tokens, whatever these are.
    """
    for index in (3, 4):
        past = call.node.inputs[index]
        if call.node.outputs[index - 2] != past.replace("past_key_values.", "present."):
            raise GraphRefused(
                f"{quoted(call.node.outputs[index - 2])} made of {quoted(past)}", "its own past"
            )
    attended = _attended(call)
    cache = fact(_cached(call), call.fact(3).dims)
    return attended, cache, cache


def attention_over_copy(call: Call) -> tuple[Fact, ...]:
    """As above over a float32 copy of the past, which ``rows`` looks at: (B, K, T, E) twice."""
    attended = _attended(call)
    for index in (3, 4):
        past = call.fact(index)
        expected = call.decoder.kv_heads, call.decoder.head_size
        if past.dtype != FLOAT or past.dims[1::2] != tuple(map(_exact, expected)):
            raise GraphRefused(
                f"a past of {type_name(past.dtype)} {', '.join(map(shown, past.dims))}",
                f"float32 with {expected[0]} in dimension 1 and {expected[1]} in dimension 3",
            )
    dims = call.fact(3).dims
    cache = fact(FLOAT, (dims[0], dims[1], TOTAL, dims[3]))
    return attended, cache, cache


def _attended(call: Call) -> Fact:
    """(B, S, H·E) of an attention whose inputs but the cache are as they must be."""
    decoder = call.decoder
    heads, kv_heads, size = decoder.num_heads, decoder.kv_heads, decoder.head_size
    _attribute(call, "num_heads", heads)
    _attribute(call, "kv_num_heads", kv_heads)
    query = call.fact(0)
    widths = [heads * size, kv_heads * size, kv_heads * size]
    if not call.has(1) and not call.has(2):  # all three side by side
        widths = [sum(widths)]
    for index, width in enumerate(widths):
        _width(call, index, width)
        if call.fact(index).dims[1] is not NEW:
            raise GraphRefused(
                f"{shown(call.fact(index).dims[1])} rows of {quoted(call.node.inputs[index])}",
                "one for each new token",
            )
    _lengths(call)
    _rotary(call)
    return fact(FLOAT, (*query.dims[:2], _exact(heads * size)))


def _cached(call: Call) -> int:
    """The dtype of the cache: float32, or int8 with a scale for every channel of each."""
    dtype = call.fact(3).dtype
    given = {
        name: call.node.attributes[name] for name in INT8_CACHE if name in call.node.attributes
    }
    expected = INT8_CACHE if dtype == INT8 else {}
    if given != expected or dtype != call.fact(4).dtype or len(call.given) != CACHE_INPUTS[dtype]:
        raise GraphRefused(
            f"a cache of {type_name(dtype)} with {given} and {len(call.given)} inputs",
            f"{expected} and {CACHE_INPUTS[dtype]}",
        )
    if call.has(11):
        raise GraphRefused("an input 11", "none")
    if dtype == INT8:
        for index in (12, 13):
            initializer(
                call, index, FLOAT, 4, (1, call.decoder.kv_heads, 1, call.decoder.head_size)
            )
            check_scales(call.initializers[call.node.inputs[index]])
    return dtype


def check_scales(tensor: Tensor) -> None:
    """Of a cache: positive numbers in the graph's own file."""
    name, data = tensor.name, tensor.data
    numbers = struct.unpack(f"<{len(data) // 4}f", data) if data is not None else (math.nan,)
    if wrong := [number for number in numbers if not 0 < number < math.inf]:
        raise GraphRefused(
            f"a scale of {wrong[0]} in {quoted(name)}", "positive ones in the graph's own file"
        )


def _lengths(call: Call) -> None:
    """The two lengths are compared with the mask's own formula in ``masks``; here their form."""
    for index, rank in ((5, 1), (6, 0)):
        found = call.fact(index)
        if found.dtype != INT32 or found.rank != rank:
            raise GraphRefused(
                f"{quoted(call.node.inputs[index])} of {type_name(found.dtype)} in {found.rank} "
                "dimensions as a length",
                f"int32 in {rank}",
            )
    if call.has(9):
        raise GraphRefused("an attention with position_ids", "without")
    bias = call.fact(10)
    heads = call.decoder.num_heads
    if bias.dtype != FLOAT or bias.rank != 4 or bias.dims[1][1] not in (1, heads):
        raise GraphRefused(
            f"an attention bias of {', '.join(map(shown, bias.dims))}", "(B, 1 or H, S, T)"
        )


def _rotary(call: Call) -> None:
    rotates = call.integer("do_rotary", 0)
    if bool(rotates) != call.has(7) or call.has(7) != call.has(8):
        raise GraphRefused(f"do_rotary {rotates} with other tables", "1 with both or 0 with none")
    if rotates:
        half = _tables(call, 7, 8)
        if half % ROTATED_STEP:
            raise GraphRefused(f"{2 * half} rotated numbers in a head", "a multiple of 16")


def _tables(call: Call, *indices: int) -> int:
    """Half the rotated numbers, of tables with a row for every position."""
    halves = []
    for index in indices:
        rows, half = initializer(call, index, FLOAT, 2)
        if rows < call.decoder.context_length:
            raise GraphRefused(
                f"{rows} rotations in {quoted(call.node.inputs[index])}",
                f"one for each of {call.decoder.context_length} positions",
            )
        if not 0 < 2 * half <= call.decoder.head_size:
            raise GraphRefused(
                f"{2 * half} rotated numbers in a head", f"2 to {call.decoder.head_size}"
            )
        halves.append(half)
    if len(set(halves)) > 1:
        raise GraphRefused(f"tables of {halves}", "one size")
    return halves[0]


def rotary_embedding(call: Call) -> Fact:
    """x (B, S, heads·E), its heads rotated by their positions."""
    heads = call.integer("num_heads", 0)
    if heads not in (call.decoder.num_heads, call.decoder.kv_heads):
        raise GraphRefused(
            f"num_heads {heads}", f"{call.decoder.num_heads} or {call.decoder.kv_heads}"
        )
    _width(call, 0, heads * call.decoder.head_size)
    if call.node.inputs[1] != "position_ids":
        raise GraphRefused(f"rotations by {quoted(call.node.inputs[1])}", "by position_ids")
    _attribute(call, "rotary_embedding_dim", 2 * _tables(call, 2, 3))
    return unary(call)


def rotation_by_angles(call: Call) -> Fact:
    """x (B, S, heads·E), its heads rotated by cosines and sines (B, S, R / 2) of every token."""
    heads, size = call.integer("num_heads", 0), call.decoder.head_size
    rotated = call.integer("rotary_embedding_dim", 0)
    if heads not in (call.decoder.num_heads, call.decoder.kv_heads):
        raise GraphRefused(
            f"num_heads {heads}", f"{call.decoder.num_heads} or {call.decoder.kv_heads}"
        )
    if rotated % 2 or not 0 < rotated <= size:
        raise GraphRefused(f"{rotated} rotated numbers in a head", f"an even number up to {size}")
    _width(call, 0, heads * size)
    for index in (1, 2):
        _width(call, index, rotated // 2)
        if call.fact(index).dims[:2] != call.fact(0).dims[:2] or call.fact(index).dtype != FLOAT:
            raise GraphRefused(
                f"angles {quoted(call.node.inputs[index])} of other tokens", "of the same"
            )
    return unary(call)


# Products with weights ---------------------------------------------------------------------------


def fused_matmul(call: Call) -> Fact:
    """x (…, K) times a weight (N, K), or (K, N): (…, N)."""
    rows, columns = initializer(call, 1, FLOAT, 2)
    outputs, inputs = (rows, columns) if call.integer("transB", 0) else (columns, rows)
    return _product(call, inputs, outputs)


def matmul_nbits(call: Call) -> Fact:
    """x (…, K) times packed weights of N rows: (…, N)."""
    outputs, inputs = call.integer("N", 0), call.integer("K", 0)
    bits, block = _packing(call)
    if inputs < 1 or outputs < 1:
        raise GraphRefused(f"K {inputs} and N {outputs}", "1 or more of each")
    blocks = -(-inputs // block)  # the kernel reads no further than K in the last one
    initializer(call, 1, UINT8, 3, (outputs, blocks, block * bits // 8))
    initializer(call, 2, FLOAT, 2, (outputs, blocks))
    _zero_points(call, outputs, blocks, bits)
    return _product(call, inputs, outputs)


def gather_block_quantized(call: Call) -> Fact:
    """Rows of packed weights by index: (…, K)."""
    bits, block = _packing(call)
    rows, width = initializer(call, 0, UINT8, 2)
    size = width * 8 // bits
    if size < 1 or size % block:
        raise GraphRefused(f"rows of {size} numbers in blocks of {block}", "whole blocks")
    initializer(call, 2, FLOAT, 2, (rows, size // block))
    _zero_points(call, rows, size // block, bits)
    return fact(FLOAT, (*call.fact(1).dims, _exact(size)))


def _packing(call: Call) -> tuple[int, int]:
    bits, block = call.integer("bits", 0), call.integer("block_size", 0)
    if bits not in (4, 8) or block not in BLOCK_SIZES:
        raise GraphRefused(
            f"blocks of {block} numbers of {bits} bits",
            f"of {', '.join(map(str, BLOCK_SIZES))} numbers of 4 or 8",
        )
    return bits, block


def _zero_points(call: Call, rows: int, blocks: int, bits: int) -> None:
    """Where they are given: as packed as the numbers, every row in whole bytes."""
    if call.has(3):
        initializer(call, 3, UINT8, 2, (rows, -(-blocks * bits // 8)))


def matmul_integer_to_float(call: Call) -> Fact:
    """x (…, K) of uint8 times int8 weights (K, N), one scale for each of the N: (…, N)."""
    inputs, outputs = initializer(call, 1, INT8, 2)
    number(call, 2, FLOAT)
    initializer(call, 3, FLOAT, 1, (outputs,))
    number(call, 4, UINT8)
    if call.fact(0).dtype != UINT8:
        raise GraphRefused(f"a product of {type_name(call.fact(0).dtype)}", "uint8")
    return _product(call, inputs, outputs)


def quantize_linear(call: Call, dtype: int = UINT8) -> Fact:
    """x as uint8 or another ``dtype``, by one scale and zero point."""
    scale = number(call, 1, FLOAT)
    if not 0 < scale[0] < math.inf:
        raise GraphRefused(f"a scale of {shown(scale)}", "a positive number")
    number(call, 2, dtype)
    x = call.fact(0)
    return fact(dtype, x.dims, most=x.most)


def quantize_rows(call: Call) -> Fact:
    """Likewise; what a cache keeps is of int8."""
    return quantize_linear(call, UINT8 if call.fact(2).dtype == UINT8 else INT8)


def _product(call: Call, inputs: int, outputs: int) -> Fact:
    x = call.fact(0)
    if x.rank < 2:
        raise GraphRefused(f"a product of {x.rank} dimensions", "of 2 or more")
    same(x.dims[-1], _exact(inputs), "a product")
    return fact(FLOAT, (*x.dims[:-1], _exact(outputs)))


# Element by element ------------------------------------------------------------------------------


def gelu_of_sum(call: Call) -> Fact:
    """An activation of x + bias, where the bias may be left out."""
    if call.has(1):
        _check_last(call, 1)
    return unary(call)


def skip_norm(call: Call) -> tuple[Fact, ...]:
    """The norm of x + skip + bias, what it was computed with, and the sum."""
    x, skip = call.fact(0), call.fact(1)
    if x.rank != 3 or skip.rank != 3:
        raise GraphRefused(f"a norm of {x.rank} and {skip.rank} dimensions", "of 3")
    dims = broadcast(x.dims, skip.dims)
    same(x.dims[2], skip.dims[2], "a residual")
    for index in range(2, len(call.given)):
        if call.has(index):
            _check_last(call, index)
    rows = fact(FLOAT, (*dims[:2], ONE))
    return fact(FLOAT, dims), rows, rows, fact(FLOAT, dims)


def _check_last(call: Call, index: int) -> None:
    """One number for each element of the last axis of x, from an initializer."""
    x = call.fact(0)
    if not x.rank:
        raise GraphRefused("a single number", "a vector")
    initializer(call, index, FLOAT, 1)
    check_vector(call, index, x.dims[-1])


# What is given -----------------------------------------------------------------------------------


def _exact(size: int) -> Span:
    return size, size


def _attribute(call: Call, name: str, expected: int) -> None:
    if call.integer(name, 0) != expected:
        raise GraphRefused(f"{name} {call.integer(name, 0)}", f"{expected}")


def _width(call: Call, index: int, expected: int) -> None:
    """(B, S, expected) at the input ``index``."""
    found = call.fact(index)
    dims: Spans = found.dims
    if len(dims) != 3 or dims[2] != _exact(expected):
        raise GraphRefused(
            f"{quoted(call.node.inputs[index])} of {', '.join(map(shown, dims))}",
            f"3 dimensions, the last of them {expected}",
        )


def initializer(
    call: Call, index: int, dtype: int, rank: int, expected: tuple[int, ...] | None = None
) -> tuple[int, ...]:
    """The dimensions of a weight that the file holds."""
    name = call.node.inputs[index]
    tensor = call.initializers.get(name)
    if tensor is None:
        raise GraphRefused(f"{quoted(name)}, which is computed", "a weight of the file")
    dims = tensor.dims
    if tensor.dtype != dtype or len(dims) != rank or (expected is not None and dims != expected):
        raise GraphRefused(
            f"{quoted(name)} of {type_name(tensor.dtype)} {dims}",
            f"{type_name(dtype)} {expected or f'in {rank} dimensions'}",
        )
    return dims


def number(call: Call, index: int, dtype: int) -> Span:
    """A single number that the graph's own file holds."""
    initializer(call, index, dtype, 0)
    span = call.fact(index).span
    if not is_exact(span):
        raise GraphRefused(f"{quoted(call.node.inputs[index])} of {shown(span)}", "one number")
    return span
