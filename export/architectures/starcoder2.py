"""StarCoder2: Llama's attention between layer norms, and a feed-forward part without a gate.

    for each layer:  x += o_proj(attention(rotated q, k, v of input_layernorm(x)))
                     x += c_proj(gelu(c_fc(post_attention_layernorm(x))))

Sources: Lozhkov et al. 2024 (arXiv 2402.19173); ``modeling_starcoder2.py`` of Hugging Face
transformers.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..decoder import Architecture
from ..graph import Graph
from ..layers import Attend, activated_linear
from ..stream import Stream
from . import gpt_neox, llama


@dataclass(frozen=True)
class Config(llama.Config):
    """Fields of config.json that shape the graph; defaults are those of transformers."""

    vocab_size: int = 49152
    hidden_size: int = 3072
    intermediate_size: int = 12288
    num_hidden_layers: int = 30
    num_attention_heads: int = 24
    num_key_value_heads: int | None = 2
    hidden_act: str = "gelu_pytorch_tanh"
    max_position_embeddings: int = 4096
    norm_epsilon: float = 1e-5
    tie_word_embeddings: bool = True
    use_bias: bool = True
    sliding_window: int | None = None

    @property
    def epsilon(self) -> float:
        return self.norm_epsilon

    @property
    def qkv_bias(self) -> bool:
        return self.use_bias

    def window(self, layer: int) -> int | None:
        """The same in every layer."""
        return self.sliding_window


def block(g: Graph, config: Config, stream: Stream, attend: Attend) -> None:
    """One layer."""
    d, f, bias = config.hidden_size, config.intermediate_size, config.use_bias
    x = stream.layer_norm("input_layernorm")
    with g.scope("self_attn"):
        attended = attend(*llama.projections(g, config, x))
        stream.add_linear(attended, "o_proj", (d, config.query_size), bias=bias)
    x = stream.layer_norm("post_attention_layernorm")
    with g.scope("mlp"):
        x = activated_linear(g, x, "c_fc", (f, d), config.hidden_act, bias=bias)
        stream.add_linear(x, "c_proj", (d, f), bias=bias)


ARCHITECTURE = Architecture(
    Config,
    llama.embed,
    block,
    gpt_neox.norm,
    bare=llama.bare,
    table="embed_tokens",
    layers="layers",
)
