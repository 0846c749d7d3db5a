"""Tiny seeded checkpoints of Llama and its kin, as Hugging Face publishes them.

Sizes are chosen so that mistakes show: K < H, E · H != D, F no multiple of D.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import layer_normed_checkpoints
import numpy as np
from numpy.typing import NDArray

Tensors = dict[str, NDArray[np.float32]]

CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "granite": "GraniteForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "phi": "PhiForCausalLM",
    "gpt_neox": "GPTNeoXForCausalLM",
    "stablelm": "StableLmForCausalLM",
    "starcoder2": "Starcoder2ForCausalLM",
}
# Families with a text model inside, and one that may be there.
WRAPPED = {
    "gemma3": "gemma3_text",
    "idefics3": "llama",
    "llava": "llama",
    "llava_next": "mistral",
    "mistral3": "mistral",
    "qwen2_5_vl": "qwen2",
    "qwen2_vl": "qwen2",
    "smolvlm": "llama",
}
GEMMAS = ("gemma2", "gemma3_text")
NO_HEAD_SIZE = ("qwen2", "phi3", "olmo2", "granite", "phi", "gpt_neox", "stablelm", "starcoder2")
# What a family's config.json has beside the fields all share.
SPECIAL: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": 16, "attention_bias": False, "mlp_bias": False},
    "mistral": {"head_dim": 16, "sliding_window": None},
    "qwen2": {"use_sliding_window": False, "sliding_window": 8, "max_window_layers": 1},
    "qwen3": {
        "head_dim": 16,
        "attention_bias": False,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": 2,
    },
    "olmo2": {"attention_bias": False},
    "phi3": {"sliding_window": None, "partial_rotary_factor": 1.0},
    "granite": {
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.1,
        "residual_multiplier": 0.4,
        "logits_scaling": 2.5,
    },
    "smollm3": {"head_dim": 16, "no_rope_layer_interval": 2, "use_sliding_window": False},
    "phi": {"partial_rotary_factor": 0.5, "layer_norm_eps": 1e-5, "hidden_act": "gelu_new"},
    "gpt_neox": {
        "rotary_pct": 0.5,
        "rotary_emb_base": 10000,
        "layer_norm_eps": 1e-5,
        "hidden_act": "gelu",
        "num_key_value_heads": None,
        "rope_theta": None,
    },
    "stablelm": {
        "partial_rotary_factor": 0.25,
        "layer_norm_eps": 1e-5,
        "use_parallel_residual": False,
    },
    "starcoder2": {
        "norm_epsilon": 1e-5,
        "use_bias": True,
        "hidden_act": "gelu_pytorch_tanh",
        "sliding_window": None,
    },
    "gemma2": {
        "head_dim": 16,
        "query_pre_attn_scalar": 24,
        "sliding_window": 6,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
        "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
        "pad_token_id": 0,
    },
    "gemma3_text": {
        "head_dim": 16,
        "query_pre_attn_scalar": 24,
        "sliding_window": 6,
        "sliding_window_pattern": 2,
        "rope_local_base_freq": 500.0,
        "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
        "pad_token_id": 0,
    },
}


def llama_config(model_type: str = "llama", **overrides: Any) -> dict[str, Any]:
    """The config.json of a tiny model of that family, some fields replaced by ``overrides``."""
    vocab_size = overrides.get("vocab_size", 97)
    config: dict[str, Any] = {
        "model_type": model_type,
        "architectures": [CLASSES[model_type]],
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 8 if model_type in NO_HEAD_SIZE else 6,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "bos_token_id": vocab_size - 1,
        "eos_token_id": vocab_size - 1,
        "pad_token_id": 0,
    }
    if model_type in NO_HEAD_SIZE:
        config["hidden_size"] = 128
    return config | SPECIAL.get(model_type, {}) | overrides


def llama_tensors(config: Mapping[str, Any], seed: int = 0, prefix: str = "model.") -> Tensors:
    """Random weights under Hugging Face's names; matrices are (out, in)."""
    kind = config["model_type"]
    if kind in layer_normed_checkpoints.LAYERS:
        return layer_normed_checkpoints.tensors(config, seed, prefix)
    random = np.random.default_rng(seed)
    D, F = config["hidden_size"], config["intermediate_size"]
    H, K = config["num_attention_heads"], config["num_key_value_heads"] or 0
    E = config.get("head_dim") or D // H
    K = K or H
    tensors: Tensors = {}

    def norm(name: str, size: int = D) -> None:
        center = 0.0 if kind in GEMMAS else 1.0
        values = center + 0.2 * random.standard_normal(size)
        tensors[f"{name}.weight"] = values.astype(np.float32)

    def linear(name: str, outputs: int, inputs: int, bias: bool = False) -> None:
        values = 1.2 / inputs**0.5 * random.standard_normal((outputs, inputs))
        tensors[f"{name}.weight"] = values.astype(np.float32)
        if bias:
            tensors[f"{name}.bias"] = (0.3 * random.standard_normal(outputs)).astype(np.float32)

    linear(f"{prefix}embed_tokens", config["vocab_size"], D)
    for i in range(config["num_hidden_layers"]):
        layer = f"{prefix}layers.{i}"
        bias, mlp_bias = config.get("attention_bias", False), config.get("mlp_bias", False)
        if kind != "olmo2":
            norm(f"{layer}.input_layernorm")
        if kind == "phi3":
            linear(f"{layer}.self_attn.qkv_proj", (H + 2 * K) * E, D)
        else:
            for part, size in (("q", H), ("k", K), ("v", K)):
                linear(f"{layer}.self_attn.{part}_proj", size * E, D, bias or kind == "qwen2")
        linear(f"{layer}.self_attn.o_proj", D, H * E, bias)
        if kind in ("qwen3", "gemma3_text"):
            norm(f"{layer}.self_attn.q_norm", E)
            norm(f"{layer}.self_attn.k_norm", E)
        if kind == "olmo2":
            norm(f"{layer}.self_attn.q_norm", H * E)
            norm(f"{layer}.self_attn.k_norm", K * E)
        norm(f"{layer}.post_attention_layernorm")
        if kind in GEMMAS:
            norm(f"{layer}.pre_feedforward_layernorm")
        if kind in (*GEMMAS, "olmo2"):
            norm(f"{layer}.post_feedforward_layernorm")
        if kind == "phi3":
            linear(f"{layer}.mlp.gate_up_proj", 2 * F, D)
        else:
            linear(f"{layer}.mlp.gate_proj", F, D, mlp_bias)
            linear(f"{layer}.mlp.up_proj", F, D, mlp_bias)
        linear(f"{layer}.mlp.down_proj", D, F, mlp_bias)
    norm(f"{prefix}norm")
    if not config["tie_word_embeddings"]:
        linear("lm_head", config["vocab_size"], D)
    return tensors


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LONGROPE = {  # of heads of which 16 numbers are rotated
    "type": "longrope",
    "short_factor": [1.0, 1.0, 1.1, 1.2, 1.3, 1.5, 1.8, 2.0],
    "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 9.0],
}


@dataclass(frozen=True)
class Case:
    """One configuration: fields of config.json, and how the weights are stored."""

    model_type: str
    config: dict[str, Any] = field(default_factory=dict)
    prefix: str = "model."
    dtype: str = "F32"
    shards: int = 1


# Every number and switch of config.json unlike the plain case of its architecture.
OTHER_FIELDS: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 96,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "hidden_act": "gelu",
    "max_position_embeddings": 48,
    "rms_norm_eps": 1e-3,
    "rope_theta": 700.0,
    "tie_word_embeddings": True,
}
WINDOWED = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
# What each has beside them.
ALL_FIELDS: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": 6},
    "qwen2": WINDOWED | {"max_window_layers": 2},
    "qwen3": WINDOWED | {"attention_bias": True},
    "phi3": {"sliding_window": 6, "partial_rotary_factor": 0.5},
    "olmo2": {"attention_bias": True},
    "granite": {
        "attention_bias": True,
        "mlp_bias": True,
        "embedding_multiplier": 0.5,
        "attention_multiplier": 0.3,
        "residual_multiplier": 1.5,
        "logits_scaling": 0.7,
    },
    "smollm3": {
        "attention_bias": True,
        "mlp_bias": True,
        "use_sliding_window": True,
        "sliding_window": 4,
        "no_rope_layer_interval": 3,
    },
    "phi": {"partial_rotary_factor": 0.75, "layer_norm_eps": 1e-3, "hidden_act": "relu"},
    "gpt_neox": {
        "num_key_value_heads": None,
        "head_dim": None,
        "rotary_pct": 0.25,
        "rotary_emb_base": 700,
        "rope_theta": None,
        "layer_norm_eps": 1e-3,
        "attention_bias": False,
        "use_parallel_residual": False,
        "hidden_act": "gelu_new",
    },
    "stablelm": {
        "head_dim": None,
        "partial_rotary_factor": 0.5,
        "layer_norm_eps": 1e-3,
        "use_qkv_bias": True,
        "qk_layernorm": True,
        "use_parallel_residual": True,
    },
    "starcoder2": {"norm_epsilon": 1e-3, "use_bias": False, "sliding_window": 6},
    "gemma2": {
        "attention_bias": True,
        "hidden_activation": "gelu",
        "query_pre_attn_scalar": 40,
        "sliding_window": 4,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": None,
        "tie_word_embeddings": False,
    },
    "gemma3_text": {
        "attention_bias": True,
        "hidden_activation": "gelu",
        "query_pre_attn_scalar": 40,
        "sliding_window": 4,
        "sliding_window_pattern": 3,
        "rope_local_base_freq": 300.0,
        "tie_word_embeddings": False,
    },
}

CASES = {
    "llama": Case("llama"),
    "llama, tied": Case("llama", {"tie_word_embeddings": True}),
    "llama, biases": Case("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, one key head": Case("llama", {"num_key_value_heads": 1}),
    "llama, as many key heads": Case("llama", {"num_key_value_heads": None}),
    "llama, head size from the width": Case("llama", {"head_dim": None, "num_attention_heads": 4}),
    "llama, head size 8": Case("llama", {"head_dim": 8}),
    "llama, head size 64": Case("llama", {"head_dim": 64}),
    "llama, gelu": Case("llama", {"hidden_act": "gelu"}),
    "llama, tanh gelu": Case("llama", {"hidden_act": "gelu_pytorch_tanh"}),
    "llama, relu": Case("llama", {"hidden_act": "relu"}),
    "llama, theta": Case("llama", {"rope_theta": 500000.0}),
    "llama, large epsilon": Case("llama", {"rms_norm_eps": 1e-2}),
    "llama, linear rope": Case("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}}),
    "llama, llama3 rope": Case("llama", {"rope_scaling": LLAMA3, "rope_theta": 100.0}),
    "llama, yarn": Case("llama", {"rope_scaling": YARN}),
    "llama, yarn, all fields": Case(
        "llama",
        {
            "rope_scaling": YARN
            | {"beta_fast": 8, "beta_slow": 2, "mscale": 0.7, "mscale_all_dim": 0.4}
            | {"truncate": False}
        },
    ),
    "llama, yarn, attention factor": Case(
        "llama", {"rope_scaling": YARN | {"attention_factor": 1.3}}
    ),
    "llama, dynamic rope": Case(
        "llama", {"rope_scaling": {"type": "dynamic", "factor": 3.0}, "max_position_embeddings": 8}
    ),
    "llama, dynamic rope, short text": Case(
        "llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 3.0}}
    ),
    "llama, longrope": Case(
        "llama", {"rope_scaling": LONGROPE, "original_max_position_embeddings": 16}
    ),
    "llama, longrope, short text": Case(
        "llama", {"rope_scaling": LONGROPE, "original_max_position_embeddings": 32}
    ),
    "phi3, longrope, part of a head": Case(
        "phi3",
        {
            "rope_scaling": LONGROPE | {"short_factor": [1.0, 1.1], "long_factor": [2.0, 3.0]},
            "original_max_position_embeddings": 16,
            "partial_rotary_factor": 0.25,
        },
    ),
    "llama, long context": Case("llama", {"max_position_embeddings": 131072}),
    "llama, long context, yarn": Case(
        "llama",
        {
            "max_position_embeddings": 131072,
            # As many as the factor says: transformers before 4.57 takes the factor from these two.
            "rope_scaling": YARN | {"original_max_position_embeddings": 32768},
            "rope_theta": 5000.0,
        },
    ),
    "llama, bare names": Case("llama", prefix=""),
    "llama, bfloat16 shards": Case("llama", dtype="BF16", shards=3),
    "mistral": Case("mistral"),
    "mistral, window": Case("mistral", {"sliding_window": 5}),
    "mistral, window and small heads": Case("mistral", {"sliding_window": 5, "head_dim": 8}),
    "qwen2": Case("qwen2"),
    "qwen2, window in later layers": Case("qwen2", {"use_sliding_window": True}),
    "qwen2, tied": Case("qwen2", {"tie_word_embeddings": True}),
    "qwen3": Case("qwen3"),
    "qwen3, biases, tied": Case("qwen3", {"attention_bias": True, "tie_word_embeddings": True}),
    "qwen3, small heads": Case("qwen3", {"head_dim": 24}),
    "phi3": Case("phi3"),
    "phi3, window": Case("phi3", {"sliding_window": 7}),
    "phi3, part of a head rotated": Case("phi3", {"partial_rotary_factor": 0.5}),
    "olmo2": Case("olmo2"),
    "olmo2, biases": Case("olmo2", {"attention_bias": True}),
    "granite": Case("granite"),
    "granite, tied": Case("granite", {"tie_word_embeddings": True}),
    "smollm3": Case("smollm3"),
    "smollm3, layers listed, tied": Case(
        "smollm3",
        {"no_rope_layers": [0, 1], "tie_word_embeddings": True},
    ),
    "smollm3, windows listed": Case(
        "smollm3",
        {
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "phi": Case("phi"),
    "phi, whole head": Case("phi", {"partial_rotary_factor": 1.0, "num_key_value_heads": None}),
    "gpt_neox": Case("gpt_neox"),
    "gpt_neox, one after the other": Case(
        "gpt_neox", {"use_parallel_residual": False, "rotary_pct": 1.0}
    ),
    "gpt_neox, small part of a head": Case("gpt_neox", {"rotary_pct": 0.25}),
    "stablelm": Case("stablelm"),
    "stablelm, parallel, biases": Case(
        "stablelm", {"use_parallel_residual": True, "use_qkv_bias": True}
    ),
    "stablelm, normed heads": Case("stablelm", {"qk_layernorm": True}),
    "starcoder2": Case("starcoder2", {"tie_word_embeddings": True}),
    "starcoder2, window, no biases": Case("starcoder2", {"use_bias": False, "sliding_window": 5}),
    "gemma2": Case("gemma2"),
    "gemma2, no softcaps": Case(
        "gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}
    ),
    "gemma2, layer kinds": Case("gemma2", {"layer_types": ["full_attention", "sliding_attention"]}),
    "gemma3": Case("gemma3_text"),
    "gemma3, layer kinds": Case(
        "gemma3_text", {"layer_types": ["full_attention", "sliding_attention"]}
    ),
    "gemma3, biases, scaled rope": Case(
        "gemma3_text",
        {"attention_bias": True, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    ),
    **{
        f"{model_type}, all fields": Case(model_type, OTHER_FIELDS | fields)
        for model_type, fields in ALL_FIELDS.items()
    },
}
