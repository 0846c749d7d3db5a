"""The formula with which every graph of ours reads lengths from the mask, and whether one is it.

The attention kernel writes where these lengths say, so nothing else may stand in for them. The
formula is that of ``decoder_inputs.mask_lengths``, which has been the same in every version.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import NamedTuple

from ..strict_json import quoted
from .onnx_file import INT32, INT64, GraphRefused, Node, Tensor

MASK = "attention_mask"


class Made(NamedTuple):
    """What an operator makes of its inputs."""

    operator: str
    inputs: tuple[Made | Whole | str, ...]
    attributes: dict[str, int]


class Whole(NamedTuple):
    """A constant int64: one number, or a vector of one."""

    number: int
    dims: tuple[int, ...] = ()


def made(operator: str, *inputs: Made | Whole | str, **attributes: int) -> Made:
    """A formula: ``inputs`` are others, constants, or names of values."""
    return Made(operator, inputs, attributes)


_ZERO, _ONE = Whole(0), Whole(1)
_FIRST, _SECOND = Whole(0, (1,)), Whole(1, (1,))
_TOTAL = made("Squeeze", made("Shape", MASK, start=1, end=2))
_COLUMNS = made("Range", _ZERO, _TOTAL, _ONE)
_ONES = made("ReduceSum", MASK, _SECOND, keepdims=0)
_LAST = made("ReduceMax", made("Mul", MASK, _COLUMNS), _SECOND, keepdims=0)
_STARTS = made("Squeeze", made("Slice", MASK, _FIRST, _SECOND, _SECOND), _SECOND)
_PAD = made("Mul", made("Sub", made("Add", _LAST, _ONE), _ONES), made("Sub", _ONE, _STARTS))
LAST_TOKEN = made("Cast", made("Sub", made("Add", _ONES, _PAD), _ONE), to=INT32)  # (B,)
TOTAL_LENGTH = made("Cast", _TOTAL, to=INT32)  # ()


def check_lengths(
    node: Node, producers: Mapping[str, Node], initializers: Mapping[str, Tensor]
) -> None:
    """Raises GraphRefused unless the lengths of an attention ``node`` come from the mask."""
    for name, formula in ((node.inputs[5], LAST_TOKEN), (node.inputs[6], TOTAL_LENGTH)):
        if not is_made(name, formula, producers, initializers):
            raise GraphRefused(f"the length {quoted(name)}", "the formula over attention_mask")


def is_made(
    name: str,
    expected: Made | Whole | str,
    producers: Mapping[str, Node],
    initializers: Mapping[str, Tensor],
) -> bool:
    """Whether the value ``name`` is made as ``expected``; asks no deeper than that is."""
    if isinstance(expected, str):
        return name == expected
    if isinstance(expected, Whole):
        tensor = initializers.get(name)
        return (
            tensor is not None
            and (tensor.dtype, tensor.dims) == (INT64, expected.dims)
            and tensor.data == struct.pack("<q", expected.number)
        )
    node = producers.get(name)
    return (
        node is not None
        and (node.domain, node.operator, node.attributes)
        == ("", expected.operator, expected.attributes)
        and len(node.inputs) == len(expected.inputs)
        and all(
            is_made(given, wanted, producers, initializers)
            for given, wanted in zip(node.inputs, expected.inputs, strict=True)
        )
    )
