"""A GGUF file of each known architecture is the graph, and has the weights, of its checkpoint.

The checkpoints are those of the other tests; what llama.cpp changes is done by ``gguf_files``.
"""

from __future__ import annotations

import math
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import gpt2_config, gpt2_tensors
from gguf_files import (
    F16,
    F32,
    Raw,
    arranged,
    described,
    gguf,
    gguf_bytes,
    stored,
    write_gguf,
)
from gpt2_checkpoints import CASES as GPT2_CASES
from graph_digests import digests, in_memory
from llama_checkpoints import ALL_FIELDS, CASES, OTHER_FIELDS, llama_config, llama_tensors

from pocketlm.export.architectures import known_architectures
from pocketlm.export.checkpoint import Checkpoint, open_checkpoint
from pocketlm.export.errors import CheckpointError
from pocketlm.export.gguf.families import FAMILIES, NAMES

# What no file says, so that it is as llama.cpp computes it.
UNSAID = {"hidden_act", "hidden_activation", "layer_types", "no_rope_layers", "qk_layernorm"}
UNSAID |= {"use_sliding_window", "max_window_layers", "no_rope_layer_interval"}
UNSAID |= {"query_pre_attn_scalar", "rope_parameters", "rope_scaling", "head_dim"}
FIXED: dict[str, dict[str, Any]] = {
    "smollm3": {"no_rope_layer_interval": 4, "num_hidden_layers": 4},
    "gemma2": {"query_pre_attn_scalar": 16.0, "sliding_window_pattern": 2},
    "gemma3_text": {"query_pre_attn_scalar": 16.0},
}
WITH_WINDOW = ("mistral", "phi3", "gemma2", "gemma3_text")
SAID = {"linear rope", "head size 8", "head size 64", "small heads"}  # cases of what is unsaid
NOT_SAID = ("window, no biases", "no softcaps")
LLAMA = {
    name: case
    for name, case in CASES.items()
    if name.partition(", ")[2] in SAID
    or not (UNSAID & case.config.keys() or name.endswith(("all fields", *NOT_SAID)))
}
GPT2 = ("tiny", "odd vocabulary", "uneven feed-forward", "untied", "large epsilon", "head size 16")


def llama_case(model_type: str, **fields: Any) -> tuple[dict[str, Any], Any]:
    config = llama_config(model_type, **FIXED.get(model_type, {}) | fields)
    return config, llama_tensors(config)


def opened(file: Path, config: dict[str, Any], tensors: Any, **entries: Any) -> Checkpoint:
    return open_checkpoint(write_gguf(file, config, tensors, entries=entries))


def as_checkpoint(config: dict[str, Any], tensors: Any) -> Checkpoint:
    """The same model, in Hugging Face's order."""
    checkpoint = in_memory(config, tensors)
    named = {name: _replaced(checkpoint.tensors[name], values) for name, values in tensors.items()}
    return Checkpoint(checkpoint.path, config, named, {})


def _replaced(tensor: Any, values: Any) -> Any:
    return replace(tensor, rows=lambda start, stop: values[start:stop])


@pytest.mark.parametrize("name", LLAMA)
def test_the_graph_and_weights_are_those_of_the_checkpoint(name: str, tmp_path: Path) -> None:
    case = LLAMA[name]
    config = llama_config(case.model_type, **case.config | FIXED.get(case.model_type, {}))
    tensors = llama_tensors(config, prefix=case.prefix)
    found = opened(tmp_path / "m.gguf", config, tensors)
    assert digests(found) == digests(as_checkpoint(config, tensors))


@pytest.mark.parametrize("model_type", ALL_FIELDS)
def test_every_number_is_read(model_type: str, tmp_path: Path) -> None:
    fields = OTHER_FIELDS | ALL_FIELDS[model_type]
    fields = {name: value for name, value in fields.items() if name not in UNSAID}
    if model_type not in WITH_WINDOW:
        fields.pop("sliding_window", None)
    fixed = FIXED.get(model_type, {})
    if model_type == "gemma2":
        fixed = fixed | {"final_logit_softcapping": 4.0, "tie_word_embeddings": True}
    if "query_pre_attn_scalar" in fixed:
        fixed = fixed | {"head_dim": 32, "query_pre_attn_scalar": 32.0}
    config = llama_config(model_type, **fields | fixed)
    prefix = "gpt_neox." if model_type == "gpt_neox" else "model."
    tensors = llama_tensors(config, prefix=prefix)
    found = opened(tmp_path / "m.gguf", config, tensors)
    assert digests(found) == digests(as_checkpoint(config, tensors))


@pytest.mark.parametrize("name", GPT2)
def test_gpt2_is_turned_around(name: str, tmp_path: Path) -> None:
    case = GPT2_CASES[name]
    config = gpt2_config(**case.config)
    tensors = gpt2_tensors(config, prefix=case.prefix)
    found = opened(tmp_path / "m.gguf", config, tensors)
    assert digests(found) == digests(as_checkpoint(config, tensors))


def test_every_family_that_is_built_has_a_test() -> None:
    built = {family.architecture for family in FAMILIES.values()} & {*known_architectures()}
    assert built <= {"gpt2", *ALL_FIELDS}
    assert built >= {"llama", "qwen2", "qwen3", "phi3", "olmo2", "gemma3_text", "gpt2"}


def test_some_rows_of_a_changed_tensor_are_those_of_all(tmp_path: Path) -> None:
    config, tensors = llama_case("llama", head_dim=8, attention_bias=True)
    found = opened(tmp_path / "m.gguf", config, tensors).tensors
    for name in ("q_proj.weight", "k_proj.weight", "q_proj.bias"):
        tensor, values = found[f"model.layers.1.self_attn.{name}"], tensors
        values = tensors[f"model.layers.1.self_attn.{name}"]
        for start, stop in ((0, 1), (3, 5), (7, 9), (8, 16), (5, len(values))):
            np.testing.assert_array_equal(tensor.rows(start, stop), values[start:stop])
    gpt2 = gpt2_config()
    weights = gpt2_tensors(gpt2)
    name = "transformer.h.0.mlp.c_fc.weight"
    tensor = opened(tmp_path / "g.gguf", gpt2, weights).tensors[name]
    assert tensor.whole and tensor.shape == weights[name].shape
    np.testing.assert_array_equal(tensor.rows(3, 7), weights[name][3:7])


# --- the head -----------------------------------------------------------------------------------


def test_a_head_that_is_the_embedding_once_more_is_tied(tmp_path: Path) -> None:
    config = gpt2_config()
    tensors = gpt2_tensors(config)
    twice = tensors | {"lm_head.weight": tensors["transformer.wte.weight"]}
    found = opened(tmp_path / "m.gguf", config, twice)
    assert found.config["tie_word_embeddings"] and "lm_head.weight" not in found.tensors
    other = twice | {"lm_head.weight": tensors["transformer.wte.weight"].copy()}
    other["lm_head.weight"][-1, -1] += 1
    found = opened(tmp_path / "n.gguf", config, other)
    assert not found.config["tie_word_embeddings"] and "lm_head.weight" in found.tensors


def test_a_head_in_another_type_is_one_of_its_own(tmp_path: Path) -> None:
    config, tensors = llama_case("llama", tie_word_embeddings=True)
    weights = {name: stored(values) for name, values in arranged(config, tensors).items()}
    table = tensors["model.embed_tokens.weight"]
    weights["output.weight"] = stored(table, F16)
    (tmp_path / "m.gguf").write_bytes(gguf_bytes(described(config), weights))
    assert not open_checkpoint(tmp_path / "m.gguf").config["tie_word_embeddings"]


# --- the rotation -------------------------------------------------------------------------------


def rotated(tmp_path: Path, factors: Any = None, **entries: Any) -> Any:
    """``rope_scaling`` of a Llama with these entries, and a tensor of factors."""
    config, tensors = llama_case("llama", rope_theta=500000.0, head_dim=64)
    weights = {name: stored(values) for name, values in arranged(config, tensors).items()}
    if factors is not None:
        weights["rope_freqs.weight"] = stored(np.asarray(factors, np.float32), F32)
    about = described(config) | {f"llama.rope.{name}": value for name, value in entries.items()}
    (tmp_path / "m.gguf").write_bytes(gguf_bytes(about, weights))
    return open_checkpoint(tmp_path / "m.gguf").config["rope_scaling"]


LLAMA31 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def llama3_factors(factor: float, theta: float, pairs: int) -> list[float]:
    """As ``convert_hf_to_gguf.py`` computes them."""
    factors = []
    for j in range(pairs):
        wavelength = 2 * math.pi * theta ** (j / pairs)
        if wavelength < 8192 / 4:
            factors.append(1.0)
        elif wavelength > 8192 / 1:
            factors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_numbers_of_llama3_are_found_again(factor: float, tmp_path: Path) -> None:
    factors = llama3_factors(factor, 500000.0, 32)
    assert rotated(tmp_path, factors) == LLAMA31 | {"factor": factor}


def test_other_factors_are_kept_as_they_are(tmp_path: Path) -> None:
    factors = [1.0 + 0.25 * i for i in range(32)]
    assert rotated(tmp_path, factors) == {
        "rope_type": "longrope",
        "short_factor": factors,
        "long_factor": factors,
        "attention_factor": 1.0,
        "original_max_position_embeddings": 64,
    }
    assert rotated(tmp_path, [1.0] * 32) is None


def test_scaling_is_read_from_its_entries(tmp_path: Path) -> None:
    linear = {"rope_type": "linear", "factor": 4.0}
    assert rotated(tmp_path, **{"scaling.type": "linear", "scaling.factor": 4.0}) == linear
    assert rotated(tmp_path, **{"scaling.factor": 4.0}) == linear
    assert rotated(tmp_path, scale_linear=4.0) == linear
    for nothing in ({"scaling.type": "none"}, {"scaling.factor": 0.0}, {"scaling.factor": 1.0}):
        assert rotated(tmp_path, **nothing) is None
    yarn = {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.original_context_length": 32}
    assert rotated(tmp_path, **yarn, **{"scaling.yarn_beta_fast": 16.0}) == {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "beta_fast": 16.0,
    }


def test_longrope_of_phi3_is_in_two_tensors(tmp_path: Path) -> None:
    config, tensors = llama_case("phi3")
    weights = {name: stored(values) for name, values in arranged(config, tensors).items()}
    short, long = [1.0] * 8, [1.0 + i for i in range(8)]
    weights["rope_factors_short.weight"] = stored(np.array(short, np.float32))
    weights["rope_factors_long.weight"] = stored(np.array(long, np.float32))
    about = described(config)
    about |= {
        "phi3.rope.scaling.original_context_length": 32,
        "phi3.rope.scaling.attn_factor": 1.25,
    }
    (tmp_path / "m.gguf").write_bytes(gguf_bytes(about, weights))
    assert open_checkpoint(tmp_path / "m.gguf").config["rope_scaling"] == {
        "rope_type": "longrope",
        "original_max_position_embeddings": 32,
        "short_factor": short,
        "long_factor": long,
        "attention_factor": 1.25,
    }


# --- refusals -----------------------------------------------------------------------------------

NOTHING = Raw(struct.pack("<IIQ", 9, 6, 0))  # an array
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": (
        {"general.architecture": "mamba"},
        "general.architecture is 'mamba', expected one of gemma",
    ),
    "no architecture": ({"general.architecture": 3}, "general.architecture is '3', expected a te"),
    "adapter": ({"general.type": "adapter"}, "general.type is 'adapter', expected model"),
    "experts": ({"llama.expert_count": 8}, "llama.expert_count is '8', expected none; it may ask"),
    "unknown entry": ({"llama.logit_scale": 2.0}, "llama.logit_scale is '2.0', expected none"),
    "entry of two lines": ({"llama.a\nb": 1}, "'llama.a\\nb' is '1', expected none"),
    "text for a number": ({"llama.block_count": "2"}, "block_count is '2', expected a number from"),
    "negative": ({"llama.block_count": Raw(b"\5\0\0\0\xff\xff\xff\xff")}, "block_count is '-1'"),
    "zero": ({"llama.embedding_length": 0}, "embedding_length is '0', expected a number from 1"),
    "a flag": ({"llama.context_length": True}, "llama.context_length is 'True', expected a numb"),
    "too many layers": ({"llama.block_count": 10**6}, "expected a number from 1 to 2,048"),
    "heads by layer": ({"llama.attention.head_count": [6, 4]}, "head_count has 2 values ('[6, 4]'"),
    "other values": (
        {"llama.attention.value_length": 8},
        "value_length is '8', expected 16, the s",
    ),
    "part of a head": ({"llama.rope.dimension_count": 8}, "dimension_count is '8', expected 16"),
    "rope kind": ({"llama.rope.scaling.type": "su"}, "type is 'su', expected one of none, linear"),
    "several for one": (
        {"llama.attention.sliding_window": [1.0, 2.0]},
        "sliding_window has 2 values ('[1.0, 2.0]'), expected a number from 1",
    ),
    "several factors": ({"llama.rope.scaling.factor": [1.0, 2.0]}, "factor has 2 values"),
    "no factors": ({"llama.rope.scale_linear": NOTHING}, "scale_linear has 0 values"),
    "infinite epsilon": (
        {"llama.attention.layer_norm_rms_epsilon": float("inf")},
        "layer_norm_rms_epsilon is 'inf', expected a positive number",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_what_is_not_built(case: str, tmp_path: Path) -> None:
    entries, problem = REFUSED[case]
    config, tensors = llama_case("llama")
    with pytest.raises(CheckpointError) as caught:
        opened(tmp_path / "m.gguf", config, tensors, **entries)
    message = str(caught.value)
    assert message.startswith("m.gguf: ") and problem in message, message
    assert "\n" not in message and len(message) < 500


def test_numbers_that_are_the_same_in_every_layer_are_one(tmp_path: Path) -> None:
    config, tensors = llama_case("llama")
    entries = {"llama.attention.head_count_kv": [2, 2], "llama.expert_count": 0}
    found = opened(tmp_path / "m.gguf", config, tensors, **entries)
    assert found.config["num_key_value_heads"] == 2


def test_a_tensor_that_is_no_part_of_the_architecture_is_named(tmp_path: Path) -> None:
    config, tensors = llama_case("llama")
    weights = {name: stored(values) for name, values in arranged(config, tensors).items()}
    weights["blk.0.attn_sinks.weight"] = stored(np.ones(6, np.float32))
    (tmp_path / "m.gguf").write_bytes(gguf_bytes(described(config), weights))
    with pytest.raises(CheckpointError, match="found a tensor 'blk.0.attn_sinks.weight'"):
        digests(open_checkpoint(tmp_path / "m.gguf"))


def test_without_an_embedding_it_is_no_model(tmp_path: Path) -> None:
    config, _ = llama_case("llama")
    (tmp_path / "m.gguf").write_bytes(gguf_bytes(described(config), {}))
    with pytest.raises(CheckpointError, match="found no tensor 'token_embd.weight', expected one"):
        open_checkpoint(tmp_path / "m.gguf")


def test_names_are_those_of_the_package(tmp_path: Path) -> None:
    """Every tensor that llama.cpp lists for a family is one of ours, or said to be left out."""
    unused = {"rope_freqs", "rope_factors_long", "rope_factors_short", "blk.{bid}.attn_rot_embd"}
    # Not built, so that they are refused by name: fused in one family, apart in another.
    unused |= {"blk.{bid}.attn_qkv", "blk.{bid}.attn_q", "blk.{bid}.attn_k", "blk.{bid}.attn_v"}
    unused |= {"blk.{bid}.attn_q_norm", "blk.{bid}.attn_k_norm"}  # of StableLM 2 12B
    unused |= {"blk.{bid}.ffn_norm"}  # listed for Phi 2, which has one norm
    for name, family in FAMILIES.items():
        kind = next(a for a, known in gguf.MODEL_ARCH_NAMES.items() if known == name)
        listed = {gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[kind]}
        ours = {*(family.names or NAMES), *(f"blk.{{bid}}.{part}" for part in family.layer_names)}
        core = {tensor for tensor in listed if "exp" not in tensor and "inp" not in tensor}
        assert core - ours <= unused, name
