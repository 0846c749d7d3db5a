"""Phi, GPT-NeoX, StableLM and StarCoder2 in plain NumPy, float64; pieces as in ``llama``.

    phi         h = ln(x);  x += attention(h) + mlp(h)
    gpt_neox    x += attention(ln(x)) + mlp(ln'(x)), or one after the other
    stablelm    x += attention(ln(x));  x += mlp(ln'(x)), or as phi
    starcoder2  x += attention(ln(x));  x += mlp(ln'(x))

Source: the ``modeling_*.py`` files of transformers; it shares no code with ``export``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reference import llama
from reference.llama import Array

FAMILIES = ("phi", "gpt_neox", "stablelm", "starcoder2")
TABLE = {"gpt_neox": "embed_in"}
LAST = {"phi": "final_layernorm", "gpt_neox": "final_layer_norm"}
HEAD = {"gpt_neox": "embed_out"}
SECOND = "post_attention_layernorm"


def forward(
    config: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]], ids: Sequence[int]
) -> Array:
    """Logits (S, V) after every token of ``ids``."""
    kind = config["model_type"]
    w = llama.Weights({name.removeprefix("gpt_neox."): values for name, values in tensors.items()})
    epsilon = config.get("layer_norm_eps", config.get("norm_epsilon"))
    turns = llama.rotary_turns(settings(config), len(ids))

    def norm(x: Array, name: str) -> Array:
        return layer_norm(x, w[f"{name}.weight"], w[f"{name}.bias"], epsilon)

    x = w[f"{TABLE.get(kind, 'embed_tokens')}.weight"][list(ids)]
    for i in range(config["num_hidden_layers"]):
        layer = f"layers.{i}"
        h = norm(x, f"{layer}.input_layernorm")
        attended = attention(config, w, h, layer, turns)
        if kind == "phi" or (kind == "stablelm" and config.get("use_parallel_residual")):
            x = x + attended + feed_forward(config, w, h, layer)
        elif kind == "gpt_neox" and config.get("use_parallel_residual", True):
            x = x + attended + feed_forward(config, w, norm(x, f"{layer}.{SECOND}"), layer)
        else:
            x = x + attended
            x = x + feed_forward(config, w, norm(x, f"{layer}.{SECOND}"), layer)
    x = norm(x, LAST.get(kind, "norm"))
    table, head = TABLE.get(kind, "embed_tokens"), HEAD.get(kind, "lm_head")
    weight = w[f"{table if config.get('tie_word_embeddings') else head}.weight"]
    logits: Array = x @ weight.T
    return logits + w["lm_head.bias"] if "lm_head.bias" in w else logits


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with GPT-NeoX's own names of the rotation's fields as the others call them."""
    if config["model_type"] != "gpt_neox":
        return dict(config)
    own = {
        "rope_theta": config["rotary_emb_base"],
        "partial_rotary_factor": config["rotary_pct"],
    }
    return {**config, **own}


def layer_norm(x: Array, weight: Array, bias: Array | float, epsilon: float) -> Array:
    """(x - mean) / sqrt(variance + epsilon) · weight + bias."""
    centred = x - x.mean(axis=-1, keepdims=True)
    y: Array = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon)
    return y * weight + bias


def attention(
    config: Mapping[str, Any], w: llama.Weights, h: Array, layer: str, turns: llama.Turns
) -> Array:
    """What the attention of a layer adds: (S, D)."""
    size = llama.head_size(config)
    window = config.get("sliding_window")
    if config["model_type"] == "gpt_neox":
        packed = w.linear(h, f"{layer}.attention.query_key_value")
        split = packed.reshape(len(h), config["num_attention_heads"], 3, size)
        q, k, v = (np.swapaxes(split[:, :, part], 0, 1) for part in range(3))
        output = f"{layer}.attention.dense"
    else:
        q, k, v = llama.heads(config, w, h, f"{layer}.self_attn")
        output = f"{layer}.self_attn.{'dense' if config['model_type'] == 'phi' else 'o_proj'}"
    if config.get("qk_layernorm"):
        norms, epsilon = (
            f"{layer}.self_attn.{{}}_layernorm.norms.{{}}.weight",
            config["layer_norm_eps"],
        )
        for part, heads in (("q", q), ("k", k)):
            for j, head in enumerate(heads):
                heads[j] = layer_norm(head, w[norms.format(part, j)], 0.0, epsilon)
    q, k = llama.rotate(q, turns), llama.rotate(k, turns)
    return w.linear(llama.attention(q, k, v, size**-0.5, window), output)


def feed_forward(config: Mapping[str, Any], w: llama.Weights, h: Array, layer: str) -> Array:
    """What the other part adds: (S, D)."""
    act = llama.ACTIVATIONS[config["hidden_act"]]
    if config["model_type"] == "stablelm":
        return llama.feed_forward(w, h, f"{layer}.mlp", config["hidden_act"])
    first, second = {
        "phi": ("fc1", "fc2"),
        "gpt_neox": ("dense_h_to_4h", "dense_4h_to_h"),
        "starcoder2": ("c_fc", "c_proj"),
    }[config["model_type"]]
    return w.linear(act(w.linear(h, f"{layer}.mlp.{first}")), f"{layer}.mlp.{second}")
