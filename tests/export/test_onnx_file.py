"""The reader of model.onnx: it finds what the onnx package finds, or refuses; never anything else.

Refusals are tested against literal bytes: tag = number · 8 + wire type.
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import onnx
import pytest
from checkpoint_files import gpt2_config, gpt2_tensors, write_checkpoint
from graph_folders import traced_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_checkpoints import ALL_FIELDS, OTHER_FIELDS, WRAPPED, llama_config, llama_tensors
from onnx import AttributeProto, ModelProto, TensorProto, ValueInfoProto
from traced_graphs import LLAMA, STYLES

from pocketlm.export.architectures import known_architectures
from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.folder import ModelFolder
from pocketlm.export.graph_check import onnx_file
from pocketlm.export.graph_check.onnx_file import Graph, GraphRefused, Tensor, Value, read_graph
from pocketlm.export.writing import export_model
from pocketlm.quantize.run import precision_of

# What the onnx package finds ----------------------------------------------------------------------


def as_read(model: ModelProto) -> Graph:
    """The twin: the same graph out of the onnx package's own classes."""
    graph = model.graph
    nodes = [
        onnx_file.Node(
            node.op_type,
            node.domain,
            node.name,
            tuple(node.input),
            tuple(node.output),
            {attribute.name: attribute_value(attribute) for attribute in node.attribute},
        )
        for node in graph.node
    ]
    return Graph(
        ir_version=model.ir_version,
        opsets={opset.domain: opset.version for opset in model.opset_import},
        nodes=nodes,
        initializers=[tensor_value(tensor) for tensor in graph.initializer],
        inputs=[value_value(value) for value in graph.input],
        outputs=[value_value(value) for value in graph.output],
        values=[value_value(value) for value in graph.value_info],
    )


def attribute_value(attribute: AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, TensorProto):
        return tensor_value(value)
    if isinstance(value, bytes):
        return value.decode()
    if not isinstance(value, int | float):
        return tuple(item.decode() if isinstance(item, bytes) else item for item in value)
    return str(value) if value != value else value  # a NaN equals nothing


def tensor_value(tensor: TensorProto) -> Tensor:
    return Tensor(
        tensor.name,
        tensor.data_type,
        tuple(tensor.dims),
        tensor.raw_data if tensor.HasField("raw_data") else None,
        tuple((entry.key, entry.value) for entry in tensor.external_data),
    )


def value_value(value: ValueInfoProto) -> Value:
    kind = value.type.tensor_type
    dims = [getattr(dim, dim.WhichOneof("value") or "", None) for dim in kind.shape.dim]
    return Value(value.name, kind.elem_type, tuple(dims) if kind.HasField("shape") else None)


def comparable(graph: Graph) -> Graph:
    """With text for every NaN."""
    for node in graph.nodes:
        for name, value in node.attributes.items():
            if isinstance(value, float) and math.isnan(value):
                node.attributes[name] = "nan"
    return graph


def check_same(data: bytes) -> bool:
    """Whether ``data`` is accepted; what is accepted the onnx package must read alike."""
    try:
        found = comparable(read_graph(data))
    except GraphRefused as refused:
        assert "\n" not in str(refused) and len(str(refused)) < 1000
        return False
    assert found == comparable(as_read(ModelProto.FromString(data)))
    return True


@pytest.mark.parametrize("precision", ["fp32", "int8", "int8-weight", "int4"])
@pytest.mark.parametrize("architecture", sorted(set(known_architectures()) - set(WRAPPED)))
def test_it_finds_what_the_onnx_package_finds(
    architecture: str, precision: str, tmp_path: Path
) -> None:
    if architecture == "gpt2":
        config = gpt2_config(vocab_size=300)
        tensors = gpt2_tensors(config)
    else:
        fields = OTHER_FIELDS | ALL_FIELDS[architecture]
        config = llama_config(architecture, **fields | {"vocab_size": 300, "num_hidden_layers": 1})
        tensors = llama_tensors(config)
    source = open_checkpoint(write_checkpoint(tmp_path / "source", config, tensors))
    folder = export_model(source, tmp_path / "out", precision_of(precision))
    assert check_same((folder.path / "model.onnx").read_bytes())


@pytest.mark.parametrize("rewrite", [True, False])
def test_it_finds_it_in_traced_graphs_too(rewrite: bool, tmp_path: Path) -> None:
    for name in ("llama", "bloom"):
        folder = traced_folder(tmp_path / name, STYLES[name], rewrite=rewrite)
        assert check_same((folder.path / "model.onnx").read_bytes())


# What is refused ---------------------------------------------------------------------------------


def field(number: int, content: bytes) -> bytes:
    """A field of bytes: text, or a message."""
    return bytes([number << 3 | 2, len(content)]) + content


def graph(*fields: bytes) -> bytes:
    return field(7, b"".join(fields))


def in_node(*fields: bytes) -> bytes:
    return graph(field(1, b"".join(fields)))


def in_attribute(*fields: bytes) -> bytes:
    return in_node(field(5, b"".join(fields)))


def in_tensor(*fields: bytes) -> bytes:
    return graph(field(5, b"".join(fields)))


def in_type(content: bytes) -> bytes:
    return graph(field(11, field(2, content)))


INT_TYPE, FLOAT_TYPE = b"\xa0\x01\x02", b"\xa0\x01\x01"
REFUSED = {
    "nothing": (b"", "no graph"),
    "text": (b"not a graph", "ir_version, producer_name|wire type|field"),
    "a graph twice": (graph() + graph(), "graph twice in one ModelProto"),
    "a number twice": (b"\x08\x0b\x08\x0b", "ir_version twice"),
    "an operator set twice": (graph() + field(8, b"\x10\x17") * 2, "an operator set twice"),
    "an attribute twice": (in_node(field(5, b"\x18\1" + INT_TYPE) * 2), "an attribute twice"),
    "an unknown field": (b"\x48\x01", "field 9 of ModelProto before byte 1"),
    "field 0": (b"\x00\x01", "field 0 of"),
    "a group": (b"\x3b\x3c", "graph of wire type 3"),
    "another wire type": (b"\x0a\x00", "ir_version of wire type 2"),
    "numbers in one piece": (in_tensor(field(1, b"\1\2")), "dims of wire type 2"),
    "a number cut": (b"\x08", "a number without an end before byte 1"),
    "a number cut later": (b"\x08\xff", "a number without an end before byte 2"),
    "a number without an end": (b"\x08" + b"\xff" * 20, "expected at most 10 bytes"),
    "a number too long": (b"\x08\x81\x00", "a number in 2 bytes"),
    "a number too large": (b"\x08" + b"\xff" * 9 + b"\x02", "a number in 10 bytes"),
    "a tag too long": (b"\x88\x00\x0b", "a number in 2 bytes"),
    "a type of 32 bits": (in_tensor(b"\x10\xff\xff\xff\xff\x0f"), "data_type 4294967295"),
    "a negative type": (
        in_tensor(b"\x10" + b"\xff" * 9 + b"\x01"),
        "data_type 1844674407370955",
    ),
    "a length behind the end": (b"\x3a\x05\x00", "graph ending at byte 7, expected 3 or less"),
    "a length behind its message": (
        graph(b"\x0a\x05") + bytes(9),
        "node ending at byte 9, expec",
    ),
    "a length without bytes": (b"\x3a", "a number without an end"),
    "a float cut": (in_attribute(b"\x15\0\0"), "f ending at byte 11, expected 9"),
    "text that is none": (field(2, b"\xff"), "producer_name that is not UTF-8"),
    "half a character": (in_node(field(4, b"\xed\xa0\x80")), "op_type that is not UTF-8"),
    "a type and no value": (in_attribute(INT_TYPE), "of type 2 without a value"),
    "a value of another type": (in_attribute(b"\x18\1" + FLOAT_TYPE), "of type 1 with i, type"),
    "two values": (
        in_attribute(b"\x18\1" + field(4, b"s") + INT_TYPE),
        "type 2 with i, s, type",
    ),
    "a value without a type": (in_attribute(b"\x18\1"), "of type 0 with i"),
    "a reference": (in_attribute(b"\xaa\x01\x01x"), "found ref_attr_name"),
    "a subgraph": (in_attribute(field(6, b"")), "found a subgraph"),
    "subgraphs": (in_attribute(field(11, b"")), "found subgraphs"),
    "tensors": (in_attribute(field(10, b"")), "found tensors"),
    "a type": (in_attribute(field(14, b"")), "found a type"),
    "types": (in_attribute(field(15, b"")), "found types"),
    "a sparse tensor": (in_attribute(b"\xb2\x01\x00"), "found a sparse tensor"),
    "sparse tensors": (in_attribute(b"\xba\x01\x00"), "found sparse tensors"),
    "functions": (b"\xca\x01\x00", "found local functions"),
    "training": (b"\xa2\x01\x00", "found training_info"),
    "another device": (b"\xd2\x01\x00", "found configuration"),
    "a sparse weight": (graph(field(15, b"")), "found sparse_initializer"),
    "annotations": (graph(field(14, b"")), "found quantization_annotation"),
    "an overload": (in_node(field(8, b"x")), "found overload"),
    "devices": (in_node(field(10, b"")), "found device_configurations"),
    "a part of a tensor": (in_tensor(field(3, b"")), "found segment"),
    "float_data": (in_tensor(field(4, bytes(4))), "found float_data"),
    "int32_data": (in_tensor(field(5, b"\0")), "found int32_data"),
    "string_data": (in_tensor(field(6, b"x")), "found string_data"),
    "int64_data": (in_tensor(field(7, b"\0")), "found int64_data"),
    "double_data": (in_tensor(field(10, bytes(8))), "found double_data"),
    "uint64_data": (in_tensor(field(11, b"\0")), "found uint64_data"),
    "elsewhere without a place": (in_tensor(b"\x70\x01"), "data_location 1 with 0 entries"),
    "a place but here": (in_tensor(field(13, b"")), "data_location 0 with 1 entries"),
    "a third location": (in_tensor(b"\x70\x02" + field(13, b"")), "data_location 2"),
    "a sequence": (in_type(field(4, b"")), "found a sequence"),
    "a map": (in_type(field(5, b"")), "found a map"),
    "a sparse type": (in_type(field(8, b"")), "found a sparse tensor"),
    "an optional value": (in_type(field(9, b"")), "found an optional value"),
    "an opaque type": (in_type(field(7, b"")), "found an opaque type"),
    "a number and a letter": (
        in_type(field(1, field(2, field(1, b"\x08\1" + field(2, b"s"))))),
        "a dimension with a number and a name",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_two_readers_could_understand_differently_is_refused(name: str) -> None:
    data, message = REFUSED[name]
    with pytest.raises(GraphRefused, match=message):
        read_graph(data)


def test_every_field_of_onnx_is_read_or_refused_by_name() -> None:
    """A field that a later onnx adds is unknown, and refused as such."""
    messages = [kind for kind in vars(onnx_file).values() if isinstance(kind, onnx_file._Message)]
    assert len(messages) == 12
    for message in messages:
        if message.name in ("Dimension", "TypeProto.Tensor"):
            continue
        known = {tag >> 3: name for tag, (name, _, _) in message.fields.items()}
        for found in getattr(onnx, message.name).DESCRIPTOR.fields:
            if found.number in known:
                assert known[found.number] == found.name
            elif found.name != "denotation":
                assert (message.name, found.number) in onnx_file._REFUSED, found.full_name


def test_a_number_is_read_to_its_limits() -> None:
    least, most = -(1 << 63), (1 << 63) - 1
    attribute = onnx.helper.make_attribute("a", [least, -1, 0, 127, 128, 1 << 31, most])
    node = onnx.NodeProto(op_type="X", attribute=[attribute])
    model = ModelProto(graph=onnx.GraphProto(node=[node]))
    (found,) = read_graph(model.SerializeToString()).nodes
    assert found.attributes["a"] == (least, -1, 0, 127, 128, 1 << 31, most)


def test_more_fields_than_any_decoder_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "LARGEST_COUNT", 1000)
    nodes = b"\x0a\x00" * 999
    data = b"\x3a" + bytes([len(nodes) & 127 | 128, len(nodes) >> 7]) + nodes
    assert len(read_graph(data).nodes) == 999
    with pytest.raises(GraphRefused, match="more than 1,000 fields"):
        read_graph(data + b"\x08\x0b")


def test_a_name_without_end_is_refused() -> None:
    length = onnx_file.LONGEST_TEXT + 1
    data = ModelProto(producer_name="x" * length, graph=onnx.GraphProto()).SerializeToString()
    with pytest.raises(GraphRefused, match=f"producer_name of {length:,} bytes"):
        read_graph(data)


# Mutations ---------------------------------------------------------------------------------------


def mutated(data: bytes, random: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice([1, 1, 2, 4])):
        at, other = (random.randrange(len(changed) or 1) for _ in range(2))
        length = random.choice([1, 2, 8, 50])
        what = random.randrange(5)
        if what == 0:
            changed[at : at + 1] = bytes([random.randrange(256)])
        elif what == 1:
            del changed[at : at + length]
        elif what == 2:
            changed[at:at] = random.randbytes(length)
        elif what == 3:
            changed[at:at] = changed[other : other + length]
        else:
            del changed[at:]
    return bytes(changed)


def test_mutated_files_are_refused_or_read_as_the_onnx_package_does(
    tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    files = [tiny_folder, traced_folder(tmp_path / "traced", LLAMA, rewrite=True)]
    seeded = random.Random(7)
    accepted = 0
    for file in files:
        data = (file.path / "model.onnx").read_bytes()
        accepted += sum(check_same(mutated(data, seeded)) for _ in range(100))
    assert 0 < accepted < 150  # changed names and numbers are accepted, most else is not


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_refused_or_read_as_the_onnx_package_does(data: bytes) -> None:
    check_same(data)
    check_same(graph(data))
