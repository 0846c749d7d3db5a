"""Phi-3: Llama's layers with fused projections, and a rotation of part of each head at most.

Sources: Abdin et al. 2024 (arXiv 2404.14219); ``modeling_phi3.py`` of Hugging Face transformers for
the order inside ``qkv_proj`` (q, k, v) and ``gate_up_proj`` (gate, up).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from ..checkpoint import Checkpoint
from ..config_fields import refuse_unless, require
from ..folder import DecoderShape
from ..graph import Graph
from ..layers import activation, linear
from . import llama


@dataclass(frozen=True)
class Config(llama.Config):
    """Llama's fields, the window and the rotated share; defaults are those of transformers."""

    vocab_size: int = 32064
    hidden_size: int = 3072
    intermediate_size: int = 8192
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-5
    sliding_window: int | None = None
    partial_rotary_factor: float = 1.0

    def check(self, config: dict[str, Any]) -> None:
        """As Llama; biases, and a share of more than a whole head, are refused."""
        super().check(config)
        refuse_unless(config, "attention_bias", False)
        refuse_unless(config, "mlp_bias", False)
        share = self.partial_rotary_factor
        require(share <= 1, "partial_rotary_factor", share, ["at most 1"])

    @property
    def rotary_size(self) -> int:
        """R: how many of a head's numbers are rotated."""
        return int(self.head_size * self.partial_rotary_factor)

    def window(self, layer: int) -> int | None:
        """The same in every layer."""
        return self.sliding_window


def layer_shapes(config: Config) -> llama.Shapes:
    """The tensors of one layer."""
    d, e, f = config.hidden_size, config.head_size, config.intermediate_size
    h, k = config.num_attention_heads, config.kv_heads
    return {
        "input_layernorm.weight": (d,),
        "self_attn.qkv_proj.weight": ((h + 2 * k) * e, d),
        "self_attn.o_proj.weight": (d, h * e),
        "post_attention_layernorm.weight": (d,),
        "mlp.gate_up_proj.weight": (2 * f, d),
        "mlp.down_proj.weight": (d, f),
    }


def projections(
    g: Graph, w: llama.Weights, config: llama.Config, x: ir.Value, layer: str
) -> Sequence[ir.Value]:
    """x (B, S, D) -> q (B, S, H·E), k and v (B, S, K·E)."""
    qkv = linear(g, x, w(f"{layer}.self_attn.qkv_proj.weight"), name="qkv_proj")
    e, h, k = config.head_size, config.num_attention_heads, config.kv_heads
    sizes = g.int64s(h * e, k * e, k * e)
    return g.Split(qkv, sizes, outputs=3, axis=-1, name="qkv")


def feed_forward(
    g: Graph, w: llama.Weights, config: llama.Config, x: ir.Value, layer: str
) -> ir.Value:
    """The gated feed-forward part, (B, S, D) -> (B, S, D)."""
    with g.scope("mlp"):
        both = linear(g, x, w(f"{layer}.mlp.gate_up_proj.weight"), name="gate_up_proj")
        gate, up = g.Split(both, outputs=2, axis=-1, num_outputs=2, name="gate_up")  # (B, S, F)
        hidden = g.Mul(activation(g, gate, config.hidden_act), up, name="gated")
        return linear(g, hidden, w(f"{layer}.mlp.down_proj.weight"), name="down_proj")


def tensor_shapes(config: dict[str, Any]) -> llama.Shapes:
    """Name and shape of every tensor that a checkpoint with this config.json has."""
    fields = Config.read(config)
    return llama.decoder_shapes(fields, layer_shapes(fields))


def build(checkpoint: Checkpoint) -> tuple[ir.Model, DecoderShape]:
    """The float32 model of ``checkpoint`` and its sizes; see ``llama.build``."""
    config = Config.read(checkpoint.config)
    return llama.build_decoder(checkpoint, config, layer_shapes(config), projections, feed_forward)
