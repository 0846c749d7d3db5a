"""Gemma 3 (text) in plain NumPy, float64; pieces and letters as in ``llama``.

    x = embed_tokens[ids] · sqrt(D)
    for each layer:  x += post_attention_layernorm(o_proj(attention(q, k, v of input_layernorm(x))))
                     x += post_feedforward_layernorm(mlp(pre_feedforward_layernorm(x)))

Every norm multiplies by 1 + its weight. Source: ``modeling_gemma3.py`` of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from reference import llama
from reference.llama import Array


def forward(
    config: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]], ids: Sequence[int]
) -> Array:
    """Logits (S, V) after every token of ``ids``."""
    tensors = {
        name: values + 1 if name.endswith("norm.weight") else values
        for name, values in tensors.items()
    }
    w = llama.Weights(tensors)
    pattern = config.get("sliding_window_pattern", 6)
    kinds = config.get("layer_types") or [
        "sliding_attention" if (i + 1) % pattern else "full_attention"
        for i in range(config["num_hidden_layers"])
    ]
    size = llama.head_size(config)
    angles = {
        "full_attention": llama.angles_of(
            config["rope_theta"], config.get("rope_scaling") or {}, size, len(ids)
        ),
        "sliding_attention": llama.angles_of(config["rope_local_base_freq"], {}, size, len(ids)),
    }

    def norm(x: Array, name: str) -> Array:
        return llama.rms_norm(x, w[f"{name}.weight"], config["rms_norm_eps"])

    x = w["embed_tokens.weight"][list(ids)] * config["hidden_size"] ** 0.5
    for i, kind in enumerate(kinds):
        layer = f"layers.{i}"
        q, k, v = llama.heads(config, w, norm(x, f"{layer}.input_layernorm"), f"{layer}.self_attn")
        q, k = llama.rotate(q, angles[kind]), llama.rotate(k, angles[kind])
        window = config["sliding_window"] if kind == "sliding_attention" else None
        attended = llama.attention(q, k, v, config["query_pre_attn_scalar"] ** -0.5, window)
        branch = w.linear(attended, f"{layer}.self_attn.o_proj")
        x = x + norm(branch, f"{layer}.post_attention_layernorm")
        h = norm(x, f"{layer}.pre_feedforward_layernorm")
        branch = llama.feed_forward(w, h, f"{layer}.mlp", config["hidden_activation"])
        x = x + norm(branch, f"{layer}.post_feedforward_layernorm")
    return norm(x, "norm") @ llama.output_head(config, w).T
