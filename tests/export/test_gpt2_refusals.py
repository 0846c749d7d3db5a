"""What GPT-2's graph cannot do is refused by name and value, before a weight is read."""

from __future__ import annotations

import math
import re
import tracemalloc
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import gpt2_config, gpt2_tensors
from numpy.typing import NDArray

from pocketlm.export.architectures import find_architecture, known_architectures
from pocketlm.export.architectures.gpt2 import ARCHITECTURE, Config
from pocketlm.export.checkpoint import Checkpoint, CheckpointTensor
from pocketlm.export.errors import CheckpointError
from pocketlm.export.external_data import plan_ranges
from pocketlm.export.strict_json import shown
from pocketlm.export.writing import count_parameters

Shapes = dict[str, tuple[int, ...]]


def gpt2_shapes(config: Mapping[str, Any]) -> Shapes:
    """The tensors of a published GPT-2, taken from a one-layer toy whose sizes all differ."""
    toy = {"n_embd": 8, "n_inner": 40, "vocab_size": 11, "n_positions": 13, "n_layer": 1}
    d = config["n_embd"]
    sizes = {8: d, 24: 3 * d, 40: 4 * d, 11: config["vocab_size"], 13: config["n_positions"]}
    shapes = {}
    for name, values in gpt2_tensors(toy, prefix="").items():
        for i in range(config["n_layer"] if name.startswith("h.0.") else 1):
            shape = tuple(sizes[size] for size in values.shape)
            shapes[name.replace("h.0.", f"h.{i}.")] = shape
    return shapes


def unreadable(config: dict[str, Any], shapes: Shapes) -> Checkpoint:
    """A checkpoint whose headers are all there is."""

    def rows(start: int, stop: int) -> NDArray[np.float32]:
        raise AssertionError("building a graph reads no weight")

    tensors = {
        name: CheckpointTensor(name, shape, "float32", "f.safetensors", 4 * math.prod(shape), rows)
        for name, shape in shapes.items()
    }
    return Checkpoint(Path("nowhere"), config, tensors, {})


# Published sizes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layers, heads, width, parameters",
    [
        (12, 12, 768, 124_439_808),
        (24, 16, 1024, 354_823_168),
        (36, 20, 1280, 774_030_080),
        (48, 25, 1600, 1_557_611_200),
    ],
)
def test_published_sizes_build_without_reading_a_weight(
    layers: int, heads: int, width: int, parameters: int
) -> None:
    sizes = {"vocab_size": 50257, "n_positions": 1024, "n_embd": width}
    config = gpt2_config(**sizes, n_layer=layers, n_head=heads)
    model, shape = ARCHITECTURE.build(unreadable(config, gpt2_shapes(config)))
    assert (shape.num_layers, shape.head_size, shape.hidden_size) == (layers, 64, width)
    assert count_parameters(model) == parameters
    assert plan_ranges(model)[1] >= 4 * parameters
    assert len(model.graph.inputs) == 4 + 2 * layers


# Configuration ----------------------------------------------------------------------------------

NO_COUNT: list[Any] = [0, -1, 1.5, "12", True, None, [], {}, 1 << 24, 10**350]
REFUSED: dict[str, list[Any]] = {
    **dict.fromkeys(("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"), NO_COUNT),
    "n_inner": [value for value in NO_COUNT if value is not None],
    "layer_norm_epsilon": [0, -1e-5, "1e-5", True, None, [1e-5], -0.0, 10**350, 1e300],
    "scale_attn_weights": [0, 1, "true", None, []],
    "tie_word_embeddings": [0, 1, "true", None, {}],
    "activation_function": [3, None, True, ["relu"], "swish", "GELU", ""],
    "scale_attn_by_inverse_layer_idx": [True, 1, "yes"],
    "add_cross_attention": [True, 1, []],
}


@pytest.mark.parametrize(
    "name, value",
    [(name, value) for name, values in REFUSED.items() for value in values],
    ids=lambda item: f"{item!s:.20}",
)
def test_a_field_that_cannot_be_built_is_refused_by_name_and_value(name: str, value: Any) -> None:
    config = gpt2_config() | {name: value}
    with pytest.raises(CheckpointError, match=rf"^config\.json: {name} is .*, expected ") as caught:
        ARCHITECTURE.build(unreadable(config, gpt2_shapes(gpt2_config())))
    assert str(value)[:40] in str(caught.value)


def test_a_deeply_nested_value_is_refused_and_not_printed() -> None:
    value: Any = 1
    for _ in range(5000):
        value = [value]
    for name in ("n_embd", "add_cross_attention"):
        with pytest.raises(CheckpointError, match=rf"config\.json: {name} is "):
            Config.read(gpt2_config() | {name: value})


@pytest.mark.parametrize("name", known_architectures())
def test_millions_of_layers_are_refused_before_they_are_listed(name: str) -> None:
    field = "n_layer" if name == "gpt2" else "num_hidden_layers"
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=f"{field} is '10000000', .* up to 2,048;"):
            find_architecture({"model_type": name}).tensor_shapes({field: 10_000_000})
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("width, heads", [(36, 3), (32, 3), (32, 8), (20, 1)])
def test_a_head_size_without_a_kernel_is_refused(width: int, heads: int) -> None:
    with pytest.raises(CheckpointError, match=rf"n_embd {width} over n_head {heads} .*multiple of"):
        Config.read(gpt2_config(n_embd=width, n_head=heads))


def test_fields_may_be_absent_null_or_neutral() -> None:
    assert Config.read({}) == Config()
    neutral = {"n_inner": None, "add_cross_attention": False}
    assert Config.read(neutral | {"scale_attn_by_inverse_layer_idx": None}) == Config()
    assert Config.read({"layer_norm_epsilon": 1}).layer_norm_epsilon == 1.0


# Tensors ----------------------------------------------------------------------------------------

TINY_SHAPES = gpt2_shapes(gpt2_config())


@pytest.mark.parametrize("name", TINY_SHAPES)
def test_a_missing_tensor_is_named(name: str) -> None:
    shapes = {key: shape for key, shape in TINY_SHAPES.items() if key != name}
    with pytest.raises(CheckpointError, match=rf"^tensor '{re.escape(name)}' is missing, expected"):
        ARCHITECTURE.build(unreadable(gpt2_config(), shapes))


@pytest.mark.parametrize("name", TINY_SHAPES)
def test_a_misshaped_tensor_is_named_with_both_shapes(name: str) -> None:
    right = TINY_SHAPES[name]
    wrong_ones: list[tuple[int, ...]] = [(*right, 1), (right[0] + 1, *right[1:]), ()]
    for wrong in wrong_ones:
        with pytest.raises(CheckpointError) as caught:
            ARCHITECTURE.build(unreadable(gpt2_config(), TINY_SHAPES | {name: wrong}))
        message = f"f.safetensors: tensor '{name}' has shape {wrong}, expected {right}"
        assert message in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["score.weight", "h.2.ln_1.weight", "h.0.crossattention.c_attn.weight", "h.0.attn.scales"],
)
def test_an_extra_tensor_is_named(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"a tensor '{re.escape(name)}' that config.json"):
        ARCHITECTURE.build(unreadable(gpt2_config(), TINY_SHAPES | {name: (32,)}))


def test_the_same_tensor_with_and_without_prefix_is_refused() -> None:
    shapes = TINY_SHAPES | {"transformer.ln_f.bias": (32,)}
    with pytest.raises(CheckpointError, match="'ln_f.bias' and 'transformer.ln_f.bias' are both"):
        ARCHITECTURE.build(unreadable(gpt2_config(), shapes))


def test_a_tensor_that_is_not_floating_point_is_refused() -> None:
    checkpoint = unreadable(gpt2_config(), TINY_SHAPES)
    name = "h.0.mlp.c_fc.weight"
    checkpoint.tensors[name] = replace(checkpoint.tensors[name], dtype="int8")
    with pytest.raises(CheckpointError, match=f"tensor '{name}' is int8, expected one of float32"):
        ARCHITECTURE.build(checkpoint)


# Architecture -----------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["bloom", "GPT2", "__init__", None, 3, ["gpt2"], "../gpt2"])
def test_an_unknown_architecture_is_answered_with_the_known_ones(model_type: Any) -> None:
    assert "gpt2" in known_architectures()
    with pytest.raises(CheckpointError) as caught:
        find_architecture({"model_type": model_type})
    assert f"model_type is {shown(model_type)}, expected one of " in str(caught.value)
    assert ", ".join(known_architectures()) in str(caught.value)


@pytest.mark.parametrize("name", known_architectures())
def test_every_architecture_of_the_listing_can_be_found(name: str) -> None:
    assert callable(find_architecture({"model_type": name}).build)
