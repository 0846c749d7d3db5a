"""GPT-2 in plain NumPy, float64: the slow, obvious twin of the exported graph.

    x = wte[ids] + wpe[0..S)
    for each block:  x += attn(ln_1(x));  x += mlp(ln_2(x))
    logits = ln_f(x) @ head.T (+ lm_head.bias)

Takes a checkpoint's config.json and tensors as published, one prompt without padding, no cache.
Letters: S tokens, H heads, E head size, D width, F feed-forward width, V vocabulary.
Source: ``modeling_gpt2.py`` of Hugging Face transformers; it shares no code with ``export``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def forward(
    config: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]], ids: Sequence[int]
) -> Array:
    """Logits (S, V) after every token of ``ids``."""
    w = {name.removeprefix("transformer."): t.astype(np.float64) for name, t in tensors.items()}
    epsilon = config.get("layer_norm_epsilon", 1e-5)

    def norm(x: Array, name: str) -> Array:
        centered = x - x.mean(axis=-1, keepdims=True)
        variance = (centered**2).mean(axis=-1, keepdims=True)
        y: Array = centered / np.sqrt(variance + epsilon) * w[f"{name}.weight"] + w[f"{name}.bias"]
        return y

    def linear(x: Array, name: str) -> Array:  # Conv1D: the weight is (in, out)
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    x = w["wte.weight"][list(ids)] + w["wpe.weight"][: len(ids)]  # (S, D)
    for i in range(config["n_layer"]):
        qkv = linear(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn")  # (S, 3·D)
        attended = attention(qkv, config["n_head"], config.get("scale_attn_weights", True))
        x = x + linear(attended, f"h.{i}.attn.c_proj")
        hidden = linear(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")  # (S, F)
        hidden = ACTIVATIONS[config.get("activation_function", "gelu_new")](hidden)
        x = x + linear(hidden, f"h.{i}.mlp.c_proj")
    tied = config.get("tie_word_embeddings", True)
    head = w["wte.weight" if tied else "lm_head.weight"]  # (V, D)
    logits: Array = norm(x, "ln_f") @ head.T + w.get("lm_head.bias", 0.0)
    return logits


def attention(qkv: Array, num_heads: int, scaled: bool) -> Array:
    """Causal attention, one head after another: (S, 3·D) -> (S, D)."""
    heads = (np.split(part, num_heads, axis=1) for part in np.split(qkv, 3, axis=1))
    attended = []
    for q, k, v in zip(*heads, strict=True):  # (S, E) each
        scores = q @ k.T  # -> (S, S)
        if scaled:
            scores = scores / math.sqrt(q.shape[1])
        scores[np.triu_indices(len(q), 1)] = -np.inf  # no token sees a later one
        attended.append(softmax(scores) @ v)
    return np.concatenate(attended, axis=1)


def softmax(x: Array) -> Array:
    """exp(x) over its sum, along the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    probabilities: Array = e / e.sum(axis=-1, keepdims=True)
    return probabilities


def gelu(x: Array) -> Array:
    """x · Φ(x), exactly (Hendrycks and Gimpel 2016)."""
    y: Array = 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    return y


def gelu_tanh(x: Array) -> Array:
    """Its tanh approximation, which GPT-2 was trained with."""
    y: Array = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return y


def relu(x: Array) -> Array:
    """max(x, 0)."""
    return np.maximum(x, 0)


ACTIVATIONS = {
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "relu": relu,
}
