"""Computes part of a graph with NumPy, within bounds: others may have written it to fill memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

# Numbers of all values together: several times what the mask of a million tokens takes.
LARGEST_RUN = 1 << 27

Arrays = Sequence[NDArray[Any]]


class TooLarge(Exception):
    """What is computed has more numbers than anything that is needed here."""


class BoundedEvaluator:
    """Computes the outputs of a model without branches, from arrays by the names of its inputs."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._evaluator = ReferenceEvaluator(model)

    def __call__(self, feeds: Mapping[str, NDArray[Any]]) -> list[Any]:
        """Raises TooLarge before memory is taken, and whatever NumPy raises."""
        values: dict[str, Any] = {"": None, **self._evaluator.rt_inits_, **feeds}
        left = LARGEST_RUN
        for node in self._evaluator.rt_nodes_:
            inputs = [values[name] for name in node.input]
            left -= _numbers(node.onnx_node, [item for item in inputs if item is not None])
            if left < 0:
                raise TooLarge(f"{node.onnx_node.op_type} makes more than {LARGEST_RUN:,} numbers")
            values.update(zip(node.output, node.run(*inputs), strict=False))
        return [values[name] for name in self._evaluator.output_names]


def _numbers(node: onnx.NodeProto, inputs: Arrays) -> int:
    """Those that are touched to compute ``node``, at most."""
    if node.op_type == "Gather":
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        return inputs[1].size * _size(np.delete(inputs[0].shape, axis))
    if node.op_type in _SIZES:
        return _SIZES[node.op_type](*inputs)
    return sum(array.size for array in inputs) + _size(_wider(*(a.shape for a in inputs)))


def _size(sizes: Any) -> int:
    return math.prod(max(1, abs(int(size))) for size in np.ravel(sizes))


def _wider(*shapes: Sequence[int]) -> list[int]:
    """What inputs of these shapes make element by element, if that is what is done to them."""
    reversed_shapes = zip_longest(*(list(shape)[::-1] for shape in shapes), fillvalue=1)
    return [max(sizes) for sizes in reversed_shapes]


def _range(start: Any, stop: Any, step: Any) -> int:
    return abs(int((float(stop) - float(start)) / float(step))) + 1


def _picked(table: NDArray[Any], indices: NDArray[Any]) -> int:
    width = indices.shape[-1]
    return indices.size * _size(table.shape[width:])


def _product(*factors: NDArray[Any]) -> int:
    """Upper bound: every number of one meets every number of the other."""
    return math.prod(max(1, array.size) for array in factors[:2])


_SIZES: dict[str, Callable[..., int]] = {
    "ConstantOfShape": _size,
    "Expand": lambda array, sizes: _size(_wider(array.shape, np.ravel(sizes).tolist())),
    "Range": _range,
    "Tile": lambda array, times: max(1, array.size) * _size(times),
    "Pad": lambda array, pads, *_: _size(np.add(array.shape, np.abs(pads).sum())),
    "OneHot": lambda indices, depth, *_: max(1, indices.size) * _size(depth),
    "MatMul": _product,
    "Gemm": _product,
    "GatherND": _picked,
}
