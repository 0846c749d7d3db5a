"""What is known of a value before anything is computed: its dtype, and bounds of all numbers.

A span (low, high) bounds a number, both ends included. Dimensions are spans, and so are the
elements of integers, because they become dimensions: of a small tensor each by itself, of a large
one all together. Every step takes bounds to bounds: what a graph can make of them at most, whatever
it decides while it runs.

Two sizes that must be the same number are the same object: the span of the new tokens stays that
one tuple wherever it goes. So every function that does not hand on a number makes a new tuple.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from .onnx_file import (
    BOOL,
    DOUBLE,
    FLOAT,
    FLOAT16,
    INT8,
    INT32,
    INT64,
    UINT8,
    GraphRefused,
    Tensor,
)

Span = tuple[float, float]
Spans = tuple[Span, ...]

# Tokens that a run is measured with: a chunk of a prompt, behind a short text.
NEW: Span = (1, 64)  # S
PAST: Span = (0, 256)  # P
TOTAL: Span = (1, 320)  # T = P + S
SMALL = 64  # elements that are followed one by one
UNKNOWN: Span = (-math.inf, math.inf)
TRUTH: Span = (0, 1)
ZERO: Span = (0, 0)
ONE: Span = (1, 1)
# Every number of a dtype; of floats also what is none.
WHOLE: dict[int, Span] = {
    INT64: (-(1 << 63), (1 << 63) - 1),
    INT32: (-(1 << 31), (1 << 31) - 1),
    INT8: (-128, 127),
    UINT8: (0, 255),
    BOOL: TRUTH,
    FLOAT: UNKNOWN,
    FLOAT16: UNKNOWN,
    DOUBLE: UNKNOWN,
}
_FORMATS = {INT64: "q", INT32: "i", INT8: "b", UINT8: "B", BOOL: "B", FLOAT: "f", DOUBLE: "d"}


class Fact(NamedTuple):
    """What is known of one value."""

    dtype: int
    dims: Spans
    most: float  # elements; may be less than the highest dimensions multiplied
    span: Span  # of all elements
    elements: Spans | None = None  # of each, in order, where ``dims`` is exact and they are few

    @property
    def rank(self) -> int:
        return len(self.dims)


def fact(dtype: int, dims: Spans, span: Span | None = None, most: float | None = None) -> Fact:
    """Of a value about whose elements no more is known than ``span``."""
    whole = highest(dims)
    low, high = span or WHOLE[dtype]
    return Fact(
        dtype,
        dims,
        whole if most is None else min(most, whole),
        (low, high),
        ((low, high),) if whole == lowest(dims) == 1 else None,
    )


def vector(dtype: int, elements: Spans) -> Fact:
    """Of a value of one dimension with these elements."""
    size = len(elements)
    followed = elements if size <= SMALL else None
    return Fact(dtype, ((size, size),), size, hull(elements), followed)


def constant(tensor: Tensor) -> Fact:
    """Of an initializer. Elements are looked at where they lie in the graph's own file."""
    dims = tuple((size, size) for size in tensor.dims)
    count = math.prod(tensor.dims)
    code = _FORMATS.get(tensor.dtype)
    if tensor.data is None or code is None or count > SMALL:
        return fact(tensor.dtype, dims)
    numbers = struct.unpack(f"<{count}{code}", tensor.data)
    if any(number != number for number in numbers):
        return fact(tensor.dtype, dims)
    if tensor.dtype == BOOL:
        numbers = tuple(number != 0 for number in numbers)
    elements = tuple((number, number) for number in numbers)
    return Fact(tensor.dtype, dims, count, hull(elements), elements)


# Spans ------------------------------------------------------------------------------------------


def highest(dims: Iterable[Span]) -> float:
    """The most elements that these dimensions can hold."""
    most: float = 1
    for _, high in dims:
        most *= high
    return most


def lowest(dims: Iterable[Span]) -> float:
    """The fewest."""
    fewest: float = 1
    for low, _ in dims:
        fewest *= low
    return fewest


def is_exact(span: Span) -> bool:
    """Whether only one number is left."""
    return span[0] == span[1]


def hull(spans: Sequence[Span]) -> Span:
    """From the lowest to the highest; (0, 0) of none."""
    if len(spans) < 2:
        return spans[0] if spans else ZERO
    return min(low for low, _ in spans), max(high for _, high in spans)


def held(span: Span, dtype: int) -> Span:
    """``span``, or all numbers where some do not fit the dtype and wrap around.

    What a float makes of its ends bounds what it makes of all between: rounding keeps the order.
    """
    if dtype in (FLOAT, FLOAT16):
        ends = _rounded(span[0], dtype), _rounded(span[1], dtype)
        return span if ends == span else UNKNOWN if any(map(math.isnan, ends)) else ends
    low, high = WHOLE[dtype]
    return span if low <= span[0] and span[1] <= high else (low, high)


def _rounded(number: float, dtype: int) -> float:
    code = "<f" if dtype == FLOAT else "<e"
    try:
        found: float = struct.unpack(code, struct.pack(code, number))[0]
    except OverflowError:
        return math.copysign(math.inf, number)
    return found


def size_of(span: Span) -> Span:
    """As a dimension, which is never negative."""
    return span if span[0] >= 0 else (0, max(0, span[1]))


def added(a: Span, b: Span) -> Span:
    """a + b."""
    if a == ZERO or b == ZERO:
        return a if b == ZERO else b
    if (a is PAST and b is NEW) or (a is NEW and b is PAST):
        return TOTAL
    return a[0] + b[0], a[1] + b[1]


def subtracted(a: Span, b: Span) -> Span:
    """a - b."""
    if b == ZERO:
        return a
    if a is TOTAL and (b is NEW or b is PAST):
        return PAST if b is NEW else NEW
    return (0, 0) if a is b else (a[0] - b[1], a[1] - b[0])


def multiplied(a: Span, b: Span) -> Span:
    """a · b."""
    if a == ONE or b == ONE:
        return a if b == ONE else b
    ends = [x * y for x in a for y in b]
    return UNKNOWN if any(end != end for end in ends) else (min(ends), max(ends))


def divided(a: Span, b: Span) -> Span:
    """a / b of integers, rounded towards zero; b is positive."""
    if b == ONE:
        return a
    ends = [x // y if x >= 0 else -(-x // y) for x in a for y in b]
    return min(ends), max(ends)


def remaining(a: Span, b: Span) -> Span:
    """a modulo b, whose sign may be that of a; b is positive."""
    return (0 if a[0] >= 0 else 1 - b[1]), b[1] - 1


def larger(a: Span, b: Span) -> Span:
    """max(a, b)."""
    return UNKNOWN if _endless(a, b) else (max(a[0], b[0]), max(a[1], b[1]))


def smaller(a: Span, b: Span) -> Span:
    """min(a, b)."""
    return UNKNOWN if _endless(a, b) else (min(a[0], b[0]), min(a[1], b[1]))


def _endless(*spans: Span) -> bool:
    """Whether there may be a float among them that is no number, and stays none."""
    return any(math.isinf(end) for span in spans for end in span)


def equal(a: Span, b: Span) -> Span:
    """Whether a is b: (1, 1), (0, 0) or perhaps."""
    if a is b or (a == b and is_exact(a)):
        return ONE
    return ZERO if a[1] < b[0] or b[1] < a[0] else TRUTH


# Dimensions -------------------------------------------------------------------------------------


def same(a: Span, b: Span, what: str) -> Span:
    """Of a dimension that two values must share; GraphRefused if they cannot."""
    if a is b:
        return a
    low, high = max(a[0], b[0]), min(a[1], b[1])
    if low > high:
        raise GraphRefused(f"sizes {shown(a)} and {shown(b)} of {what}", "the same size")
    return low, high


def broadcast(first: Spans, second: Spans) -> Spans:
    """Dimensions of an operation element by element, where a 1 is stretched."""
    if first is second:
        return first
    if len(first) < len(second):
        first, second = second, first
    skipped = len(first) - len(second)
    return first[:skipped] + tuple(
        _stretched(a, b) for a, b in zip(first[skipped:], second, strict=True)
    )


def _stretched(a: Span, b: Span) -> Span:
    if b == ONE or a is b:
        return a
    if a == ONE:
        return b
    if a[0] > 1 and b[0] > 1:
        return same(a, b, "a dimension")
    if a[0] > 1 or b[0] > 1:
        return a if a[0] > 1 else b
    return min(a[0], b[0]), max(a[1], b[1])


def axis_of(axis: float, rank: int) -> int:
    """``axis`` counted from the front; GraphRefused where there is none."""
    if not -rank <= axis < rank or axis != int(axis):
        raise GraphRefused(f"axis {axis} of {rank} dimensions", "one that there is")
    return int(axis) % rank


def elementwise(
    function: Callable[[Span, Span], Span], dtype: int, a: Fact, b: Fact, dims: Spans
) -> Fact:
    """Of ``function`` applied to each pair of elements."""
    first, second = a.elements, b.elements
    if first is None or second is None or not (1 in (len(first), len(second)) or a.dims == b.dims):
        return fact(dtype, dims, held(function(a.span, b.span), dtype))
    size = max(len(first), len(second)) if first and second else 0
    columns = [spans * size if len(spans) == 1 else spans[:size] for spans in (first, second)]
    elements = tuple(held(function(x, y), dtype) for x, y in zip(*columns, strict=True))
    return Fact(dtype, dims, len(elements), hull(elements), elements)


def shown(span: Span) -> str:
    """For error messages: 4, or 1 to 256."""
    return _number(span[0]) if is_exact(span) else f"{_number(span[0])} to {_number(span[1])}"


def _number(number: float) -> str:
    return f"{number:.15g}" if abs(number) < 1e300 or number in UNKNOWN else "more than 1e300"
