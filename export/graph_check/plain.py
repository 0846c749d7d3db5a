"""What the operators of ONNX make of their inputs: dtype, dimensions and bounds of every result.

One function for each kind of operator, named in ``operators``. What no run can get over is refused:
sizes that contradict each other, whole numbers divided by what may be 0 (the processor's own error
ends the process), sizes that nothing bounds. Source: ``docs/Operators.md`` of onnx 1.23.
"""

from __future__ import annotations

import math

from ..strict_json import quoted
from .call import Call
from .facts import (
    ONE,
    SMALL,
    WHOLE,
    Fact,
    Span,
    Spans,
    added,
    axis_of,
    broadcast,
    divided,
    elementwise,
    equal,
    fact,
    held,
    highest,
    hull,
    is_exact,
    larger,
    lowest,
    multiplied,
    remaining,
    same,
    shown,
    size_of,
    smaller,
    subtracted,
    vector,
)
from .facts import constant as constant_fact
from .onnx_file import BOOL, FLOAT, INT32, INT64, ITEM_BYTES, GraphRefused, Tensor
from .weights import check_tensor

WHOLE_NUMBERS = frozenset(dtype for dtype, span in WHOLE.items() if span[1] < math.inf)
TO_THE_END = 1 << 31  # an end of a slice from here on means: to the end

# Element by element -----------------------------------------------------------------------------


def unary(call: Call) -> Fact:
    """Something of the size and dtype of its first input."""
    x = call.fact(0)
    return fact(x.dtype, x.dims, most=x.most)


def over_axis(call: Call) -> Fact:
    """The same along one axis."""
    axis_of(call.integer("axis", -1), call.fact(0).rank)
    return unary(call)


def identity(call: Call) -> Fact:
    """The input."""
    return call.fact(0)


def truth(call: Call) -> Fact:
    """True or false for every element."""
    x = call.fact(0)
    return fact(BOOL, x.dims, most=x.most)


def negative(call: Call) -> Fact:
    """-x."""
    x = call.fact(0)
    zero = Fact(x.dtype, (), 1, (0, 0), ((0, 0),))
    return elementwise(subtracted, x.dtype, zero, x, x.dims)


def absolute(call: Call) -> Fact:
    """|x|."""
    x = call.fact(0)
    low, high = x.span
    return fact(x.dtype, x.dims, held((0, max(abs(low), abs(high))), x.dtype), x.most)


def clip(call: Call) -> Fact:
    """min(max(x, low), high), both optional."""
    x = call.fact(0)
    span = x.span
    if call.has(1):
        span = larger(span, call.fact(1).span)
    if call.has(2):
        span = smaller(span, call.fact(2).span)
    return fact(x.dtype, x.dims, span, x.most)


def cast(call: Call) -> Fact:
    """Of another dtype; what does not fit becomes any number."""
    x, to = call.fact(0), call.integer("to", 0)
    if to not in ITEM_BYTES:
        raise GraphRefused(f"a Cast to the type {to}", f"one of {', '.join(map(str, ITEM_BYTES))}")

    def changed(span: Span) -> Span:
        if to == BOOL:
            same_as_zero = equal(span, (0, 0))
            return 1 - same_as_zero[1], 1 - same_as_zero[0]
        if x.dtype in (INT64, INT32) or not all(map(math.isfinite, span)):
            return held(span, to)
        return held((math.trunc(span[0]), math.trunc(span[1])), to) if to in WHOLE_NUMBERS else span

    elements = tuple(map(changed, x.elements)) if x.elements is not None else None
    span = hull(elements) if elements is not None else changed(x.span)
    return Fact(to, x.dims, x.most, span, elements)


def _pair(call: Call) -> tuple[Fact, Fact, Spans]:
    a, b = call.fact(0), call.fact(1)
    return a, b, broadcast(a.dims, b.dims)


def add(call: Call) -> Fact:
    """a + b."""
    a, b, dims = _pair(call)
    return elementwise(added, a.dtype, a, b, dims)


def subtract(call: Call) -> Fact:
    """a - b."""
    a, b, dims = _pair(call)
    return elementwise(subtracted, a.dtype, a, b, dims)


def multiply(call: Call) -> Fact:
    """a · b."""
    a, b, dims = _pair(call)
    return elementwise(multiplied, a.dtype, a, b, dims)


def divide(call: Call) -> Fact:
    """a / b, of integers rounded towards zero."""
    a, b, dims = _pair(call)
    if a.dtype not in WHOLE_NUMBERS:
        return fact(a.dtype, dims)
    _check_divisor(b)
    return elementwise(divided, a.dtype, a, b, dims)


def modulo(call: Call) -> Fact:
    """a modulo b."""
    a, b, dims = _pair(call)
    if a.dtype not in WHOLE_NUMBERS:
        return fact(a.dtype, dims)
    _check_divisor(b)
    return elementwise(remaining, a.dtype, a, b, dims)


def _check_divisor(b: Fact) -> None:
    if b.span[0] < 1:
        raise GraphRefused(f"whole numbers divided by {shown(b.span)}", "by 1 or more")


def power(call: Call) -> Fact:
    """a to the b, of the dtype of a."""
    a, _, dims = _pair(call)
    return fact(a.dtype, dims)


def is_equal(call: Call) -> Fact:
    """a = b."""
    a, b, dims = _pair(call)
    return elementwise(equal, BOOL, a, b, dims)


def compare(call: Call) -> Fact:
    """Another comparison, or a logical operation."""
    return fact(BOOL, _pair(call)[2])


def maximum(call: Call) -> Fact:
    """The largest of all inputs."""
    return _of_all(call, largest=True)


def minimum(call: Call) -> Fact:
    """The smallest of all inputs."""
    return _of_all(call, largest=False)


def _of_all(call: Call, *, largest: bool) -> Fact:
    result = call.fact(0)
    for index in range(1, len(call.given)):
        other = call.fact(index)
        dims = broadcast(result.dims, other.dims)
        result = elementwise(larger if largest else smaller, result.dtype, result, other, dims)
    return result


def where(call: Call) -> Fact:
    """a where a condition holds, b elsewhere: either, unless the condition is known."""
    sides = [call.fact(index) for index in range(3)]
    a, b = sides[1:]
    dims = broadcast(sides[0].dims, broadcast(a.dims, b.dims))
    columns = [side.elements for side in sides if side.most == 1 or side.dims == dims]
    if len(columns) < 3 or None in columns:
        return fact(a.dtype, dims, _either(a.span, b.span))
    size = int(highest(dims))
    full = [(column or ()) * (size if len(column or ()) == 1 else 1) for column in columns]
    rows = zip(*full, strict=True)
    elements = tuple(
        _either(x, y) if not is_exact(known) else x if known[0] else y for known, x, y in rows
    )
    return Fact(a.dtype, dims, len(elements), hull(elements), elements)


def _either(a: Span, b: Span) -> Span:
    return min(a[0], b[0]), max(a[1], b[1])


# Sizes ------------------------------------------------------------------------------------------


def shape(call: Call) -> Fact:
    """The dimensions, or some of them."""
    dims = call.fact(0).dims
    end = call.node.attributes.get("end")
    assert end is None or isinstance(end, int)
    return vector(INT64, dims[call.integer("start", 0) : end])


def size(call: Call) -> Fact:
    """The number of elements."""
    x = call.fact(0)
    span = (lowest(x.dims), x.most)
    return Fact(INT64, (), 1, span, (span,))


def reshape(call: Call) -> Fact:
    """The same elements in other dimensions: 0 copies one, -1 takes what is left."""
    x, wanted = call.fact(0), call.elements(1)
    copies = not call.integer("allowzero", 0)
    dims: list[Span] = []
    rest: int | None = None
    over = list(x.dims)  # what is not copied
    new: list[Span] = []  # what is neither copied nor left over
    for i, span in enumerate(wanted):
        if span == (0, 0) and copies:
            if i >= x.rank:
                raise GraphRefused(f"a size copied from dimension {i} of {x.rank}", "one there is")
            dims.append(x.dims[i])
            over[i] = ONE
        elif span == (-1, -1) and rest is None:
            rest = i
            dims.append(ONE)
        else:
            # A size that may be 0 or -1 may copy a dimension, or take all that is left.
            dims.append(span if span[0] > 0 else (0, max(span[1], x.most)))
            new.append(dims[-1])
    if rest is not None:
        dims[rest] = _left_over(over, new, x.most)
    most = highest(dims)
    elements = x.elements if all(map(is_exact, dims)) else None
    if elements is not None and len(elements) != most:
        raise GraphRefused(f"{len(elements)} elements in {' × '.join(map(shown, dims))}", "as many")
    return Fact(x.dtype, tuple(dims), min(x.most, most), x.span, elements)


def _left_over(over: list[Span], new: list[Span], most: float) -> Span:
    """The product of ``over`` divided by that of ``new``; what stands in both cancels out."""
    new = [span for span in new if span != ONE]
    rest = []
    for span in over:
        if span == ONE:
            continue
        matches = [i for i, other in enumerate(new) if other is span or _are_exactly(other, span)]
        if matches:
            del new[matches[0]]
        else:
            rest.append(span)
    if len(rest) == 1 and not new:
        return rest[0]
    low = lowest(rest) // max(1, highest(new)) if math.isfinite(highest(new)) else 0
    high = min(most, highest(rest)) // max(1, lowest(new))
    return low, max(low, high)


def _are_exactly(a: Span, b: Span) -> bool:
    return a == b and is_exact(a)


def flatten(call: Call) -> Fact:
    """Two dimensions: those before an axis, and the others."""
    x = call.fact(0)
    axis = call.integer("axis", 1)
    axis = x.rank if axis == x.rank else axis_of(axis, x.rank)
    parts = (x.dims[:axis], x.dims[axis:])
    return fact(x.dtype, tuple((lowest(part), highest(part)) for part in parts), x.span, x.most)


def squeeze(call: Call) -> Fact:
    """Without some dimensions of 1, or all of them."""
    x = call.fact(0)
    if call.has(1):
        gone = {axis_of(axis, x.rank) for axis in call.numbers(1)}
    elif all(low == high or low > 1 for low, high in x.dims):
        gone = {axis for axis, span in enumerate(x.dims) if span == ONE}
    else:
        raise GraphRefused("dimensions of 1 that are not known beforehand", "their axes")
    for axis in gone:
        same(x.dims[axis], ONE, "a dimension left out")
    dims = tuple(span for axis, span in enumerate(x.dims) if axis not in gone)
    return x._replace(dims=dims)


def unsqueeze(call: Call) -> Fact:
    """With more dimensions of 1."""
    x, axes = call.fact(0), call.numbers(1)
    dims = list(x.dims)
    for axis in sorted(axis_of(axis, x.rank + len(axes)) for axis in axes):
        dims.insert(axis, ONE)
    if len(dims) != x.rank + len(axes):
        raise GraphRefused("an axis twice", "each once")
    return x._replace(dims=tuple(dims))


def transpose(call: Call) -> Fact:
    """The dimensions in another order."""
    x = call.fact(0)
    order = call.integers("perm")
    order = tuple(range(x.rank)[::-1]) if order is None else order
    if sorted(order) != list(range(x.rank)):
        raise GraphRefused(f"perm {order[:9]!r:.80} of {x.rank} dimensions", "each of them once")
    dims = tuple(x.dims[axis] for axis in order)
    return x._replace(dims=dims, elements=x.elements if x.rank < 2 else None)


def concat(call: Call) -> Fact:
    """All inputs side by side along an axis."""
    parts = [call.fact(index) for index in range(len(call.given))]
    first = parts[0]
    axis = axis_of(call.integer("axis", 0), first.rank)
    dims = list(first.dims)
    for part in parts[1:]:
        if part.rank != first.rank:
            raise GraphRefused(f"{part.rank} and {first.rank} dimensions joined", "as many")
        dims = [
            added(a, b) if i == axis else same(a, b, "what is joined")
            for i, (a, b) in enumerate(zip(dims, part.dims, strict=True))
        ]
    elements: Spans = ()
    for part in parts:
        if part.elements is None or part.rank != 1:
            span = hull([part.span for part in parts])
            count = sum(part.most for part in parts)
            return fact(first.dtype, tuple(dims), span, count)
        elements += part.elements
    return vector(first.dtype, elements)


def split(call: Call) -> tuple[Fact, ...]:
    """Parts along an axis, of given or of equal sizes."""
    x, number = call.fact(0), len(call.node.outputs)
    axis = axis_of(call.integer("axis", 0), x.rank)
    if call.has(1):
        sizes: Spans = call.elements(1)
        same(x.dims[axis], (sum(s[0] for s in sizes), sum(s[1] for s in sizes)), "what is split")
    else:
        if call.integer("num_outputs", number) != number:
            raise GraphRefused(f"{number} outputs", f"num_outputs {call.integer('num_outputs', 0)}")
        low, high = x.dims[axis]
        sizes = ((low // number, -(-high // number)),) * number
    if len(sizes) != number:
        raise GraphRefused(f"{len(sizes)} sizes for {number} parts", "as many")
    parts = []
    start: float = 0
    for low, high in sizes:
        dims = (*x.dims[:axis], size_of((low, high)), *x.dims[axis + 1 :])
        part = fact(x.dtype, dims, x.span, x.most)
        if x.elements is not None and x.rank == 1 and all(map(is_exact, sizes)):
            part = part._replace(elements=x.elements[int(start) : int(start + low)])
        parts.append(part)
        start += low
    return tuple(parts)


def slice_(call: Call) -> Fact:
    """From a start to an end, along some axes."""
    x, starts, ends = call.fact(0), call.elements(1), call.elements(2)
    axes = call.numbers(3) if call.has(3) else list(range(len(starts)))
    steps = call.numbers(4) if call.has(4) else [1] * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        raise GraphRefused(
            f"{len(starts)} starts, {len(ends)} ends, steps {steps[:9]!r:.80}", "a slice"
        )
    dims, elements = list(x.dims), x.elements if x.rank == 1 else None
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis = axis_of(axis, x.rank)
        whole = dims[axis]
        dims[axis] = _sliced(whole, start, end, step)
        exact = is_exact(start) and is_exact(end) and is_exact(whole)
        if elements is not None and exact:
            elements = elements[int(start[0]) : int(end[0]) : step]
        else:
            elements = None
    result = fact(x.dtype, tuple(dims), x.span, x.most)
    if elements is None or len(elements) != dims[0][0]:
        return result
    return result._replace(elements=elements, span=hull(elements))


def _sliced(whole: Span, start: Span, end: Span, step: int) -> Span:
    """What is left of a dimension."""
    if is_exact(start) and is_exact(end) and is_exact(whole):
        left = len(range(int(whole[0]))[int(start[0]) : int(end[0]) : step])
        return left, left
    if step == 1 and start == (0, 0) and end[0] >= TO_THE_END:
        return whole
    most = whole[1]
    if step == 1 and start[0] >= 0 and end[0] >= 0:
        most = min(most, max(0, end[1] - start[0]))
    return 0, most


def expand(call: Call) -> Fact:
    """Stretched to other dimensions."""
    x = call.fact(0)
    dims = broadcast(x.dims, tuple(map(size_of, call.elements(1))))
    if x.most == 1 and x.elements is not None and all(map(is_exact, dims)):
        count = int(highest(dims))
        if count <= SMALL:
            return Fact(x.dtype, dims, count, x.span, x.elements * count)
    return fact(x.dtype, dims, x.span)


def tile(call: Call) -> Fact:
    """Repeated along every axis."""
    x, times = call.fact(0), call.elements(1)
    if len(times) != x.rank:
        raise GraphRefused(f"{len(times)} repetitions of {x.rank} dimensions", "as many")
    dims = tuple(multiplied(a, size_of(b)) for a, b in zip(x.dims, times, strict=True))
    return fact(x.dtype, dims, x.span)


def constant_of_shape(call: Call) -> Fact:
    """One number everywhere."""
    dims = tuple(map(size_of, call.elements(0)))
    value = call.node.attributes.get("value")
    if value is None:
        return fact(FLOAT, dims)
    assert isinstance(value, Tensor)
    check_tensor(value)
    one = constant_fact(value)
    if one.most != 1 or value.external:
        where = f"in {value.external[:4]!r:.120}" if value.external else "in the graph"
        raise GraphRefused(f"a value of {value.dims} {where}", "one number in the graph")
    count = highest(dims)
    exact = one.elements is not None and all(map(is_exact, dims)) and count <= SMALL
    elements = one.elements * int(count) if exact and one.elements is not None else None
    return Fact(one.dtype, dims, count, one.span, elements)


def range_(call: Call) -> Fact:
    """Numbers from a start to a limit."""
    start, limit, delta = call.fact(0), call.fact(1), call.fact(2)
    if not is_exact(delta.span) or delta.span[0] == 0 or math.isinf(delta.span[0]):
        raise GraphRefused(f"steps of {shown(delta.span)}", "a fixed number but 0")
    step = delta.span[0]
    spread = subtracted(limit.span, start.span) if step > 0 else subtracted(start.span, limit.span)
    length = size_of(spread)
    if abs(step) != 1 or start.dtype not in WHOLE_NUMBERS:
        ends = [end / abs(step) for end in length]
        low, high = (math.ceil(end) if math.isfinite(end) else end for end in ends)
        length = (low, high)
    return fact(start.dtype, (length,), hull((start.span, limit.span)))


def non_zero(call: Call) -> Fact:
    """Where the elements are that are not 0: any number of them."""
    x = call.fact(0)
    span = (0, max((high for _, high in x.dims), default=1))
    return fact(INT64, ((x.rank, x.rank), (0, x.most)), span)


# Choosing ---------------------------------------------------------------------------------------


def gather(call: Call) -> Fact:
    """The slices of an axis that indices name."""
    x, at = call.fact(0), call.fact(1)
    axis = axis_of(call.integer("axis", 0), x.rank)
    dims = (*x.dims[:axis], *at.dims, *x.dims[axis + 1 :])
    if x.elements is not None and x.rank == 1 and at.elements is not None:
        elements = tuple(_picked(x.elements, index) for index in at.elements)
        return Fact(x.dtype, dims, len(elements), hull(elements), elements)
    return fact(x.dtype, dims, x.span)


def _picked(elements: Spans, index: Span) -> Span:
    if is_exact(index) and -len(elements) <= index[0] < len(elements):
        return elements[int(index[0])]
    return hull(elements)


def gather_elements(call: Call) -> Fact:
    """One element for every index."""
    x, at = call.fact(0), call.fact(1)
    axis_of(call.integer("axis", 0), x.rank)
    return fact(x.dtype, at.dims, x.span, at.most)


def gather_nd(call: Call) -> Fact:
    """The slices that tuples of indices name."""
    x, at = call.fact(0), call.fact(1)
    batch = call.integer("batch_dims", 0)
    last = at.dims[-1] if at.rank else ONE
    if not is_exact(last) or not 0 <= batch < at.rank or batch + last[0] > x.rank:
        raise GraphRefused(f"indices of {shown(last)} into {x.rank} dimensions", "at most as many")
    return fact(x.dtype, at.dims[:-1] + x.dims[batch + int(last[0]) :], x.span)


def scatter(call: Call) -> Fact:
    """A copy with some elements replaced, or added to."""
    x, updates = call.fact(0), call.fact(2)
    if call.node.attributes.get("reduction", "none") != "none":
        return unary(call)
    return fact(x.dtype, x.dims, hull((x.span, updates.span)), x.most)


def top_k(call: Call) -> tuple[Fact, ...]:
    """The k largest along an axis, and where they are."""
    x = call.fact(0)
    axis = axis_of(call.integer("axis", -1), x.rank)
    wanted = call.element(1)
    most = smaller(size_of(wanted), x.dims[axis])
    dims = (*x.dims[:axis], most, *x.dims[axis + 1 :])
    return fact(x.dtype, dims, x.span), fact(INT64, dims, (0, x.dims[axis][1]))


def arg(call: Call) -> Fact:
    """Where the largest or smallest is along an axis."""
    x = call.fact(0)
    axis = axis_of(call.integer("axis", 0), x.rank)
    kept = (ONE,) if call.integer("keepdims", 1) else ()
    dims = (*x.dims[:axis], *kept, *x.dims[axis + 1 :])
    return fact(INT64, dims, (0, max(0, x.dims[axis][1] - 1)))


def one_hot(call: Call) -> Fact:
    """A new axis, one of whose elements is on."""
    at, values = call.fact(0), call.fact(2)
    depth = call.element(1)
    axis = axis_of(call.integer("axis", -1), at.rank + 1)
    dims = (*at.dims[:axis], size_of(depth), *at.dims[axis:])
    return fact(values.dtype, dims, values.span)


def pad(call: Call) -> Fact:
    """With more elements before and behind."""
    x, widths = call.fact(0), call.elements(1)
    axes = call.numbers(3) if call.has(3) else list(range(x.rank))
    if len(widths) != 2 * len(axes):
        raise GraphRefused(f"{len(widths)} widths for {len(axes)} axes", "two for each")
    dims = list(x.dims)
    for i, axis in enumerate(axes):
        axis = axis_of(axis, x.rank)
        dims[axis] = size_of(added(dims[axis], added(widths[i], widths[i + len(axes)])))
    return fact(x.dtype, tuple(dims))


# Reducing and multiplying -----------------------------------------------------------------------


def running_sum(call: Call) -> Fact:
    """The sums along an axis up to every place."""
    x = call.fact(0)
    axis = call.element(1)
    if not is_exact(axis):
        raise GraphRefused(f"an axis of {shown(axis)}", "a fixed one")
    length = x.dims[axis_of(axis[0], x.rank)]
    span = hull([x.span, multiplied(x.span, length), (0, 0)])
    return fact(x.dtype, x.dims, held(span, x.dtype), x.most)


def reduce_to_one(call: Call) -> Fact:
    """Something between the smallest and the largest, along axes."""
    x, dims, _ = _reduced(call)
    return fact(x.dtype, dims, x.span, x.most)


def reduce_sum(call: Call) -> Fact:
    """The sum along axes."""
    x, dims, gone = _reduced(call)
    return fact(x.dtype, dims, held(hull([multiplied(x.span, gone), x.span]), x.dtype), x.most)


def reduce_any(call: Call) -> Fact:
    """Any other reduction along axes."""
    x, dims, _ = _reduced(call)
    if x.elements is not None and not dims and call.node.operator == "ReduceProd":
        product = ONE
        for element in x.elements:
            product = multiplied(product, element)
        span = held(product, x.dtype)
        return Fact(x.dtype, dims, 1, span, (span,))
    return fact(x.dtype, dims, most=x.most)


def _reduced(call: Call) -> tuple[Fact, Spans, Span]:
    """The input, the dimensions that are left, and how many elements become one."""
    x = call.fact(0)
    axes = call.numbers(1) if call.has(1) else []
    if not axes and not call.integer("noop_with_empty_axes", 0):
        axes = list(range(x.rank))
    gone = {axis_of(axis, x.rank) for axis in axes}
    kept = call.integer("keepdims", 1)
    dims = tuple(
        ONE if axis in gone else span
        for axis, span in enumerate(x.dims)
        if kept or axis not in gone
    )
    lost = [span for axis, span in enumerate(x.dims) if axis in gone]
    return x, dims, (lowest(lost), highest(lost))


def matmul(call: Call) -> Fact:
    """Rows times columns, for every pair of matrices."""
    a, b = call.fact(0), call.fact(1)
    left, right = a.dims, b.dims
    if not left or not right:
        raise GraphRefused("a product of a single number", "of vectors or matrices")
    left = (ONE, *left) if a.rank == 1 else left
    right = (*right, ONE) if b.rank == 1 else right
    same(left[-1], right[-2], "a product")
    dims = (
        *broadcast(left[:-2], right[:-2]),
        *(left[-2:-1] if a.rank > 1 else ()),
        *(right[-1:] if b.rank > 1 else ()),
    )
    return fact(a.dtype, dims)


def gemm(call: Call) -> Fact:
    """x · W + b of two matrices."""
    a, b = call.fact(0), call.fact(1)
    if a.rank != 2 or b.rank != 2:
        raise GraphRefused(f"a product of {a.rank} and {b.rank} dimensions", "of two matrices")
    rows, inner = a.dims[::-1] if call.integer("transA", 0) else a.dims
    other, columns = b.dims[::-1] if call.integer("transB", 0) else b.dims
    same(inner, other, "a product")
    dims = (rows, columns)
    if call.has(2):
        dims = broadcast(dims, call.fact(2).dims)  # type: ignore[assignment]
    return fact(a.dtype, dims)


def norm(call: Call) -> Fact:
    """Of the last axis, with a weight and perhaps a bias for each of its elements."""
    x = call.fact(0)
    if axis_of(call.integer("axis", -1), x.rank) != x.rank - 1:
        raise GraphRefused(f"a norm over axis {call.integer('axis', -1)}", "the last")
    for index in range(1, len(call.given)):
        if call.has(index):
            check_vector(call, index, x.dims[-1])
    return unary(call)


def check_vector(call: Call, index: int, length: Span) -> None:
    """Raises GraphRefused unless the input ``index`` has one dimension of this length."""
    found = call.fact(index)
    if found.rank != 1:
        raise GraphRefused(f"{found.rank} dimensions of {quoted(call.node.inputs[index])}", "one")
    same(found.dims[0], length, repr(call.node.inputs[index])[:80])
