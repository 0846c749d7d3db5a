"""What can be known of a traced graph's shapes: sizes as numbers or symbols, node by node.

A trace computes its shapes at run time, by dozens of small nodes per layer, although nearly all of
them are fixed or one of four ``sizes``: batch, new tokens, past tokens, and the sum of the last
two. ``Symbols`` follows the nodes in order and remembers of every value its dtype, its dimensions,
and, where it is a small tensor, its elements: numbers, letters for those four, or products of both.
None stands for what is not known; an operator that is not listed gives nothing but that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .sizes import (
    BATCH,
    NEW,
    PAST,
    TOTAL,
    Dims,
    Size,
    add,
    broadcast,
    divide,
    equal,
    is_number,
    multiply,
    rest,
    subtract,
)

Elements = NDArray[np.object_]  # int, float, bool, a letter, or None

SMALL = 64  # elements that are followed
END = 1 << 31  # an end of a slice from here on means: to the end

COMPARISONS = frozenset({"And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not"})
# Operators whose result has the dimensions of their first input.
SAME = frozenset(
    "Abs Cast Clip Cos CumSum DequantizeLinear Dropout Erf Exp Gelu HardSwish Identity "
    "LayerNormalization Log Neg Not Reciprocal Relu ScatterElements ScatterND Sigmoid Sin Softmax "
    "Softplus Sqrt Tanh Trilu".split()
)
# Those whose results have always the same dtypes.
MADE = {
    **dict.fromkeys(["Shape", "NonZero", "ArgMax"], (ir.DataType.INT64,)),
    "DequantizeLinear": (ir.DataType.FLOAT,),
    "DynamicQuantizeLinear": (ir.DataType.UINT8, ir.DataType.FLOAT, ir.DataType.UINT8),
    "MatMulInteger": (ir.DataType.INT32,),
}
BROADCAST = COMPARISONS | frozenset("Add Div Max Min Mod Mul Or Pow Sub Where Xor".split())


class Symbols:
    """Knowledge about the values of one graph; ``visit`` every node in order."""

    def __init__(self, model: ir.Model) -> None:
        self.dims: dict[ir.Value, Dims] = {}
        self.elements: dict[ir.Value, Elements] = {}
        self.dtypes: dict[ir.Value, ir.DataType | None] = {}
        for value in model.graph.initializers.values():
            self.know_constant(value)
        for value in model.graph.inputs:
            self.dtypes[value] = value.dtype
            self.dims[value] = _input_dims(value)
        self._outputs = {
            value: _cache_dims(value)
            for value in model.graph.outputs
            if str(value.name).startswith("present.")
        }

    def know_constant(self, value: ir.Value) -> None:
        """Remembers an initializer."""
        tensor = value.const_value
        assert tensor is not None
        self.dtypes[value] = tensor.dtype
        self.dims[value] = tuple(int(size) for size in tensor.shape.numpy())
        limit = 1 if tensor.dtype.is_floating_point() else SMALL  # sizes are whole numbers
        if tensor.size <= limit and tensor.dtype in ELEMENT_TYPES:
            self.elements[value] = np.asarray(tensor.numpy()).astype(object)

    def size(self, value: ir.Value | None, axis: int) -> Size:
        """One dimension of ``value``; None if it is not known."""
        dims = self.dims.get(value) if value is not None else None
        return dims[axis] if dims is not None and -len(dims) <= axis < len(dims) else None

    def rank(self, value: ir.Value | None) -> int | None:
        """The number of dimensions."""
        dims = self.dims.get(value) if value is not None else None
        return None if dims is None else len(dims)

    def numbers(self, value: ir.Value | None) -> list[Any] | None:
        """The elements in order if each is a number, else None."""
        found = self.elements.get(value) if value is not None else None
        if found is None:
            return None
        flat = found.reshape(-1).tolist()
        return None if any(item is None or isinstance(item, str) for item in flat) else flat

    def visit(self, node: ir.Node) -> None:
        """Derives what can be known of the outputs of ``node``."""
        for value in node.outputs:
            self.dtypes[value] = self._dtype(node, value)
        elements = self._elements(node)
        if elements is not None:
            self.elements[node.outputs[0]] = elements
            self.dims[node.outputs[0]] = elements.shape
        else:
            for value, dims in zip(node.outputs, self._dims(node), strict=False):
                if dims is not None:
                    self.dims[value] = dims
        for value in node.outputs:
            if value in self._outputs:
                self.dims[value] = self._outputs[value]

    def _dtype(self, node: ir.Node, value: ir.Value) -> ir.DataType | None:
        if value.dtype is not None:
            return value.dtype
        if node.op_type == "Cast":
            return ir.DataType(node.attributes["to"].as_int())
        if node.op_type in MADE:
            return MADE[node.op_type][node.outputs.index(value)]
        if node.op_type in COMPARISONS:
            return ir.DataType.BOOL
        if node.op_type == "ConstantOfShape":
            fill = node.attributes.get("value")
            return fill.as_tensor().dtype if fill is not None else ir.DataType.FLOAT
        source = node.inputs[1 if node.op_type == "Where" else 0] if node.inputs else None
        return self.dtypes.get(source) if source is not None else None

    def _elements(self, node: ir.Node) -> Elements | None:
        """The elements of the only output, if all inputs are small and known."""
        if node.op_type == "Shape":
            dims = self.dims.get(_first(node))
            if dims is None:
                return None
            start, end = (attribute(node, name, default) for name, default in SHAPE_RANGE)
            return _array(list(dims[start:end]))
        compute = ELEMENTS.get(node.op_type)
        inputs = [self.elements.get(v) if v is not None else None for v in node.inputs]
        present = [array for value, array in zip(node.inputs, inputs, strict=True) if value]
        if compute is None or any(array is None for array in present) or len(node.outputs) > 1:
            return None
        try:
            found = compute(node, *inputs)
        except (TypeError, ValueError, IndexError, ZeroDivisionError, OverflowError):
            return None  # a symbol where a number is needed
        return found if found is not None and found.size <= SMALL else None

    def _dims(self, node: ir.Node) -> list[Dims | None]:
        operator = node.op_type
        if operator in SAME:
            return [self.dims.get(_first(node))]
        if operator in BROADCAST:
            return [broadcast([self.dims.get(v) if v is not None else None for v in node.inputs])]
        compute = DIMS.get(operator)
        if compute is None:
            return []
        try:
            return compute(self, node)
        except (TypeError, IndexError, KeyError, AssertionError):
            return []  # something it needs is not known


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """The value of an attribute of ``node``."""
    found = node.attributes.get(name)
    return default if found is None else found.value


SHAPE_RANGE: tuple[tuple[str, Any], ...] = (("start", 0), ("end", None))
ELEMENT_TYPES = frozenset(
    {
        ir.DataType.INT64,
        ir.DataType.INT32,
        ir.DataType.BOOL,
        ir.DataType.FLOAT,
        ir.DataType.DOUBLE,
    }
)


def _first(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value


def _array(items: list[Any]) -> Elements:
    array = np.empty(len(items), object)
    array[:] = items
    return array


def _input_dims(value: ir.Value) -> Dims:
    name = str(value.name)
    if name in ("input_ids", "position_ids"):
        return BATCH, NEW
    return (BATCH, TOTAL) if name == "attention_mask" else _cache_dims(value)


def _cache_dims(value: ir.Value) -> Dims:
    """(B, K, P, E) of an input, (B, K, T, E) of an output."""
    assert value.shape is not None
    length = PAST if str(value.name).startswith("past") else TOTAL
    _, heads, _, size = value.shape
    return BATCH, heads if isinstance(heads, int) else None, length, _number(size)


def _number(size: Any) -> int | None:
    return size if isinstance(size, int) else None


def _elementwise(function: Callable[..., Any], count: int) -> Callable[..., Elements]:
    apply = np.frompyfunc(function, count, 1)
    return lambda node, *arrays: np.asarray(apply(*arrays), object)


def _pick(condition: Any, a: Any, b: Any) -> Any:
    return None if condition is None else a if condition else b


def _cast(node: ir.Node, array: Elements) -> Elements:
    kind = ir.DataType(attribute(node, "to", 0))
    change = float if kind.is_floating_point() else bool if kind == ir.DataType.BOOL else int
    if kind not in ELEMENT_TYPES:
        raise ValueError
    numbers = [change(item) if is_number(item) else item for item in array.reshape(-1).tolist()]
    if change is not int and any(isinstance(item, str) for item in numbers):
        raise ValueError
    return _array(numbers).reshape(array.shape)


def _slice(node: ir.Node, data: Elements, *bounds: Elements | None) -> Elements:
    starts, ends, axes, steps = [*bounds, None, None][:4]
    assert starts is not None and ends is not None
    index = [slice(None)] * data.ndim
    for i, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        axis = axes.tolist()[i] if axes is not None else i
        step = steps.tolist()[i] if steps is not None else 1
        if any(not isinstance(number, int) for number in (start, end, axis, step)):
            raise ValueError
        index[axis] = slice(start, end, step)
    return data[tuple(index)]


def _axes(node: ir.Node, data: Elements, axes: Elements | None = None) -> tuple[int, ...]:
    if axes is None:
        return tuple(i for i, size in enumerate(data.shape) if size == 1)
    return tuple(int(axis) for axis in axes.reshape(-1))


def _constant_of_shape(node: ir.Node, shape: Elements) -> Elements:
    fill = node.attributes.get("value")
    item = fill.as_tensor().numpy().reshape(-1)[0].item() if fill is not None else 0.0
    sizes = [int(size) for size in shape.tolist()]
    if np.prod(sizes, dtype=np.float64) > SMALL:
        raise ValueError
    return np.full(sizes, item, object)


def _reduce_max(node: ir.Node, data: Elements, axes: Elements | None = None) -> Elements:
    if axes is not None or attribute(node, "keepdims", 1):
        raise ValueError
    return np.asarray(max(data.reshape(-1).tolist()), object)


ELEMENTS: dict[str, Callable[..., Elements]] = {
    "Identity": lambda node, data: data,
    "Cast": _cast,
    "Add": _elementwise(add, 2),
    "Sub": _elementwise(subtract, 2),
    "Mul": _elementwise(multiply, 2),
    "Div": _elementwise(divide, 2),
    "Pow": _elementwise(lambda a, b: a**b, 2),
    "Sqrt": _elementwise(lambda a: a**0.5, 1),
    "Neg": _elementwise(lambda a: -a, 1),
    "Equal": _elementwise(equal, 2),
    "Where": _elementwise(_pick, 3),
    "Concat": lambda node, *arrays: np.concatenate(arrays, attribute(node, "axis", 0)),
    "Gather": lambda node, data, at: np.asarray(
        np.take(data, at.astype(np.int64), attribute(node, "axis", 0)), object
    ),
    "Unsqueeze": lambda node, data, axes: np.expand_dims(data, _axes(node, data, axes)),
    "Squeeze": lambda node, data, axes=None: np.squeeze(data, _axes(node, data, axes)),
    "Slice": _slice,
    "ReduceMax": _reduce_max,
    "Reshape": lambda node, data, shape: data.reshape([int(size) for size in shape]),
    "ConstantOfShape": _constant_of_shape,
}


# Dimensions --------------------------------------------------------------------------------------


def _matmul(symbols: Symbols, node: ir.Node) -> list[Dims | None]:
    a, b = (list(symbols.dims[value]) for value in node.inputs[:2] if value is not None)
    if attribute(node, "transB", 0):
        b[-2:] = b[:-3:-1]
    batch = broadcast([tuple(a[:-2]), tuple(b[:-2])])
    return [(*batch, a[-2], b[-1]) if batch is not None and len(b) > 1 else None]


def _gemm(symbols: Symbols, node: ir.Node) -> list[Dims | None]:
    rows = symbols.size(node.inputs[0], 1 if attribute(node, "transA", 0) else 0)
    return [(rows, symbols.size(node.inputs[1], 0 if attribute(node, "transB", 0) else 1))]


def _transpose(symbols: Symbols, node: ir.Node) -> list[Dims | None]:
    dims = symbols.dims[_first(node)]
    return [tuple(dims[axis] for axis in attribute(node, "perm", range(len(dims))[::-1]))]


def _reshape(symbols: Symbols, node: ir.Node) -> list[Dims | None]:
    """With the 0 that copies a dimension, and the -1 that takes what is left."""
    shape = node.inputs[1]
    assert shape is not None
    before = symbols.dims.get(_first(node))
    after = symbols.elements[shape].tolist()
    if not attribute(node, "allowzero", 0):
        after = [
            (before[i] if before is not None else None) if size == 0 else size
            for i, size in enumerate(after)
        ]
    if -1 in after:
        after[after.index(-1)] = rest(before, [size for size in after if size != -1])
    return [tuple(after)]


def _concat(symbols: Symbols, node: ir.Node) -> list[Dims | None]:
    shapes = [list(symbols.dims[value]) for value in node.inputs if value is not None]
    axis = attribute(node, "axis", 0)
    total: Size = 0
    for dims in shapes:
        total = add(total, dims[axis])
    result = shapes[0]
    result[axis] = total
    return [tuple(result)]


def _split(symbols: Symbols, node: ir.Node) -> list[Dims | None]:
    dims = list(symbols.dims[_first(node)])
    axis = attribute(node, "axis", 0)
    sizes = symbols.numbers(node.inputs[1]) if len(node.inputs) > 1 else None
    whole, count = dims[axis], len(node.outputs)
    if sizes is None:
        sizes = [whole // count if isinstance(whole, int) and whole % count == 0 else None] * count
    axis %= len(dims)
    return [tuple([*dims[:axis], size, *dims[axis + 1 :]]) for size in sizes]


def _slice_dims(symbols: Symbols, node: ir.Node) -> list[Dims | None]:
    dims = list(symbols.dims[_first(node)])
    starts, ends, *others = (symbols.elements[v].tolist() for v in node.inputs[1:] if v)
    axes = others[0] if others else list(range(len(starts)))
    steps = others[1] if len(others) > 1 else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        dims[axis] = _sliced(dims[axis], start, end, step)
    return [tuple(dims)]


def _sliced(size: Size, start: Any, end: Any, step: Any) -> Size:
    """The size that is left of ``size``; a letter for an end is taken to be within it."""
    if isinstance(end, int) and end >= END:
        end = size
    if all(isinstance(number, int) for number in (size, start, end, step)):
        return len(range(size)[start:end:step])  # type: ignore[arg-type]
    if step != 1:
        return None
    if isinstance(start, int) and (start < 0 or (isinstance(end, int) and end < 0)):
        return None
    whole: Size = subtract(end, start)
    return whole if isinstance(size, int) or end == size else None


def _squeeze(symbols: Symbols, node: ir.Node) -> list[Dims | None]:
    dims = symbols.dims[_first(node)]
    axes = symbols.numbers(node.inputs[1])
    assert axes is not None
    gone = {axis % len(dims) for axis in axes}
    return [tuple(size for i, size in enumerate(dims) if i not in gone)]


def _unsqueeze(symbols: Symbols, node: ir.Node) -> list[Dims | None]:
    dims = list(symbols.dims[_first(node)])
    axes = symbols.numbers(node.inputs[1])
    assert axes is not None
    rank = len(dims) + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        dims.insert(axis, 1)
    return [tuple(dims)]


def _expand(symbols: Symbols, node: ir.Node) -> list[Dims | None]:
    shape = node.inputs[1]
    assert shape is not None
    return [broadcast([symbols.dims[_first(node)], tuple(symbols.elements[shape].tolist())])]


def _gather(symbols: Symbols, node: ir.Node) -> list[Dims | None]:
    data, at = (symbols.dims[value] for value in node.inputs if value is not None)
    axis = attribute(node, "axis", 0) % len(data)
    return [(*data[:axis], *at, *data[axis + 1 :])]


def _tile(symbols: Symbols, node: ir.Node) -> list[Dims | None]:
    times = node.inputs[1]
    assert times is not None
    dims = symbols.dims[_first(node)]
    pairs = zip(dims, symbols.elements[times].tolist(), strict=True)
    return [tuple(multiply(size, number) for size, number in pairs)]


def _range(symbols: Symbols, node: ir.Node) -> list[Dims | None]:
    start, end, step = (symbols.elements[value].item() for value in node.inputs if value)
    return [(subtract(end, start),) if step == 1 else None]


def _reduce(symbols: Symbols, node: ir.Node) -> list[Dims | None]:
    dims = list(symbols.dims[_first(node)])
    axes = symbols.numbers(node.inputs[1]) if len(node.inputs) > 1 else None
    assert axes is not None
    gone = {axis % len(dims) for axis in axes}
    if attribute(node, "keepdims", 1):
        return [tuple(1 if i in gone else size for i, size in enumerate(dims))]
    return [tuple(size for i, size in enumerate(dims) if i not in gone)]


def _of_elements(symbols: Symbols, node: ir.Node) -> list[Dims | None]:
    return [tuple(symbols.elements[_first(node)].tolist())]


DIMS: dict[str, Callable[[Symbols, ir.Node], list[Dims | None]]] = {
    "MatMul": _matmul,
    "FusedMatMul": _matmul,
    "MatMulInteger": _matmul,
    "DynamicQuantizeLinear": lambda symbols, node: [symbols.dims.get(_first(node)), (), ()],
    "Gemm": _gemm,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice_dims,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Expand": _expand,
    "Gather": _gather,
    "GatherElements": lambda symbols, node: [
        symbols.dims.get(value) for value in node.inputs[1:] if value
    ],
    "Range": _range,
    "Tile": _tile,
    "ConstantOfShape": _of_elements,
    **dict.fromkeys(["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"], _reduce),
}
