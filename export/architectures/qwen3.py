"""Qwen3: Llama's layers with an RMS norm over each head's queries and keys before they are rotated.

Sources: Yang et al. 2025 (arXiv 2505.09388); ``modeling_qwen3.py`` of Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import onnx_ir as ir

from ..graph import Graph
from ..layers import head_rms_norm
from . import llama, qwen2


@dataclass(frozen=True)
class Config(qwen2.Config):
    """Qwen2's fields; defaults are those of transformers."""

    head_dim: int | None = 128

    @property
    def qkv_bias(self) -> bool:
        """As the config says, unlike Qwen2's."""
        return self.attention_bias


def projections(g: Graph, config: llama.Config, x: ir.Value) -> Sequence[ir.Value]:
    """x (B, S, D) -> normed q (B, S, H·E) and k (B, S, K·E), and v."""
    query, key, value = llama.projections(g, config, x)
    size, epsilon = config.head_size, config.rms_norm_eps
    return (
        head_rms_norm(g, query, "q_norm", size, epsilon),
        head_rms_norm(g, key, "k_norm", size, epsilon),
        value,
    )


ARCHITECTURE = replace(
    llama.ARCHITECTURE, config=Config, block=partial(llama.block, project=projections)
)
