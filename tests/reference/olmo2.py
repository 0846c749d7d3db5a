"""OLMo 2 in plain NumPy, float64; pieces and letters as in ``llama``.

Source: ``modeling_olmo2.py`` of transformers.
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
    w = llama.Weights(tensors)
    size = llama.head_size(config)
    turns = llama.rotary_turns(config, len(ids))

    def norm(x: Array, name: str) -> Array:
        return llama.rms_norm(x, w[f"{name}.weight"], config["rms_norm_eps"])

    def split(x: Array) -> Array:  # (S, heads·E) -> (heads, S, E)
        return np.swapaxes(x.reshape(len(x), -1, size), 0, 1)

    x = w["embed_tokens.weight"][list(ids)]
    for i in range(config["num_hidden_layers"]):
        layer = f"layers.{i}"
        name = f"{layer}.self_attn"
        q = split(norm(w.linear(x, f"{name}.q_proj"), f"{name}.q_norm"))
        k = split(norm(w.linear(x, f"{name}.k_proj"), f"{name}.k_norm"))
        v = split(w.linear(x, f"{name}.v_proj"))
        q, k = llama.rotate(q, turns), llama.rotate(k, turns)
        branch = w.linear(llama.attention(q, k, v, size**-0.5, None), f"{name}.o_proj")
        x = x + norm(branch, f"{layer}.post_attention_layernorm")
        branch = llama.feed_forward(w, x, f"{layer}.mlp", config["hidden_act"])
        x = x + norm(branch, f"{layer}.post_feedforward_layernorm")
    return norm(x, "norm") @ llama.output_head(config, w).T
