"""Llama and its kin: the graphs build (contract) and match their NumPy twins, field by field."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from checkpoint_files import NUMPY_DTYPES, write_checkpoint
from llama_checkpoints import (
    CASES,
    CLASSES,
    LLAMA3,
    LONGROPE,
    WRAPPED,
    YARN,
    Case,
    Tensors,
    llama_config,
    llama_tensors,
)
from model_folders import report_of
from numpy.typing import NDArray
from reference import gemma3, layer_normed, llama, olmo2

from pocketlm.export.architectures import find_architecture, known_architectures
from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.config_fields import DERIVED
from pocketlm.export.errors import CheckpointError
from pocketlm.export.folder import ModelFolder
from pocketlm.export.writing import export_model
from pocketlm.quantize.run import precision_of
from pocketlm.runtime.concatenating import ConcatenatingCache
from pocketlm.runtime.session import Session

IDS = [(7 * i + 3) % 97 for i in range(20)]


@dataclass(frozen=True)
class Exported:
    """A case on disk: what the twin gets, and the model folder made from the same files."""

    config: dict[str, Any]
    tensors: dict[str, NDArray[Any]]  # rounded as they are stored
    source: Path
    folder: ModelFolder

    def expected(self, ids: list[int]) -> llama.Array:
        twins = {
            "gemma2": gemma3.forward,
            "gemma3_text": gemma3.forward,
            "olmo2": olmo2.forward,
            **{family: layer_normed.forward for family in layer_normed.FAMILIES},
        }
        twin = twins.get(self.config["model_type"], llama.forward)
        return twin(self.config, self.tensors, ids)


def exported_case(case: Case, root: Path) -> Exported:
    config = llama_config(case.model_type, **case.config)
    tensors = llama_tensors(config, prefix=case.prefix)
    source = write_checkpoint(
        root / "source", config, tensors, dtype=case.dtype, shards=case.shards
    )
    rounded = {
        name: values.astype(NUMPY_DTYPES[case.dtype]).astype(np.float32)
        for name, values in tensors.items()
    }
    folder = export_model(open_checkpoint(source), root / "out")
    return Exported(config, rounded, source, folder)


@pytest.fixture(scope="module", params=list(CASES.values()), ids=list(CASES))
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Exported]:
    """Every case once, for all tests of this module that ask for it."""
    yield exported_case(request.param, tmp_path_factory.mktemp("llama"))


def test_every_architecture_has_a_case() -> None:
    found = {case.model_type for case in CASES.values()}
    assert found | {"gpt2", *WRAPPED} == set(known_architectures())


# Fields that a config of the family has no use for: the model published under it ignores them.
UNUSED = {
    "mistral": {"attention_bias", "mlp_bias"},
    "qwen2": {"attention_bias", "mlp_bias"},
    "qwen3": {"mlp_bias"},
    "phi3": {"attention_bias", "mlp_bias"},
    "olmo2": {"mlp_bias"},
    # Its own name for hidden_act is tested instead.
    "gemma2": {"mlp_bias", "hidden_act"},
    "gemma3_text": {"mlp_bias", "hidden_act", "attn_logit_softcapping", "final_logit_softcapping"},
    "phi": {"attention_bias", "mlp_bias", "rms_norm_eps"},
    "gpt_neox": {"mlp_bias", "rms_norm_eps", "num_key_value_heads", "head_dim"},
    "stablelm": {"head_dim", "attention_bias", "mlp_bias", "rms_norm_eps"},
    "starcoder2": {"attention_bias", "mlp_bias", "rms_norm_eps"},
}


@pytest.mark.parametrize("model_type", CLASSES)
def test_every_field_of_a_config_is_varied_by_a_case(model_type: str) -> None:
    fields = dataclasses.fields(find_architecture({"model_type": model_type}).config)
    configs = [
        llama_config(model_type, **case.config)
        for case in CASES.values()
        if case.model_type == model_type
    ]
    read = {field.name for field in fields if field.metadata != DERIVED}
    for name in read - UNUSED.get(model_type, set()):
        values = {repr(config.get(name)) for config in configs}
        assert len(values) > 1, f"{model_type}: no case varies {name}"


# Matches reference ------------------------------------------------------------------------------


def test_logits_match_the_twin_however_the_prompt_is_split(exported: Exported) -> None:
    """Float32 kernels against float64: 1e-4 of the largest logit is some ten times the rounding."""
    expected = exported.expected(IDS)
    tolerance = 1e-4 * np.abs(expected).max()
    session = Session(exported.folder, threads=1)
    for size in (len(IDS), 1, 3):
        for cache in (session.new_cache(), ConcatenatingCache(session.shape)):
            cache.text_length = len(IDS)
            parts = [IDS[start : start + size] for start in range(0, len(IDS), size)]
            found = np.concatenate([session.all_logits(part, cache) for part in parts])
            np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        {"type": "linear", "factor": 4.0},
        LLAMA3 | {"factor": 32.0, "original_max_position_embeddings": 8192},
    ],
    ids=["default", "linear", "llama3"],
)
def test_rotation_is_right_far_beyond_the_original_context(scaling: Any, tmp_path: Path) -> None:
    """One layer, so that the last token's logits need no attention matrix in the twin."""
    length = 9000
    case = Case(
        "llama",
        {
            "num_hidden_layers": 1,
            "max_position_embeddings": 131072,
            "rope_theta": 500000.0,
            "rope_scaling": scaling,
        },
    )
    exported = exported_case(case, tmp_path)
    ids = np.random.default_rng(3).integers(0, 97, length).tolist()

    config, w = exported.config, llama.Weights(exported.tensors)
    x = w["embed_tokens.weight"][ids]
    h = llama.rms_norm(x, w["layers.0.input_layernorm.weight"], config["rms_norm_eps"])
    q, k, v = llama.heads(config, w, h, "layers.0.self_attn")
    turns = llama.rotary_turns(config, length)
    q, k = llama.rotate(q, turns), llama.rotate(k, turns)
    attended = []
    for head in range(len(q)):
        scores = k[head // 3] @ q[head, -1] * llama.head_size(config) ** -0.5
        weights = np.exp(scores - scores.max())
        attended.append(weights / weights.sum() @ v[head // 3])
    x = x[-1] + w.linear(np.concatenate(attended), "layers.0.self_attn.o_proj")
    h = llama.rms_norm(x, w["layers.0.post_attention_layernorm.weight"], config["rms_norm_eps"])
    x = x + llama.feed_forward(w, h, "layers.0.mlp", "silu")
    expected = llama.rms_norm(x, w["norm.weight"], 1e-5) @ w["lm_head.weight"].T

    session = Session(exported.folder, threads=2)
    cache = session.new_cache()
    for start in range(0, length - 5, 1000):  # prefill in chunks, then decode
        session.step(ids[start : min(start + 1000, length - 5)], cache)
    for token in ids[-5:]:
        found = session.step([token], cache)
    # The angles are rounded to float32, as in training: 9000 radians have a last bit of 5e-4.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3 * np.abs(expected).max())


# Builds -----------------------------------------------------------------------------------------


def test_graph_passes_the_full_check_of_onnx(exported: Exported) -> None:
    onnx.checker.check_model(exported.folder.path / "model.onnx", full_check=True)


def test_inputs_and_outputs_are_the_contract(exported: Exported) -> None:
    graph = exported.folder.graph()
    heads = exported.config["num_key_value_heads"] or exported.config["num_attention_heads"]
    size = llama.head_size(exported.config)
    past = f"float[batch_size, {heads}, past_sequence_length, {size}]"
    present = f"float[batch_size, {heads}, total_sequence_length, {size}]"
    count, vocabulary = exported.config["num_hidden_layers"], exported.config["vocab_size"]
    layers = [f"{i}.{kind}" for i in range(count) for kind in ("key", "value")]
    scaling = exported.config.get("rope_scaling") or {}
    grows = scaling.get("rope_type", scaling.get("type")) in ("dynamic", "longrope")
    asked = {"text_length": "int64[]"} if grows else {}
    assert graph.inputs == {
        "input_ids": "int64[batch_size, sequence_length]",
        "attention_mask": "int64[batch_size, total_sequence_length]",
        "position_ids": "int64[batch_size, sequence_length]",
        "num_logits_to_keep": "int64[]",
        **asked,
        **{f"past_key_values.{layer}": past for layer in layers},
    }
    assert graph.outputs == {
        "logits": f"float[batch_size, sequence_length, {vocabulary}]",
        **{f"present.{layer}": present for layer in layers},
    }


def test_parameters_are_the_numbers_of_the_checkpoint(exported: Exported) -> None:
    expected = sum(values.size for values in exported.tensors.values())
    assert exported.folder.manifest.num_parameters == expected


@pytest.mark.parametrize("precision", ["int8", "int8-weight", "int4"])
def test_every_linear_layer_is_quantized_and_stays_close(
    precision: str, exported: Exported, tmp_path: Path
) -> None:
    folder = export_model(
        open_checkpoint(exported.source), tmp_path / "out", precision_of(precision)
    )
    found = {tensor.name for tensor in report_of(folder).tensors}
    bare = find_architecture(exported.config).bare
    assert found == {bare(name) for name, values in exported.tensors.items() if values.ndim == 2}
    assert not report_of(folder).skipped
    expected = exported.expected(IDS)
    session = Session(folder, threads=1)
    logits = session.all_logits(IDS, session.new_cache())
    # Random weights: a loose bound that a wrong layout would break.
    error = np.linalg.norm(logits - expected) / np.linalg.norm(expected)
    assert error < {"int8": 0.1, "int8-weight": 0.1, "int4": 0.5}[precision]


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_bytes_do_not_depend_on_pieces_threads_or_the_way_through_fp32(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = llama_config("qwen3", vocab_size=500)
    source = write_checkpoint(tmp_path / "in", config, llama_tensors(config), shards=2)
    plain = export_model(open_checkpoint(source), tmp_path / "plain", precision_of(precision))
    monkeypatch.setattr("pocketlm.export.graph.PIECE_BYTES", 3000)
    monkeypatch.setattr("pocketlm.export.external_data.default_threads", lambda: 5)
    pieces = export_model(open_checkpoint(source), tmp_path / "pieces", precision_of(precision))
    assert pieces.files["model.onnx_data"] == plain.files["model.onnx_data"]
    if precision != "fp32":
        full = export_model(open_checkpoint(source), tmp_path / "full")
        again = export_model(full, tmp_path / "again", precision_of(precision))
        assert again.files["model.onnx_data"] == plain.files["model.onnx_data"]
        assert report_of(again).tensors == report_of(plain).tensors
        assert again.manifest.num_parameters == plain.manifest.num_parameters


# Refusals ---------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "another kind": ("llama", {"rope_scaling": {"rope_type": "axial"}}, "axial"),
    "short factors": ("phi3", {"rope_scaling": LONGROPE | {"short_factor": [1.0]}}, "short_factor"),
    "long factors": ("phi3", {"rope_scaling": {"type": "su", "short_factor": [1.0] * 8}}, "long_"),
    "dynamic": ("qwen2", {"rope_scaling": {"type": "dynamic"}}, "factor"),
    "yarn, unknown field": ("llama", {"rope_scaling": YARN | {"beta_slower": 1}}, "beta_slower"),
    "unknown field": ("llama", {"rope_parameters": {"alpha": 1000.0}}, "'alpha'"),
    "share of no use": ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_ro"),
    "kinds of no use": ("llama", {"rope_parameters": {"full_attention": {}}}, "full_attention"),
    "kind is a list": ("llama", {"rope_scaling": {"rope_type": ["linear"]}}, "rope_scaling"),
    "no blend": ("llama", {"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}}, "low_freq_factor"),
    "no factor": ("llama", {"rope_scaling": {"type": "linear"}}, "factor"),
    "bad factor": ("llama", {"rope_scaling": {"type": "linear", "factor": -1}}, "factor"),
    "scaling is a list": ("llama", {"rope_scaling": [1]}, "rope_scaling"),
    "theta": ("llama", {"rope_theta": "many"}, "rope_theta"),
    "theta beyond float32": ("llama", {"rope_theta": 1e300}, "rope_theta"),
    "theta below float32": ("llama", {"rope_theta": 1e-300}, "rope_theta"),
    "theta of 351 digits": ("llama", {"rope_theta": 10**350}, "rope_theta"),
    "activation": ("llama", {"hidden_act": "mish"}, "hidden_act"),
    "heads": ("llama", {"num_key_value_heads": 4}, "num_key_value_heads"),
    "head size": ("llama", {"head_dim": 12}, "head size"),
    "layers": ("llama", {"num_hidden_layers": 1 << 20}, "num_hidden_layers"),
    "layer kinds": ("gemma3_text", {"layer_types": ["full_attention", "linear"]}, "layer_types"),
    "softcap": ("gemma3_text", {"final_logit_softcapping": "x"}, "final_logit_softcapping"),
    "qwen layer kinds": ("qwen2", {"layer_types": ["sliding_attention"] * 2}, "sliding_window"),
    "rotated share": ("phi3", {"partial_rotary_factor": 1.5}, "partial_rotary_factor"),
    "neox key heads": ("gpt_neox", {"num_key_value_heads": 4}, "num_key_value_heads"),
    "phi norms": ("phi", {"qk_layernorm": True}, "qk_layernorm"),
    "no rotations": ("smollm3", {"no_rope_layers": [1, 2]}, "no_rope_layers"),
}


@pytest.mark.parametrize("case", list(REFUSED.values()), ids=list(REFUSED))
def test_what_is_not_built_is_refused_by_name(
    case: tuple[str, dict[str, Any], str], tmp_path: Path
) -> None:
    model_type, fields, named = case
    config = llama_config(model_type)
    tensors: Tensors = llama_tensors(config)
    source = write_checkpoint(tmp_path / "in", config | fields, tensors)
    with pytest.raises(CheckpointError, match=named) as caught:
        export_model(open_checkpoint(source), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_rope_parameters_of_newer_configs_mean_the_same(tmp_path: Path) -> None:
    old = llama_config(rope_theta=777.0, rope_scaling=LLAMA3)
    new = {name: value for name, value in old.items() if not name.startswith("rope")}
    new["rope_parameters"] = LLAMA3 | {"rope_theta": 777.0}
    files = []
    for name, config in (("old", old), ("new", new)):
        source = write_checkpoint(tmp_path / name, config, llama_tensors(old))
        folder = export_model(open_checkpoint(source), tmp_path / f"{name}-out")
        files.append(folder.files["model.onnx_data"])
    assert files[0] == files[1]


def test_buffers_and_a_second_copy_of_a_tied_head_are_left_out(tmp_path: Path) -> None:
    config = llama_config(tie_word_embeddings=True)
    tensors = llama_tensors(config)
    extra = tensors | {
        "lm_head.weight": tensors["model.embed_tokens.weight"],
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32),
    }
    files = []
    for name, stored in (("plain", tensors), ("extra", extra)):
        source = write_checkpoint(tmp_path / name, config, stored)
        folder = export_model(open_checkpoint(source), tmp_path / f"{name}-out")
        files.append(folder.files["model.onnx_data"])
    assert files[0] == files[1]
