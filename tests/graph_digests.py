"""Digests of whole graphs: what tells whether two ways of building a family are the same graph.

    python tests/graph_digests.py > tests/export/graph_digests.json

The weights are exact in every float format and follow from their names, so that the digests are the
same on every machine; cosines and frequencies of rotation are not, and are told by their sum.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from pathlib import Path
from typing import Any

import gpt2_checkpoints
import llama_checkpoints
import numpy as np
import onnx_ir as ir
from checkpoint_files import gpt2_config
from gpt2_checkpoints import stored_tensors
from llama_checkpoints import llama_config, llama_tensors
from numpy.typing import NDArray

from pocketlm.export.checkpoint import Checkpoint, CheckpointTensor
from pocketlm.export.graph import Weight
from pocketlm.export.writing import build_decoder

CASES = [*llama_checkpoints.CASES, *(f"gpt2, {name}" for name in gpt2_checkpoints.CASES)]


def checkpoint_of(name: str) -> Checkpoint:
    """The checkpoint of one of ``CASES``, with weights that follow from their names."""
    if name in llama_checkpoints.CASES:
        llama = llama_checkpoints.CASES[name]
        config = llama_config(llama.model_type, **llama.config)
        return in_memory(config, llama_tensors(config, prefix=llama.prefix))
    gpt2 = gpt2_checkpoints.CASES[name.removeprefix("gpt2, ")]
    config = gpt2_config(**gpt2.config)
    return in_memory(config, stored_tensors(gpt2, config))


def in_memory(config: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> Checkpoint:
    """A checkpoint without files: tensors of those names and shapes."""

    def stored(name: str, shape: tuple[int, ...]) -> CheckpointTensor:
        numbers = np.arange(math.prod(shape), dtype=np.int64) * 40503 + zlib.crc32(name.encode())
        values = (((numbers % 251) - 125) / 256).astype(np.float32).reshape(shape)
        return CheckpointTensor(
            name,
            shape,
            "float32",
            "in memory",
            values.nbytes,
            lambda start, stop: values[start:stop],
        )

    named = {name: stored(name, values.shape) for name, values in tensors.items()}
    return Checkpoint(Path("in memory"), config, named, {})


def digests(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a graph is made of, each part as a digest; the parts say where two graphs differ.

    ``weights`` is the layout of the data file: the names of its weights, in order.
    """
    decoder = build_decoder(checkpoint)
    graph = decoder.model.graph
    values = graph.initializers.values()
    tables = [value for value in values if is_table(value)]
    return {
        "nodes": digest(map(describe_node, graph)),
        "initializers": digest(sorted(map(describe_initializer, values))),
        "ends": digest([*map(describe_end, (*graph.inputs, *graph.outputs)), str(decoder.shape)]),
        "weights": digest(str(v.name) for v in values if isinstance(v.const_value, Weight)),
        "tables": {str(value.name): told_by_sum(array(value)) for value in tables},
    }


def digest(lines: Any) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def describe_node(node: ir.Node) -> str:
    attributes = {name: describe_attribute(node.attributes[name]) for name in node.attributes}
    inputs = [None if value is None else value.name for value in node.inputs]
    outputs = [value.name for value in node.outputs]
    kind = [node.domain, node.op_type, node.overload, node.name]
    return json.dumps([*kind, inputs, outputs, dict(sorted(attributes.items()))])


def describe_attribute(attribute: ir.Attr) -> list[str]:
    value = attribute.value
    if attribute.type == ir.AttributeType.FLOAT:
        value = np.float32(value)  # what the file holds
    return [attribute.type.name, str(value)]


def describe_initializer(value: ir.Value) -> str:
    assert value.const_value is not None
    tensor = value.const_value
    data = "" if is_table(value) else hashlib.sha256(array(value).tobytes()).hexdigest()
    learned = getattr(tensor, "learned", None)
    return json.dumps([value.name, str(tensor.dtype), str(tensor.shape), learned, data])


def describe_end(value: ir.Value) -> str:
    return json.dumps([value.name, str(value.type), str(value.shape)])


def is_table(value: ir.Value) -> bool:
    tensor = value.const_value
    if isinstance(tensor, Weight):
        return not tensor.learned
    return tensor is not None and tensor.dtype == ir.DataType.FLOAT and tensor.size > 1


def array(value: ir.Value) -> NDArray[Any]:
    assert value.const_value is not None
    return np.ascontiguousarray(value.const_value.numpy())


def told_by_sum(table: NDArray[Any]) -> float:
    """A number that changes with every value and its place, but not much with its last bit."""
    places = np.sqrt(np.arange(1, table.size + 1)).reshape(table.shape)
    return round(float((table * places).sum()), 2)


if __name__ == "__main__":
    print(json.dumps({name: digests(checkpoint_of(name)) for name in CASES}, indent=1))
