"""Rotated weights in plain NumPy, float64: the slow, obvious twin of the pass over the graph.

Everything is a product of whole matrices; R1, R2 and R4 are given. Names and shapes are those of
the checkpoints: GPT-2's matrices are (in, out), Llama's (out, in). Letters: see ``gpt2``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def blocks(matrix: Array, size: int) -> Array:
    """(size, size) with ``matrix`` again and again along the diagonal."""
    repeated: Array = np.kron(np.eye(size // len(matrix)), matrix).astype(np.float64)
    return repeated


def gpt2(
    config: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]], r1: Array, r2: Array, r4: Array
) -> dict[str, Array]:
    """Weights by bare name; the layer norms have become RMS norms without gain."""
    w = {name.removeprefix("transformer."): t.astype(np.float64) for name, t in tensors.items()}
    D, F = config["n_embd"], len(w["h.0.mlp.c_proj.weight"])
    centre = np.eye(D) - 1 / D  # takes the mean of a row away
    values = np.eye(3 * D)
    values[2 * D :, 2 * D :] = blocks(r2, D)
    made = {"wpe.weight": w["wpe.weight"] @ centre @ r1}
    if config["tie_word_embeddings"]:
        made["wte.weight"] = w["wte.weight"] @ r1
    else:
        gain, shift = w["ln_f.weight"], w["ln_f.bias"]
        made["wte.weight"] = w["wte.weight"] @ centre @ r1
        made["lm_head.weight"] = w["lm_head.weight"] * gain @ centre @ r1
        made["lm_head.weight.shift"] = w["lm_head.weight"] @ shift
    for i in range(config["n_layer"]):
        h = f"h.{i}"
        for norm, name, behind in (
            ("ln_1", f"{h}.attn.c_attn", values),
            ("ln_2", f"{h}.mlp.c_fc", np.eye(F)),
        ):
            gain, shift = w[f"{h}.{norm}.weight"], w[f"{h}.{norm}.bias"]
            weight, bias = w[f"{name}.weight"], w[f"{name}.bias"]
            made[f"{name}.weight"] = r1.T @ centre @ np.diag(gain) @ weight @ behind
            made[f"{name}.bias"] = (bias + shift @ weight) @ behind
        for name, before in (
            (f"{h}.attn.c_proj", blocks(r2, D)),
            (f"{h}.mlp.c_proj", blocks(r4, F)),
        ):
            made[f"{name}.weight"] = before.T @ w[f"{name}.weight"] @ centre @ r1
            made[f"{name}.bias"] = w[f"{name}.bias"] @ centre @ r1
    return made


def llama(
    config: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]], r1: Array, r2: Array, r4: Array
) -> dict[str, Array]:
    """Weights by bare name."""
    w = {name.removeprefix("model."): t.astype(np.float64) for name, t in tensors.items()}
    made = {"embed_tokens.weight": w["embed_tokens.weight"] @ r1}
    if not config["tie_word_embeddings"]:
        made["lm_head.weight"] = w["lm_head.weight"] * w["norm.weight"] @ r1
    for i in range(config["num_hidden_layers"]):
        layer = f"layers.{i}"
        attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        for norm, name in (
            ("input_layernorm", f"{attention}.q_proj"),
            ("input_layernorm", f"{attention}.k_proj"),
            ("input_layernorm", f"{attention}.v_proj"),
            ("post_attention_layernorm", f"{mlp}.gate_proj"),
            ("post_attention_layernorm", f"{mlp}.up_proj"),
        ):
            weight = w[f"{name}.weight"] * w[f"{layer}.{norm}.weight"] @ r1
            behind = blocks(r2 if name.endswith("v_proj") else np.eye(1), len(weight))
            made[f"{name}.weight"] = behind.T @ weight
            if f"{name}.bias" in w:
                made[f"{name}.bias"] = w[f"{name}.bias"] @ behind
        for name, before in ((f"{attention}.o_proj", r2), (f"{mlp}.down_proj", r4)):
            weight = w[f"{name}.weight"]
            made[f"{name}.weight"] = r1.T @ weight @ blocks(before, weight.shape[1])
            if f"{name}.bias" in w:
                made[f"{name}.bias"] = w[f"{name}.bias"] @ r1
    return made
