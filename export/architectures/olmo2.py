"""OLMo 2: Llama's parts with the norms behind them, and norms over all queries and all keys.

    for each layer:  x += post_attention_layernorm(o_proj(attention(q_norm(q), k_norm(k), v)))
                     x += post_feedforward_layernorm(mlp(x))

Sources: OLMo Team 2024 (arXiv 2501.00656); ``modeling_olmo2.py`` of Hugging Face transformers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_ir as ir

from ..graph import Graph
from ..layers import Attend, linear, rms_norm
from ..stream import Stream
from . import llama


@dataclass(frozen=True)
class Config(llama.Config):
    """Llama's fields; defaults are those of transformers."""

    vocab_size: int = 50304
    rms_norm_eps: float = 1e-5


def block(g: Graph, config: llama.Config, stream: Stream, attend: Attend) -> None:
    """One layer: the parts read the stream itself, and what they add is normed."""
    d, f, epsilon = config.hidden_size, config.intermediate_size, config.rms_norm_eps
    q, k = config.query_size, config.key_size
    with g.scope("self_attn"):
        query, key, value = llama.projections(g, config, stream.x)
        query = rms_norm(g, query, "q_norm", q, epsilon)
        key = rms_norm(g, key, "k_norm", k, epsilon)
        attended = attend(query, key, value)
        branch = linear(g, attended, "o_proj", (d, q), bias=config.attention_bias)
    branch = rms_norm(g, branch, "post_attention_layernorm", d, epsilon)
    stream.add_now(branch, "attended")
    with g.scope("mlp"):
        hidden = llama.gated(g, config, stream.x)
        branch = linear(g, hidden, "down_proj", (d, f), bias=config.mlp_bias)
    branch = rms_norm(g, branch, "post_feedforward_layernorm", d, epsilon)
    stream.add_now(branch, "fed")


def norm(g: Graph, config: llama.Config, stream: Stream) -> ir.Value:
    """What the head reads."""
    return rms_norm(g, stream.x, "norm", config.hidden_size, config.rms_norm_eps)


ARCHITECTURE = replace(llama.ARCHITECTURE, config=Config, block=block, norm=norm)
