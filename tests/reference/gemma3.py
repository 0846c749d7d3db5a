"""Gemma 2 and 3 (text) in plain NumPy, float64; pieces and letters as in ``llama``.

    x = embed_tokens[ids] · sqrt(D)
    for each layer:  x += post_attention_layernorm(o_proj(attention(q, k, v of input_layernorm(x))))
                     x += post_feedforward_layernorm(mlp(pre_feedforward_layernorm(x)))

Every norm multiplies by 1 + its weight; softcaps are s · tanh(y / s). Sources:
``modeling_gemma2.py`` and ``modeling_gemma3.py`` of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
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
    older = config["model_type"] == "gemma2"
    pattern = config.get("sliding_window_pattern", 2 if older else 6)
    kinds = config.get("layer_types") or [
        "sliding_attention" if (i + 1) % pattern else "full_attention"
        for i in range(config["num_hidden_layers"])
    ]
    size = llama.head_size(config)
    trained = config["max_position_embeddings"]
    local = config["rope_theta" if older else "rope_local_base_freq"]
    turns = {
        "full_attention": llama.rotary_turns(config, len(ids)),
        "sliding_attention": llama.turns_of(local, {}, size, len(ids), trained),
    }

    def norm(x: Array, name: str) -> Array:
        return llama.rms_norm(x, w[f"{name}.weight"], config["rms_norm_eps"])

    x = w["embed_tokens.weight"][list(ids)] * config["hidden_size"] ** 0.5
    for i, kind in enumerate(kinds):
        layer = f"layers.{i}"
        q, k, v = llama.heads(config, w, norm(x, f"{layer}.input_layernorm"), f"{layer}.self_attn")
        q, k = llama.rotate(q, turns[kind]), llama.rotate(k, turns[kind])
        window = config["sliding_window"] if kind == "sliding_attention" else None
        scale, cap = config["query_pre_attn_scalar"] ** -0.5, config.get("attn_logit_softcapping")
        attended = llama.attention(q, k, v, scale, window, cap)
        branch = w.linear(attended, f"{layer}.self_attn.o_proj")
        x = x + norm(branch, f"{layer}.post_attention_layernorm")
        h = norm(x, f"{layer}.pre_feedforward_layernorm")
        branch = llama.feed_forward(w, h, f"{layer}.mlp", config["hidden_activation"])
        x = x + norm(branch, f"{layer}.post_feedforward_layernorm")
    logits: Array = norm(x, "norm") @ llama.output_head(config, w).T
    cap = config.get("final_logit_softcapping")
    return logits if cap is None else cap * np.tanh(logits / cap)
