"""A graph's file with the node of its largest weight before all others, to open it in less memory.

ONNX Runtime packs the weights of node after node, in the order of the file, and lets go of each
original behind its copy. The head of a Llama 1B, 263 MB in 8 bits, is there twice while it is
packed: packed last that is on top of all others, packed first it is not noticed. The order in which
nodes run follows from what they read; but ONNX wants files sorted by it, so the file itself stays.

Numbers of fields: ``onnx/onnx.proto``, ModelProto, GraphProto, NodeProto and TensorProto.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

_GRAPH, _NODE, _INITIALIZER = 7, 1, 5
_INPUTS, _DIMS, _NAME = 1, 1, 8
_VARINT, _FOUR_BYTES = 0, 5  # wire types; 2 is a length


class _Field(NamedTuple):
    number: int
    begin: int  # of its tag
    start: int  # of its content
    stop: int
    value: int  # of a varint


def largest_first(data: bytes) -> bytes:
    """The same model in another order; ``data`` is a ModelProto that ``check_graph`` let pass."""
    (graph,) = (field for field in _fields(data, 0, len(data)) if field.number == _GRAPH)
    parts = list(_fields(data, graph.start, graph.stop))
    sizes = dict(_named_size(data, part) for part in parts if part.number == _INITIALIZER)
    most = max(sizes.values(), default=0)
    largest = {name for name, size in sizes.items() if size == most}
    nodes = [part for part in parts if part.number == _NODE]
    for node in reversed(nodes):  # a head behind the lookups in its table, which are not packed
        if largest & set(_texts(data, node, _INPUTS)):
            first = nodes[0].begin
            moved, passed = data[node.begin : node.stop], data[first : node.begin]
            return data[:first] + moved + passed + data[node.stop :]
    return data


def _named_size(data: bytes, tensor: _Field) -> tuple[bytes, int]:
    """Name of a TensorProto, and how many numbers it has."""
    dims = []
    for field in _fields(data, tensor.start, tensor.stop):
        if field.number == _DIMS and field.stop == field.start:
            dims.append(field.value)
        elif field.number == _DIMS:  # packed
            at = field.start
            while at < field.stop:
                number, at = _varint(data, at)
                dims.append(number)
    return next(_texts(data, tensor, _NAME)), math.prod(dims)


def _texts(data: bytes, message: _Field, number: int) -> Iterator[bytes]:
    for field in _fields(data, message.start, message.stop):
        if field.number == number:
            yield data[field.start : field.stop]


def _fields(data: bytes, at: int, end: int) -> Iterator[_Field]:
    """Those of the message in bytes ``at`` to ``end``."""
    while at < end:
        begin, value = at, 0
        tag, at = _varint(data, at)
        size = 0
        if tag & 7 == _VARINT:
            value, at = _varint(data, at)
        elif tag & 7 == _FOUR_BYTES:
            size = 4
        else:
            size, at = _varint(data, at)
        yield _Field(tag >> 3, begin, at, at + size, value)
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at byte ``at``, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
