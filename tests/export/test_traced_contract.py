"""Graphs of others are checked before they are used; each refusal names what is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from traced_graphs import GPT2, LLAMA, traced_model

from pocketlm.export.errors import CheckpointError
from pocketlm.export.folder import DecoderShape
from pocketlm.export.graph import Graph
from pocketlm.export.traced.contract import DEFAULT_CONTEXT, check_trace, read_shape


def test_the_sizes_come_from_the_graph_and_the_config() -> None:
    model = traced_model(LLAMA)
    check_trace(model)
    sizes = {"num_heads": 6, "context_length": 64, "hidden_size": 96}
    expected = DecoderShape(
        vocab_size=300,
        context_length=64,
        hidden_size=96,
        num_layers=2,
        num_heads=6,
        kv_heads=2,
        head_size=16,
    )
    assert read_shape(model, sizes) == expected


def test_a_config_without_a_context_length_gets_the_default() -> None:
    assert read_shape(traced_model(GPT2), {}).context_length == DEFAULT_CONTEXT


def value(model: ir.Model, name: str) -> ir.Value:
    values = (*model.graph.inputs, *model.graph.outputs)
    return next(item for item in values if item.name == name)


def rename(old: str, new: str) -> Callable[[ir.Model], None]:
    return lambda model: setattr(value(model, old), "name", new)


def retype(name: str, dtype: ir.DataType, *dims: int | str) -> Callable[[ir.Model], None]:
    def change(model: ir.Model) -> None:
        found = value(model, name)
        found.type, found.shape = ir.TensorType(dtype), ir.Shape(dims)

    return change


FLOAT, HALF, INT32 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.INT32
PAST = "past_key_values.1.key"
SHAPES = {
    "one tensor for keys and values": (
        rename("past_key_values.0.key", "past_key_values.0.key_value"),
        "has past_key_values.0.key, past_key_values.0.key_value, expected .* by themselves",
    ),
    "input of another kind": (rename("position_ids", "cache_position"), "has cache_position"),
    "no logits": (rename("logits", "scores"), "has logits, scores"),
    "batch and heads as one": (
        retype(PAST, FLOAT, "batch_size * num_heads", 8, "past"),
        r"has past_key_values.1.key as FLOAT \[batch_size \* num_heads,8,past\]",
    ),
    "unknown heads": (
        retype(PAST, FLOAT, "b", "heads", "past", 8),
        r"has past_key_values.1.key of \[b,heads,past,8\]",
    ),
    "layers of two sizes": (
        retype(PAST, FLOAT, "b", 4, "past", 16),
        r"has caches of different sizes \[\(4, 8\), \(4, 16\)\]",
    ),
    "float16 cache": (
        retype(PAST, HALF, "b", 4, "past", 8),
        "has past_key_values.1.key as FLOAT16",
    ),
    "int32 mask": (retype("attention_mask", INT32, "b", "t"), "has attention_mask as INT32"),
    "open vocabulary": (retype("logits", FLOAT, "b", "s", "v"), "has logits of v numbers"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_what_the_loop_cannot_feed_is_refused_by_name(name: str) -> None:
    change, message = SHAPES[name]
    model = traced_model(GPT2)
    change(model)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_shape(model, {})
    assert "this runtime cannot run it" in str(caught.value)


def test_a_graph_without_a_cache_is_refused() -> None:
    g = Graph("no cache")
    ids = g.input("input_ids", np.int64, ["b", "s"])
    g.input("attention_mask", np.int64, ["b", "t"])
    g.output(g.Cast(g.Unsqueeze(ids, g.int64s(2)), to=FLOAT), "logits", np.float32, ["b", "s", 1])
    with pytest.raises(CheckpointError, match="has no past_key_values"):
        read_shape(g.model(), {})


def foreign_operator(model: ir.Model) -> None:
    node = next(iter(model.graph))
    node.domain = "com.example"


def foreign_place(location: str) -> Callable[[ir.Model], None]:
    tensor = ir.ExternalTensor(location, 0, 4, FLOAT, shape=ir.Shape([1]), name="w")

    def change(model: ir.Model) -> None:
        model.graph.initializers["embed.weight"].const_value = tensor

    return change


def in_an_attribute(model: ir.Model) -> None:
    tensor = ir.ExternalTensor("../secret", 0, 4, FLOAT, shape=ir.Shape([1]), name="w")
    node = next(node for node in model.graph if node.op_type == "Constant")
    node.attributes["value"] = ir.AttrTensor("value", tensor)


def in_a_branch(location: str) -> Callable[[ir.Model], None]:
    def change(model: ir.Model) -> None:
        inner = ir.Node("", "Identity", [])
        tensor = ir.ExternalTensor(location, 0, 4, FLOAT, shape=ir.Shape([1]), name="w")
        inner.attributes["hidden"] = ir.AttrTensor("hidden", tensor)
        branch = ir.Graph([], [], nodes=[inner], name="branch")
        attributes = [ir.AttrGraph("then_branch", branch)]
        first = next(iter(model.graph))
        model.graph.insert_before(first, ir.Node("", "If", [], attributes=attributes))

    return change


def with_a_function(model: ir.Model) -> None:
    function = ir.Function("com.example", "f", graph=ir.Graph([], [], nodes=[]), attributes=[])
    model.functions[function.identifier()] = function


GRAPHS: dict[str, tuple[Any, str]] = {
    "operator": (foreign_operator, "the operator com.example::Shape, expected operators of ONNX"),
    "outside": (foreign_place("../secret"), "'embed.weight' in the file '../secret'"),
    "absolute": (foreign_place("/etc/passwd"), "in the file '/etc/passwd', expected model.onnx_"),
    "attribute": (in_an_attribute, "in the file '../secret'"),
    "branch": (in_a_branch("../secret"), "in the file '../secret'"),
    "weight in a branch": (in_a_branch("model.onnx_data"), "a branch, expected weights of the"),
    "function": (with_a_function, "has 1 functions, expected none"),
    "opset": (
        lambda model: model.graph.opset_imports.update({"": 11}),
        "has opset 11, expected 18 to 23",
    ),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_what_is_not_plain_onnx_is_refused(name: str) -> None:
    change, message = GRAPHS[name]
    model = traced_model(GPT2)
    change(model)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        check_trace(model)
