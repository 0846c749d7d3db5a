"""Tiny seeded checkpoints of GPT-2, one for every option of its config.json and of its files."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from checkpoint_files import gpt2_tensors
from numpy.typing import NDArray


@dataclass(frozen=True)
class Case:
    """One configuration: fields of config.json, and how the weights are stored."""

    config: dict[str, Any] = field(default_factory=dict)
    prefix: str = "transformer."
    dtype: str = "F32"
    shards: int = 1
    head_bias: bool = False
    mask_buffers: bool = False


CASES = {
    "tiny": Case(),
    "odd vocabulary": Case({"vocab_size": 131}),
    "narrow feed-forward": Case({"n_inner": 48}),
    "uneven feed-forward": Case({"n_inner": 100}),
    "exact gelu": Case({"activation_function": "gelu"}),
    "relu": Case({"activation_function": "relu"}),
    "gelu_pytorch_tanh": Case({"activation_function": "gelu_pytorch_tanh"}),
    "gelu_fast": Case({"activation_function": "gelu_fast"}),
    "unscaled attention": Case({"scale_attn_weights": False}),
    "untied": Case({"tie_word_embeddings": False}),
    "untied with bias": Case({"tie_word_embeddings": False}, head_bias=True),
    "tied with bias": Case(head_bias=True),
    "head size 16": Case({"n_head": 2}),
    "head size 32": Case({"n_head": 1}),
    "head size 64": Case({"n_embd": 128, "n_head": 2}),
    "one layer": Case({"n_layer": 1}),
    "short context": Case({"n_positions": 20}),
    "large epsilon": Case({"layer_norm_epsilon": 1e-3}),
    "bare names": Case(prefix=""),
    "mask buffers": Case(mask_buffers=True),
    "float16": Case(dtype="F16"),
    "bfloat16": Case(dtype="BF16"),
    "sharded": Case(shards=3),
}


def stored_tensors(case: Case, config: dict[str, Any]) -> dict[str, NDArray[Any]]:
    tensors: dict[str, NDArray[Any]] = dict(gpt2_tensors(config, prefix=case.prefix))
    if case.head_bias:
        tensors["lm_head.bias"] = np.linspace(-1, 1, config["vocab_size"], dtype=np.float32)
    if case.mask_buffers:
        size = config["n_positions"]
        for i in range(config["n_layer"]):
            causal = np.tril(np.ones((1, 1, size, size), np.bool_))
            tensors[f"{case.prefix}h.{i}.attn.bias"] = causal
            tensors[f"{case.prefix}h.{i}.attn.masked_bias"] = np.array(-1e4, np.float32)
    return tensors
