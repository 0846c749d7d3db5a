"""Tiny seeded checkpoints of Llama and its kin, as Hugging Face publishes them.

Sizes are chosen so that mistakes show: K < H, E · H != D, F no multiple of D.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tensors = dict[str, NDArray[np.float32]]

CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
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
    "phi3": {"sliding_window": None, "partial_rotary_factor": 1.0},
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
        "num_attention_heads": 8 if model_type in ("qwen2", "phi3") else 6,
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
    if model_type in ("qwen2", "phi3"):  # no head_dim of their own
        config["hidden_size"] = 128
    return config | SPECIAL[model_type] | overrides


def llama_tensors(config: Mapping[str, Any], seed: int = 0, prefix: str = "model.") -> Tensors:
    """Random weights under Hugging Face's names; matrices are (out, in)."""
    random = np.random.default_rng(seed)
    kind = config["model_type"]
    D, F = config["hidden_size"], config["intermediate_size"]
    H, K = config["num_attention_heads"], config["num_key_value_heads"] or 0
    E = config.get("head_dim") or D // H
    K = K or H
    tensors: Tensors = {}

    def norm(name: str, size: int = D) -> None:
        center = 0.0 if kind == "gemma3_text" else 1.0
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
        norm(f"{layer}.post_attention_layernorm")
        if kind == "gemma3_text":
            norm(f"{layer}.pre_feedforward_layernorm")
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
