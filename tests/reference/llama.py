"""Llama and its kin in plain NumPy, float64: the slow, obvious twin of the exported graphs.

    x = embed_tokens[ids]
    for each layer:  x += o_proj(attention(q, k, v of input_layernorm(x)))
                     h = post_attention_layernorm(x)
                     x += down_proj(act(gate_proj(h)) · up_proj(h))
    logits = norm(x) @ head.T

Takes a checkpoint's config.json and tensors as published, one prompt without padding, no cache.
Biases, norms of queries and keys, and fused projections are used where the tensors are there, so
that one forward pass serves llama, mistral, qwen2, qwen3, phi3, granite (with its multipliers) and
smollm3 (some layers of which do not rotate). Letters: S tokens, E head size.
Source: the ``modeling_*.py`` files of Hugging Face transformers; it shares no code with ``export``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Turns = NDArray[np.complex128]


class Weights:
    """Tensors by bare name, in float64."""

    def __init__(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        self.tensors = {
            name.removeprefix("model."): t.astype(np.float64) for name, t in tensors.items()
        }

    def __getitem__(self, name: str) -> Array:
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def linear(self, x: Array, name: str) -> Array:
        """x times the (out, in) weight, plus the bias if there is one."""
        y: Array = x @ self[f"{name}.weight"].T
        return y + self[f"{name}.bias"] if f"{name}.bias" in self else y


def forward(
    config: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]], ids: Sequence[int]
) -> Array:
    """Logits (S, V) after every token of ``ids``."""
    w = Weights(tensors)
    epsilon = config["rms_norm_eps"]
    turns = rotary_turns(config, len(ids))
    share = config.get("residual_multiplier", 1.0)
    scale = config.get("attention_multiplier", head_size(config) ** -0.5)
    x = w["embed_tokens.weight"][list(ids)] * config.get("embedding_multiplier", 1.0)  # (S, D)
    for i in range(config["num_hidden_layers"]):
        layer = f"layers.{i}"
        h = rms_norm(x, w[f"{layer}.input_layernorm.weight"], epsilon)
        q, k, v = heads(config, w, h, f"{layer}.self_attn")
        if rotates(config, i):
            q, k = rotate(q, turns), rotate(k, turns)
        attended = attention(q, k, v, scale, window_of(config, i))
        x = x + w.linear(attended, f"{layer}.self_attn.o_proj") * share
        h = rms_norm(x, w[f"{layer}.post_attention_layernorm.weight"], epsilon)
        x = x + feed_forward(w, h, f"{layer}.mlp", config["hidden_act"]) * share
    logits: Array = rms_norm(x, w["norm.weight"], epsilon) @ output_head(config, w).T
    return logits / float(config.get("logits_scaling", 1.0))


def output_head(config: Mapping[str, Any], w: Weights) -> Array:
    """(V, D)."""
    tied = config.get("tie_word_embeddings", False)
    return w["embed_tokens.weight" if tied else "lm_head.weight"]


def head_size(config: Mapping[str, Any]) -> int:
    """E."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def window_of(config: Mapping[str, Any], layer: int) -> int | None:
    """How many tokens a token sees, itself included; None for all."""
    window = config.get("sliding_window")
    if "use_sliding_window" in config and not config["use_sliding_window"]:
        return None
    if config.get("layer_types") is not None:
        return window if config["layer_types"][layer] == "sliding_attention" else None
    if config["model_type"] in ("qwen2", "qwen3") and layer < config["max_window_layers"]:
        return None
    if config["model_type"] == "smollm3" and rotates(config, layer):
        return None
    return window


def rotates(config: Mapping[str, Any], layer: int) -> bool:
    """Whether a layer turns its queries and keys at all."""
    if config["model_type"] != "smollm3":
        return True
    if config.get("no_rope_layers") is not None:
        return bool(config["no_rope_layers"][layer])
    return bool((layer + 1) % config["no_rope_layer_interval"])


def rms_norm(x: Array, weight: Array, epsilon: float) -> Array:
    """x / sqrt(mean(x²) + epsilon) · weight."""
    y: Array = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon) * weight
    return y


def heads(config: Mapping[str, Any], w: Weights, x: Array, name: str) -> tuple[Array, Array, Array]:
    """q (H, S, E), k (K, S, E), v (K, S, E), the norms of queries and keys applied."""
    size = head_size(config)
    if f"{name}.qkv_proj.weight" in w:
        packed = w.linear(x, f"{name}.qkv_proj")
        h = config["num_attention_heads"] * size
        k = (packed.shape[-1] - h) // 2
        parts = np.split(packed, [h, h + k], axis=-1)
    else:
        parts = [w.linear(x, f"{name}.{part}_proj") for part in "qkv"]
    q, k, v = (part.reshape(len(x), -1, size).swapaxes(0, 1) for part in parts)
    if f"{name}.q_norm.weight" in w:
        epsilon = config["rms_norm_eps"]
        q = rms_norm(q, w[f"{name}.q_norm.weight"], epsilon)
        k = rms_norm(k, w[f"{name}.k_norm.weight"], epsilon)
    return q, k, v


def rotary_turns(config: Mapping[str, Any], length: int) -> Turns:
    """(S, R / 2): what pair j at position p of a text of S tokens is multiplied by."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    share = scaling.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    theta = float(scaling.get("rope_theta") or config["rope_theta"])
    trained = config["max_position_embeddings"]
    if "original_max_position_embeddings" in config:
        own = config["original_max_position_embeddings"]
        scaling = {**scaling, "original_max_position_embeddings": own}
    return turns_of(theta, scaling, int(head_size(config) * share), length, trained)


def turns_of(
    theta: float, scaling: Mapping[str, Any], rotated: int, length: int, trained: int
) -> Turns:
    """The same for one kind of layer of a model trained with texts of so many tokens."""
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    factor: float = scaling.get("factor") or 0.0
    original = scaling.get("original_max_position_embeddings", trained)
    if kind == "dynamic" and length > trained:
        theta *= (factor * length / trained - (factor - 1)) ** (rotated / (rotated - 2))
    frequencies, scale = [], 1.0
    for j in range(rotated // 2):
        frequency = theta ** (-2 * j / rotated)
        if kind == "linear":
            frequency /= factor
        if kind == "llama3":
            low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
            wavelength = 2 * math.pi / frequency
            if wavelength > original / low:
                frequency /= factor
            elif wavelength > original / high:
                smooth = (original / wavelength - low) / (high - low)
                frequency = (1 - smooth) * frequency / factor + smooth * frequency
        if kind in ("longrope", "su"):
            factors = scaling["long_factor" if length > original else "short_factor"]
            frequency /= factors[j]
        if kind == "yarn":
            first, last = (
                rotated * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))
                for turns in (scaling.get("beta_fast", 32), scaling.get("beta_slow", 1))
            )
            if scaling.get("truncate", True):
                first, last = math.floor(first), math.ceil(last)
            first, last = max(first, 0), min(last, rotated - 1)
            share = min(max((j - first) / (last - first or 0.001), 0), 1)
            frequency = frequency / factor * share + frequency * (1 - share)
        frequencies.append(frequency)
    if kind in ("longrope", "su"):
        factor = factor or trained / original
        scale = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    if kind == "yarn":
        scale = 0.1 * math.log(factor) + 1
        if scaling.get("mscale") and scaling.get("mscale_all_dim"):
            scale, below = (
                0.1 * scaling[name] * math.log(factor) + 1 for name in ("mscale", "mscale_all_dim")
            )
            scale /= below
    angles: Array = np.arange(length)[:, None] * np.array(frequencies)
    turns: Turns = scaling.get("attention_factor", scale) * np.exp(1j * angles)
    return turns


def rotate(x: Array, turns: Turns) -> Array:
    """Turns the first R numbers of each head, number j against number j + R / 2."""
    half = turns.shape[1]
    turned = (x[..., :half] + 1j * x[..., half : 2 * half]) * turns
    return np.concatenate([turned.real, turned.imag, x[..., 2 * half :]], axis=-1)


def attention(
    q: Array, k: Array, v: Array, scale: float, window: int | None, softcap: float | None = None
) -> Array:
    """Causal attention, one head after another: (H, S, E) -> (S, H·E)."""
    group = len(q) // len(k)
    length = q.shape[1]
    row, column = np.arange(length)[:, None], np.arange(length)
    hidden = column > row
    if window is not None:
        hidden |= column <= row - window
    attended = []
    for h in range(len(q)):
        scores = q[h] @ k[h // group].T * scale  # (S, S)
        if softcap is not None:
            scores = softcap * np.tanh(scores / softcap)
        scores = np.where(hidden, -np.inf, scores)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        attended.append(weights / weights.sum(axis=-1, keepdims=True) @ v[h // group])
    return np.concatenate(attended, axis=-1)


def feed_forward(w: Weights, x: Array, name: str, act: str) -> Array:
    """The gated feed-forward part."""
    if f"{name}.gate_up_proj.weight" in w:
        gate, up = np.split(w.linear(x, f"{name}.gate_up_proj"), 2, axis=-1)
    else:
        gate, up = w.linear(x, f"{name}.gate_proj"), w.linear(x, f"{name}.up_proj")
    return w.linear(ACTIVATIONS[act](gate) * up, f"{name}.down_proj")


def silu(x: Array) -> Array:
    """x · sigmoid(x)."""
    y: Array = x / (1 + np.exp(-x))
    return y


def gelu(x: Array) -> Array:
    """x · Φ(x)."""
    y: Array = x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    return y


def tanh_gelu(x: Array) -> Array:
    """The tanh approximation of ``gelu``."""
    y: Array = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return y


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": silu,
    "swish": silu,
    "gelu": gelu,
    "gelu_new": tanh_gelu,
    "gelu_pytorch_tanh": tanh_gelu,
    "relu": lambda x: np.maximum(x, 0),
}
