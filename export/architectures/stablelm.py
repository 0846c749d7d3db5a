"""StableLM: Llama's layers between layer norms, of which part of each head is rotated.

    for each layer:  x += o_proj(attention(q, k, v of input_layernorm(x)))
                     x += mlp(post_attention_layernorm(x))
    or, in parallel: h = input_layernorm(x);  x += o_proj(attention(q, k, v of h)) + mlp(h)

Queries and keys may be normed, every head by a weight of its own. Letters: see ``layers``.
Sources: Bellagente et al. 2024 (arXiv 2402.17834); ``modeling_stablelm.py`` of Hugging Face
transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir as ir

from ..decoder import Architecture
from ..graph import Graph
from ..layers import Attend, head_layer_norms
from ..stream import Stream
from . import gpt_neox, llama


@dataclass(frozen=True)
class Config(llama.Config):
    """Fields of config.json that shape the graph; defaults are those of transformers."""

    vocab_size: int = 50304
    hidden_size: int = 2560
    intermediate_size: int = 6912
    num_key_value_heads: int | None = 32
    max_position_embeddings: int = 4096
    layer_norm_eps: float = 1e-5
    use_qkv_bias: bool = False
    qk_layernorm: bool = False
    use_parallel_residual: bool = False

    share: ClassVar[float | None] = 0.25

    def check(self, config: dict[str, Any]) -> None:
        """As Llama; all heads make up the width."""
        super().check(config)
        self.check_width()

    @property
    def epsilon(self) -> float:
        return self.layer_norm_eps

    @property
    def qkv_bias(self) -> bool:
        return self.use_qkv_bias


def projections(g: Graph, config: Config, x: ir.Value) -> Sequence[ir.Value]:
    """x (B, S, D) -> q (B, S, H·E), k and v (B, S, K·E), perhaps normed."""
    query, key, value = llama.projections(g, config, x)
    if config.qk_layernorm:
        shape, epsilon = config.shape, config.epsilon
        size = shape.head_size
        query = head_layer_norms(g, query, "q_layernorm", (shape.num_heads, size), epsilon)
        key = head_layer_norms(g, key, "k_layernorm", (shape.kv_heads, size), epsilon)
    return query, key, value


def block(g: Graph, config: Config, stream: Stream, attend: Attend) -> None:
    """One layer."""
    d, f = config.hidden_size, config.intermediate_size
    x = stream.layer_norm("input_layernorm")
    with g.scope("self_attn"):
        attended = attend(*projections(g, config, x))
        stream.add_linear(attended, "o_proj", (d, config.query_size))
    if not config.use_parallel_residual:
        x = stream.layer_norm("post_attention_layernorm")
    with g.scope("mlp"):
        stream.add_linear(llama.gated(g, config, x), "down_proj", (d, f))


ARCHITECTURE = Architecture(
    Config,
    llama.embed,
    block,
    gpt_neox.norm,
    bare=llama.bare,
    table="embed_tokens",
    layers="layers",
)
