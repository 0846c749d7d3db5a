"""Qwen3: Llama's layers with an RMS norm over each head's queries and keys before they are rotated.

Sources: Yang et al. 2025 (arXiv 2505.09388); ``modeling_qwen3.py`` of Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from ..checkpoint import Checkpoint
from ..folder import DecoderShape
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


def layer_shapes(config: llama.Config) -> llama.Shapes:
    """The tensors of one layer: Llama's, and the norms of queries and keys."""
    norms = {f"self_attn.{name}.weight": (config.head_size,) for name in ("q_norm", "k_norm")}
    return llama.layer_shapes(config) | norms


def projections(
    g: Graph, w: llama.Weights, config: llama.Config, x: ir.Value, layer: str
) -> Sequence[ir.Value]:
    """x (B, S, D) -> normed q (B, S, H·E) and k (B, S, K·E), and v."""
    query, key, value = llama.projections(g, w, config, x, layer)

    def normed(x: ir.Value, name: str) -> ir.Value:
        weight = w(f"{layer}.self_attn.{name}.weight")
        return head_rms_norm(g, x, weight, config.rms_norm_eps, config.head_size, name)

    return normed(query, "q_norm"), normed(key, "k_norm"), value


def tensor_shapes(config: dict[str, Any]) -> llama.Shapes:
    """Name and shape of every tensor that a checkpoint with this config.json has."""
    fields = Config.read(config)
    return llama.decoder_shapes(fields, layer_shapes(fields))


def build(checkpoint: Checkpoint) -> tuple[ir.Model, DecoderShape]:
    """The float32 model of ``checkpoint`` and its sizes; see ``llama.build``."""
    config = Config.read(checkpoint.config)
    return llama.build_decoder(checkpoint, config, layer_shapes(config), projections)
