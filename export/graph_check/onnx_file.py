"""``model.onnx`` bytes in, the graph as plain values out: the protobuf fields that we write, alone.

Whatever another parser could understand differently is refused: fields that are not listed here, a
field that comes twice where one is meant, another wire type, a number in more bytes than it needs,
text that is not UTF-8. So are the places where more than one flat graph could hide: subgraphs,
local functions, training, sparse and typed tensors. Time and memory are linear in the size of the
file, and nothing nests deeper than the messages below.

Sources: ``onnx/onnx.proto`` of onnx 1.23 for numbers and types of the fields; the protobuf encoding
guide (protobuf.dev/programming-guides/encoding) for the wire format.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..strict_json import quoted

# TensorProto.DataType: the element types that our graphs have.
FLOAT, UINT8, INT8, INT32, INT64, BOOL, FLOAT16, DOUBLE = 1, 2, 3, 6, 7, 9, 10, 11
ITEM_BYTES = {FLOAT: 4, UINT8: 1, INT8: 1, INT32: 4, INT64: 8, BOOL: 1, FLOAT16: 2, DOUBLE: 8}
_NAMES = {
    **{FLOAT: "float32", UINT8: "uint8", INT8: "int8", INT32: "int32", INT64: "int64"},
    **{BOOL: "bool", FLOAT16: "float16", DOUBLE: "float64"},
}
# Fields in a file: some five times what a decoder of 126 layers (405B) in int8 has.
LARGEST_COUNT = 1_000_000
LONGEST_TEXT = 1 << 20  # bytes of a name or comment


class GraphRefused(Exception):
    """What was found in a graph, and what was expected instead; the caller knows the file."""

    def __init__(self, found: str, expected: str) -> None:
        super().__init__(f"found {found}, expected {expected}")
        self.found = found
        self.expected = expected


class Tensor(NamedTuple):
    """A TensorProto: its bytes are in ``data``, or elsewhere as ``external`` says."""

    name: str
    dtype: int
    dims: tuple[int, ...]
    data: bytes | None
    external: tuple[tuple[str, str], ...]  # key and value, in order


class Value(NamedTuple):
    """A ValueInfoProto of a dense tensor; a dimension is a number, a letter or neither."""

    name: str
    dtype: int
    dims: tuple[int | str | None, ...] | None


Attribute = int | float | str | Tensor | tuple[int, ...] | tuple[float, ...] | tuple[str, ...]


class Node(NamedTuple):
    """A NodeProto; an input or output that is left out is ''."""

    operator: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Attribute]


class Graph(NamedTuple):
    """A ModelProto and its graph."""

    ir_version: int
    opsets: dict[str, int]
    nodes: list[Node]
    initializers: list[Tensor]
    inputs: list[Value]
    outputs: list[Value]
    values: list[Value]  # what the file says of the values between


def type_name(dtype: int) -> str:
    """For error messages."""
    return _NAMES.get(dtype, f"the type {dtype}")


def read_graph(data: bytes) -> Graph:
    """The graph in ``data``; raises GraphRefused."""
    found: Graph = _Reader(data).message(0, len(data), _MODEL)
    return found


# Wire format ------------------------------------------------------------------------------------

_VARINT, _LENGTH, _FOUR_BYTES = 0, 2, 5
# What a field holds: a whole number of 64 bits, one of 31 bits (an enum or a type), a float32,
# text, bytes. A message is its _Message.
_INT, _SMALL_INT, _FLOAT, _TEXT, _BYTES = range(5)
_WIRE_TYPES = {_INT: _VARINT, _SMALL_INT: _VARINT, _FLOAT: _FOUR_BYTES}


@dataclass(frozen=True)
class _Message:
    """A kind of message: its fields by tag, which is number · 8 + wire type."""

    name: str
    fields: dict[int, tuple[str, Any, bool]]  # tag -> name, what it holds, whether it may repeat
    build: Callable[[dict[str, Any]], Any]


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._left = LARGEST_COUNT

    def message(self, at: int, end: int, kind: _Message) -> Any:
        """The message in bytes ``at`` to ``end``."""
        data, fields = self._data, kind.fields
        found: dict[str, Any] = {}
        while at < end:
            tag, at = (data[at], at + 1) if data[at] < 128 else self._varint(at, end)
            field = fields.get(tag)
            if field is None:
                raise self._unknown(tag, kind, at)
            self._left -= 1
            if self._left < 0:
                raise GraphRefused(f"more than {LARGEST_COUNT:,} fields", "no more than that")
            name, holds, many = field
            wire = tag & 7
            if wire == _LENGTH:
                if at < end and data[at] < 128:
                    stop = at + 1 + data[at]
                    at += 1
                else:
                    size, at = self._varint(at, end)
                    stop = at + size
                if stop > end:
                    raise GraphRefused(f"{name} ending at byte {stop}", f"{end} or less")
                value = self._content(at, stop, name, holds)
                at = stop
            elif wire == _VARINT:
                value, at = (
                    (data[at], at + 1) if at < end and data[at] < 128 else self._varint(at, end)
                )
                if value >> 31:
                    value = self._large(value, name, holds)
            else:
                if at + 4 > end:
                    raise GraphRefused(f"{name} ending at byte {at + 4}", f"{end} or less")
                value = struct.unpack_from("<f", data, at)[0]
                at += 4
            if many:
                found.setdefault(name, []).append(value)
            elif name in found:
                raise GraphRefused(f"{name} twice in one {kind.name}", "it once")
            else:
                found[name] = value
        return kind.build(found)

    def _content(self, at: int, stop: int, name: str, holds: Any) -> Any:
        if holds is _TEXT:
            if stop - at > LONGEST_TEXT:
                raise GraphRefused(f"{name} of {stop - at:,} bytes", f"at most {LONGEST_TEXT:,}")
            try:
                return str(self._data[at:stop], "utf-8")
            except UnicodeDecodeError:
                raise GraphRefused(f"{name} that is not UTF-8", "text") from None
        return self._data[at:stop] if holds is _BYTES else self.message(at, stop, holds)

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        """The number at byte ``at``, and where it ends."""
        value = shift = 0
        while at < end and shift < 70:
            byte = self._data[at]
            value |= (byte & 127) << shift
            at += 1
            if byte < 128:
                if (byte == 0 and shift) or value >> 64:
                    raise GraphRefused(
                        f"a number in {shift // 7 + 1} bytes before byte {at}", "the shortest form"
                    )
                return value, at
            shift += 7
        raise GraphRefused(f"a number without an end before byte {at}", "at most 10 bytes")

    def _large(self, value: int, name: str, holds: Any) -> int:
        """A number from 2**31 up: negative from 2**63, and only where 64 bits are meant."""
        if holds is _SMALL_INT:
            raise GraphRefused(f"{name} {value}", "a number of 31 bits")
        return value - (1 << 64) if value >> 63 else value

    def _unknown(self, tag: int, kind: _Message, at: int) -> GraphRefused:
        number, wire = tag >> 3, tag & 7
        known = {tag >> 3: name for tag, (name, _, _) in kind.fields.items()}
        if number in known:
            return GraphRefused(f"{known[number]} of wire type {wire} before byte {at}", "its own")
        if named := _REFUSED.get((kind.name, number)):
            return GraphRefused(named, "one flat graph of dense tensors")
        return GraphRefused(
            f"field {number} of {kind.name} before byte {at}", f"{', '.join(known.values())} alone"
        )


# Messages ---------------------------------------------------------------------------------------

# Names for fields that are known and refused, so that the message can say what was found.
_REFUSED = {
    ("ModelProto", 20): "training_info",
    ("ModelProto", 25): "local functions",
    ("ModelProto", 26): "configuration",
    ("GraphProto", 14): "quantization_annotation",
    ("GraphProto", 15): "sparse_initializer",
    ("NodeProto", 8): "overload",
    ("NodeProto", 10): "device_configurations",
    ("AttributeProto", 6): "a subgraph",
    ("AttributeProto", 10): "tensors",
    ("AttributeProto", 11): "subgraphs",
    ("AttributeProto", 14): "a type",
    ("AttributeProto", 15): "types",
    ("AttributeProto", 21): "ref_attr_name",
    ("AttributeProto", 22): "a sparse tensor",
    ("AttributeProto", 23): "sparse tensors",
    ("TensorProto", 3): "segment",
    ("TensorProto", 4): "float_data",
    ("TensorProto", 5): "int32_data",
    ("TensorProto", 6): "string_data",
    ("TensorProto", 7): "int64_data",
    ("TensorProto", 10): "double_data",
    ("TensorProto", 11): "uint64_data",
    ("TypeProto", 4): "a sequence",
    ("TypeProto", 5): "a map",
    ("TypeProto", 7): "an opaque type",
    ("TypeProto", 8): "a sparse tensor",
    ("TypeProto", 9): "an optional value",
}

ONE, MANY = False, True


def _message(
    name: str, build: Callable[[dict[str, Any]], Any], *fields: tuple[int, str, Any, bool]
) -> _Message:
    by_tag = {}
    for number, field, holds, many in fields:
        wire = _WIRE_TYPES.get(holds, _LENGTH) if isinstance(holds, int) else _LENGTH
        by_tag[number << 3 | wire] = (field, holds, many)
    return _Message(name, by_tag, build)


def _pair(found: dict[str, Any]) -> tuple[str, str]:
    return found.get("key", ""), found.get("value", "")


def _tensor(found: dict[str, Any]) -> Tensor:
    external = tuple(found.get("external_data", ()))
    if bool(found.get("data_location", 0)) != bool(external) or found.get("data_location", 0) > 1:
        raise GraphRefused(
            f"data_location {found.get('data_location', 0)} with {len(external)} entries of "
            f"external_data in the tensor {quoted(found.get('name', ''))}",
            "1 with some or 0 with none",
        )
    return Tensor(
        found.get("name", ""),
        found.get("data_type", 0),
        tuple(found.get("dims", ())),
        found.get("raw_data"),
        external,
    )


def _dimension(found: dict[str, Any]) -> int | str | None:
    if len(found) > 1:
        raise GraphRefused("a dimension with a number and a name", "one of them")
    value: int | str | None = found.get("dim_value", found.get("dim_param"))
    return value


def _shape(found: dict[str, Any]) -> tuple[int | str | None, ...]:
    return tuple(found.get("dim", ()))


def _tensor_type(found: dict[str, Any]) -> dict[str, Any]:
    return found


def _value(found: dict[str, Any]) -> Value:
    tensor_type = found.get("type", {}).get("tensor_type", {})
    return Value(found.get("name", ""), tensor_type.get("elem_type", 0), tensor_type.get("shape"))


# AttributeProto.AttributeType -> the field that holds the value.
_HELD = {1: "f", 2: "i", 3: "s", 4: "t", 6: "floats", 7: "ints", 8: "strings"}


def _attribute(found: dict[str, Any]) -> tuple[str, Attribute]:
    name, kind = found.get("name", ""), found.get("type", 0)
    held = _HELD.get(kind, "")
    if found.keys() - {"name", "type", "doc_string", held}:
        raise GraphRefused(
            f"the attribute {quoted(name)} of type {kind} with {', '.join(sorted(found))}",
            "a type and the value it says",
        )
    if kind in (6, 7, 8):
        return name, tuple(found.get(held, ()))
    if held not in found:
        raise GraphRefused(
            f"the attribute {quoted(name)} of type {kind} without a value", "its value"
        )
    return name, found[held]


def _node(found: dict[str, Any]) -> Node:
    given = found.get("attribute", [])
    attributes = dict(given)
    if len(attributes) < len(given):
        raise GraphRefused(
            f"an attribute twice in the node {quoted(found.get('name', ''))}", "each once"
        )
    return Node(
        found.get("op_type", ""),
        found.get("domain", ""),
        found.get("name", ""),
        tuple(found.get("input", ())),
        tuple(found.get("output", ())),
        attributes,
    )


def _model(found: dict[str, Any]) -> Graph:
    graph, given = found.get("graph"), found.get("opset_import", [])
    opsets = dict(given)
    if graph is None or len(opsets) < len(given):
        raise GraphRefused(
            "no graph" if graph is None else "an operator set twice", "a graph, and each set once"
        )
    return Graph(
        ir_version=found.get("ir_version", 0),
        opsets=opsets,
        nodes=graph.get("node", []),
        initializers=graph.get("initializer", []),
        inputs=graph.get("input", []),
        outputs=graph.get("output", []),
        values=graph.get("value_info", []),
    )


_PAIR = _message("StringStringEntryProto", _pair, (1, "key", _TEXT, ONE), (2, "value", _TEXT, ONE))
_TENSOR = _message(
    "TensorProto",
    _tensor,
    (1, "dims", _INT, MANY),
    (2, "data_type", _SMALL_INT, ONE),
    (8, "name", _TEXT, ONE),
    (9, "raw_data", _BYTES, ONE),
    (12, "doc_string", _TEXT, ONE),
    (13, "external_data", _PAIR, MANY),
    (14, "data_location", _SMALL_INT, ONE),
    (16, "metadata_props", _PAIR, MANY),
)
_DIMENSION = _message(
    "Dimension", _dimension, (1, "dim_value", _INT, ONE), (2, "dim_param", _TEXT, ONE)
)
_SHAPE = _message("TensorShapeProto", _shape, (1, "dim", _DIMENSION, MANY))
_TENSOR_TYPE = _message(
    "TypeProto.Tensor",
    _tensor_type,
    (1, "elem_type", _SMALL_INT, ONE),
    (2, "shape", _SHAPE, ONE),
)
_TYPE = _message("TypeProto", _tensor_type, (1, "tensor_type", _TENSOR_TYPE, ONE))
_VALUE = _message(
    "ValueInfoProto",
    _value,
    (1, "name", _TEXT, ONE),
    (2, "type", _TYPE, ONE),
    (3, "doc_string", _TEXT, ONE),
    (4, "metadata_props", _PAIR, MANY),
)
_ATTRIBUTE = _message(
    "AttributeProto",
    _attribute,
    (1, "name", _TEXT, ONE),
    (2, "f", _FLOAT, ONE),
    (3, "i", _INT, ONE),
    (4, "s", _TEXT, ONE),
    (5, "t", _TENSOR, ONE),
    (7, "floats", _FLOAT, MANY),
    (8, "ints", _INT, MANY),
    (9, "strings", _TEXT, MANY),
    (13, "doc_string", _TEXT, ONE),
    (20, "type", _SMALL_INT, ONE),
)
_NODE = _message(
    "NodeProto",
    _node,
    (1, "input", _TEXT, MANY),
    (2, "output", _TEXT, MANY),
    (3, "name", _TEXT, ONE),
    (4, "op_type", _TEXT, ONE),
    (5, "attribute", _ATTRIBUTE, MANY),
    (6, "doc_string", _TEXT, ONE),
    (7, "domain", _TEXT, ONE),
    (9, "metadata_props", _PAIR, MANY),
)
_GRAPH = _message(
    "GraphProto",
    _tensor_type,
    (1, "node", _NODE, MANY),
    (2, "name", _TEXT, ONE),
    (5, "initializer", _TENSOR, MANY),
    (10, "doc_string", _TEXT, ONE),
    (11, "input", _VALUE, MANY),
    (12, "output", _VALUE, MANY),
    (13, "value_info", _VALUE, MANY),
    (16, "metadata_props", _PAIR, MANY),
)
_OPSET = _message(
    "OperatorSetIdProto",
    lambda found: (found.get("domain", ""), found.get("version", 0)),
    (1, "domain", _TEXT, ONE),
    (2, "version", _INT, ONE),
)
_MODEL = _message(
    "ModelProto",
    _model,
    (1, "ir_version", _INT, ONE),
    (2, "producer_name", _TEXT, ONE),
    (3, "producer_version", _TEXT, ONE),
    (4, "domain", _TEXT, ONE),
    (5, "model_version", _INT, ONE),
    (6, "doc_string", _TEXT, ONE),
    (7, "graph", _GRAPH, ONE),
    (8, "opset_import", _OPSET, MANY),
    (14, "metadata_props", _PAIR, MANY),
)
