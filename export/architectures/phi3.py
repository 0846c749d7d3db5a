"""Phi-3: Llama's layers with fused projections, and a rotation of part of each head at most.

Sources: Abdin et al. 2024 (arXiv 2404.14219); ``modeling_phi3.py`` of Hugging Face transformers for
the order inside ``qkv_proj`` (q, k, v) and ``gate_up_proj`` (gate, up).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import onnx_ir as ir

from ..config_fields import refuse_unless
from ..graph import Graph
from ..layers import activation, linear
from ..rope import ORIGINAL, Rope
from . import llama


@dataclass(frozen=True)
class Config(llama.Config):
    """Llama's fields and the window; defaults are those of transformers."""

    vocab_size: int = 32064
    hidden_size: int = 3072
    intermediate_size: int = 8192
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-5
    sliding_window: int | None = None

    share: ClassVar[float | None] = 1.0

    def check(self, config: dict[str, Any]) -> None:
        """As Llama, without biases."""
        super().check(config)
        refuse_unless(config, "attention_bias", False)
        refuse_unless(config, "mlp_bias", False)

    def rope(self, config: dict[str, Any]) -> Rope:
        """As Llama; the original context has a default of its own."""
        return super().rope({ORIGINAL: 4096} | config)

    def window(self, layer: int) -> int | None:
        """The same in every layer."""
        return self.sliding_window


def projections(g: Graph, config: llama.Config, x: ir.Value) -> Sequence[ir.Value]:
    """x (B, S, D) -> q (B, S, H·E), k and v (B, S, K·E)."""
    q, k = config.query_size, config.key_size
    qkv = linear(g, x, "qkv_proj", (q + 2 * k, config.hidden_size))
    return g.Split(qkv, g.int64s(q, k, k), outputs=3, axis=-1, name="qkv")


def gated(g: Graph, config: llama.Config, x: ir.Value) -> ir.Value:
    """The wide part of the feed-forward: (B, S, D) -> (B, S, F)."""
    both = linear(g, x, "gate_up_proj", (2 * config.intermediate_size, config.hidden_size))
    gate, up = g.Split(both, outputs=2, axis=-1, num_outputs=2, name="gate_up")
    return g.Mul(activation(g, gate, config.hidden_act), up, name="gated")


ARCHITECTURE = replace(
    llama.ARCHITECTURE,
    config=Config,
    block=partial(llama.block, project=projections, feed=gated),
)
