"""What every architecture refuses, by kind, and that no config.json ends in another error."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import gpt2_config, gpt2_tensors, write_checkpoint
from llama_checkpoints import CLASSES, LLAMA3, LONGROPE, WRAPPED, YARN, llama_config, llama_tensors

from pocketlm.export.architectures import find_architecture, known_architectures
from pocketlm.export.checkpoint import Checkpoint, open_checkpoint
from pocketlm.export.errors import CheckpointError
from pocketlm.export.writing import export_model

EXPERTS, PARTS = "a mixture of experts", "a text model inside one for images or sound"
# model_type and the telling fields of published checkpoints, and what they are said to be.
OTHER_KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "mixtral": ({"num_local_experts": 8, "num_experts_per_tok": 2}, EXPERTS),
    "qwen2_moe": ({"num_experts": 60, "moe_intermediate_size": 1408}, EXPERTS),
    "qwen3_moe": ({"num_experts": 128, "num_experts_per_tok": 8}, EXPERTS),
    "deepseek_v3": ({"n_routed_experts": 256, "quantization_config": {}}, EXPERTS),
    "gemma3n": ({"text_config": {"model_type": "gemma3n_text"}, "vision_config": {"a": 1}}, PARTS),
    "llama4": ({"text_config": {"num_local_experts": 16}, "vision_config": {"a": 1}}, PARTS),
    "mllama": ({"text_config": {"model_type": "mllama_text_model"}}, PARTS),
    "qwen2_audio": ({"audio_config": {"model_type": "qwen2_audio_encoder"}}, PARTS),
}
QUANTIZED: dict[str, dict[str, Any]] = {
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "gptq": {"quant_method": "gptq", "bits": 4},
    "awq": {"quant_method": "awq", "bits": 4},
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "mxfp4": {"quant_method": "mxfp4"},
}
# Fields that change training or bookkeeping, not the forward pass.
HARMLESS: dict[str, Any] = {
    "attention_dropout": 0.1,
    "resid_pdrop": 0.1,
    "hidden_dropout": 0.0,
    "initializer_range": 0.02,
    "use_cache": False,
    "pretraining_tp": 1,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.99.0",
    "output_router_logits": False,
    "num_experts": 0,
    "quantization_config": None,
    "vision_config": None,
}


def config_of(model_type: str) -> dict[str, Any]:
    """The tiny config of any architecture."""
    if model_type in WRAPPED:
        return {"model_type": model_type, "text_config": llama_config(WRAPPED[model_type])}
    return gpt2_config() if model_type == "gpt2" else llama_config(model_type)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """One of each architecture."""
    folder = tmp_path_factory.mktemp("checkpoints")
    written = {
        kind: write_checkpoint(folder / kind, llama_config(kind), llama_tensors(llama_config(kind)))
        for kind in CLASSES
    }
    written["gpt2"] = write_checkpoint(folder / "gpt2", gpt2_config(), gpt2_tensors(gpt2_config()))
    assert sorted([*written, *WRAPPED]) == known_architectures()
    return {kind: open_checkpoint(path) for kind, path in written.items()}


@pytest.mark.parametrize("model_type", OTHER_KINDS)
def test_another_kind_of_model_is_named_for_what_it_is(model_type: str) -> None:
    fields, kind = OTHER_KINDS[model_type]
    with pytest.raises(CheckpointError) as caught:
        find_architecture({"model_type": model_type} | fields)
    named = next(name for name in fields if name not in ("quantization_config",))
    message = str(caught.value)
    assert message.startswith(f"config.json: model_type is {model_type!r}, {kind} ({named}), ")
    assert f"expected one of {', '.join(known_architectures())}; " in message
    assert ("kernel for experts" in message) == (kind == EXPERTS)


@pytest.mark.parametrize("method", QUANTIZED)
@pytest.mark.parametrize("model_type", known_architectures())
def test_a_quantized_checkpoint_is_refused_by_its_method(model_type: str, method: str) -> None:
    config = config_of(model_type) | {"quantization_config": QUANTIZED[method]}
    with pytest.raises(CheckpointError, match="a checkpoint that is already quantized") as caught:
        find_architecture(config)
    assert method in str(caught.value)
    assert str(caught.value).endswith("take the checkpoint this was made from")


def test_experts_under_a_known_name_are_refused() -> None:
    with pytest.raises(CheckpointError, match="num_experts is '8', a mixture of experts"):
        find_architecture(llama_config("qwen3") | {"num_experts": 8})


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_fields_without_a_meaning_for_the_graph_change_no_byte(
    model_type: str, checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    plain = checkpoints[model_type]
    more = replace(plain, config=plain.config | HARMLESS)
    files = [
        export_model(plain, tmp_path / "plain").files,
        export_model(more, tmp_path / "more").files,
    ]
    assert files[0]["model.onnx"] == files[1]["model.onnx"]
    assert files[0]["model.onnx_data"] == files[1]["model.onnx_data"]


JUNK: list[Any] = [None, [], {}, "x", -1, 0, 1.5, True, 10**30, [[]], {"a": []}, math.inf]
ROPES = [
    *({"rope_type": value} for value in JUNK),
    *({"full_attention": value, "sliding_attention": value} for value in JUNK),
    *(LLAMA3 | {name: value} for name in LLAMA3 for value in JUNK),
    LLAMA3 | {"low_freq_factor": 4.0},
    *(
        YARN | {name: value}
        for name in (*YARN, "beta_fast", "mscale", "truncate")
        for value in JUNK
    ),
    *(LONGROPE | {name: value} for name in (*LONGROPE, "factor") for value in JUNK),
    *({"type": "dynamic", "factor": value} for value in JUNK),
]
OPTIONAL = {
    *("head_dim", "layer_types", "partial_rotary_factor", "rope_local_base_freq"),
    *("rope_parameters", "rope_scaling", "sliding_window", "hidden_activation", "model_type"),
    *("final_logit_softcapping", "use_bidirectional_attention", "quantization_config"),
    *("num_experts", "text_config", "no_rope_layers", "original_max_position_embeddings"),
}


# All; those that are much like llama, and take seconds, in the run of slow tests.
FAMILIES = [
    *("llama", "gpt2"),
    *(pytest.param(name, marks=pytest.mark.slow) for name in CLASSES if name != "llama"),
]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_no_value_of_a_field_ends_in_anything_but_a_checkpoint_error(
    model_type: str, checkpoints: dict[str, Checkpoint]
) -> None:
    checkpoint, refused = checkpoints[model_type], 0
    fields = {
        field.name
        for field in dataclasses.fields(find_architecture({"model_type": model_type}).config)
    }
    for name in {*checkpoint.config, *fields, *OPTIONAL}:
        for value in JUNK + (ROPES if name.startswith("rope_") else []):
            changed = replace(checkpoint, config=checkpoint.config | {name: value})
            try:
                find_architecture(changed.config).build(changed)
            except CheckpointError as error:
                assert "\n" not in str(error)
                refused += 1
    assert refused > 50
