"""Weights of the families with layer norms and rotations, under Hugging Face's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tensors = dict[str, NDArray[np.float32]]
# Of a layer: norms, and matrices (out, in) with whether they have a bias. Letters: D width,
# F feed-forward width, Q all queries, K all keys.
Layer = tuple[list[str], dict[str, tuple[int, int, bool]]]


def phi(config: Mapping[str, Any], d: int, f: int, q: int, k: int) -> Layer:
    matrices = {f"self_attn.{part}_proj": (size, d, True) for part, size in sizes(q, k)}
    more = {"self_attn.dense": (d, q, True), "mlp.fc1": (f, d, True), "mlp.fc2": (d, f, True)}
    return ["input_layernorm"], matrices | more


def gpt_neox(config: Mapping[str, Any], d: int, f: int, q: int, k: int) -> Layer:
    bias = config.get("attention_bias", True)
    return ["input_layernorm", "post_attention_layernorm"], {
        "attention.query_key_value": (3 * d, d, bias),
        "attention.dense": (d, d, bias),
        "mlp.dense_h_to_4h": (f, d, True),
        "mlp.dense_4h_to_h": (d, f, True),
    }


def stablelm(config: Mapping[str, Any], d: int, f: int, q: int, k: int) -> Layer:
    bias = config.get("use_qkv_bias", False)
    norms = ["input_layernorm"]
    if not config.get("use_parallel_residual"):
        norms.append("post_attention_layernorm")
    return norms, {
        **{f"self_attn.{part}_proj": (size, d, bias) for part, size in sizes(q, k)},
        "self_attn.o_proj": (d, q, False),
        "mlp.gate_proj": (f, d, False),
        "mlp.up_proj": (f, d, False),
        "mlp.down_proj": (d, f, False),
    }


def starcoder2(config: Mapping[str, Any], d: int, f: int, q: int, k: int) -> Layer:
    bias = config.get("use_bias", True)
    return ["input_layernorm", "post_attention_layernorm"], {
        **{f"self_attn.{part}_proj": (size, d, bias) for part, size in sizes(q, k)},
        "self_attn.o_proj": (d, q, bias),
        "mlp.c_fc": (f, d, bias),
        "mlp.c_proj": (d, f, bias),
    }


def sizes(q: int, k: int) -> tuple[tuple[str, int], ...]:
    return ("q", q), ("k", k), ("v", k)


LAYERS = {"phi": phi, "gpt_neox": gpt_neox, "stablelm": stablelm, "starcoder2": starcoder2}
# Embedding, last norm, head and whether that has a bias.
ENDS = {
    "phi": ("embed_tokens", "final_layernorm", "lm_head", True),
    "gpt_neox": ("embed_in", "final_layer_norm", "embed_out", False),
    "stablelm": ("embed_tokens", "norm", "lm_head", False),
    "starcoder2": ("embed_tokens", "norm", "lm_head", False),
}


def tensors(config: Mapping[str, Any], seed: int, prefix: str) -> Tensors:
    random = np.random.default_rng(seed)
    kind = config["model_type"]
    prefix = "gpt_neox." if prefix and kind == "gpt_neox" else prefix
    D, F, V = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    H = config["num_attention_heads"]
    K = config.get("num_key_value_heads") or H
    E = config.get("head_dim") or D // H
    made: Tensors = {}

    def vector(name: str, size: int, center: float, spread: float) -> None:
        made[name] = (center + spread * random.standard_normal(size)).astype(np.float32)

    def norm(name: str) -> None:
        vector(f"{name}.weight", D, 1.0, 0.2)
        vector(f"{name}.bias", D, 0.0, 0.2)

    def linear(name: str, outputs: int, inputs: int, bias: bool) -> None:
        values = 1.2 / inputs**0.5 * random.standard_normal((outputs, inputs))
        made[f"{name}.weight"] = values.astype(np.float32)
        if bias:
            vector(f"{name}.bias", outputs, 0.0, 0.3)

    table, last, head, head_bias = ENDS[kind]
    linear(f"{prefix}{table}", V, D, False)
    for i in range(config["num_hidden_layers"]):
        layer = f"{prefix}layers.{i}"
        norms, matrices = LAYERS[kind](config, D, F, H * E, K * E)
        for name in norms:
            norm(f"{layer}.{name}")
        for name, (outputs, inputs, bias) in matrices.items():
            linear(f"{layer}.{name}", outputs, inputs, bias)
        if config.get("qk_layernorm"):
            for part, count in (("q", H), ("k", K)):
                for j in range(count):
                    name = f"{layer}.self_attn.{part}_layernorm.norms.{j}.weight"
                    vector(name, E, 1.0, 0.2)
    norm(f"{prefix}{last}")
    if not config["tie_word_embeddings"]:
        linear(head, V, D, head_bias)
    elif head_bias:
        vector(f"{head}.bias", V, 0.0, 0.3)
    return made
