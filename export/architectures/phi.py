"""Phi 1, 1.5 and 2: both parts of a layer read one layer norm, and everything has biases.

    x = embed_tokens[ids]
    for each layer:  h = input_layernorm(x)
                     x += dense(attention(q, k, v of h)) + fc2(gelu(fc1(h)))
    logits = final_layernorm(x) @ lm_head.T + lm_head.bias

Part of each head is rotated. Letters: see ``layers``. Sources: Li et al. 2023 (arXiv 2309.05463);
``modeling_phi.py`` of Hugging Face transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir as ir

from ..config_fields import refuse_unless
from ..decoder import Architecture
from ..graph import Graph
from ..layers import Attend, activated_linear
from ..stream import Stream
from . import llama


@dataclass(frozen=True)
class Config(llama.Config):
    """Fields of config.json that shape the graph; defaults are those of transformers."""

    vocab_size: int = 51200
    hidden_size: int = 2048
    intermediate_size: int = 8192
    num_hidden_layers: int = 24
    hidden_act: str = "gelu_new"
    layer_norm_eps: float = 1e-5

    share: ClassVar[float | None] = 0.5

    def check(self, config: dict[str, Any]) -> None:
        """As Llama, without norms of queries and keys."""
        super().check(config)
        refuse_unless(config, "qk_layernorm", False)

    @property
    def epsilon(self) -> float:
        return self.layer_norm_eps

    @property
    def qkv_bias(self) -> bool:
        return True


def block(g: Graph, config: Config, stream: Stream, attend: Attend) -> None:
    """One layer."""
    d, f = config.hidden_size, config.intermediate_size
    x = stream.layer_norm("input_layernorm")
    with g.scope("self_attn"):
        attended = attend(*llama.projections(g, config, x))
        stream.add_linear(attended, "dense", (d, config.query_size), bias=True)
    with g.scope("mlp"):
        x = activated_linear(g, x, "fc1", (f, d), config.hidden_act)
        stream.add_linear(x, "fc2", (d, f), bias=True)


def norm(g: Graph, config: Config, stream: Stream) -> ir.Value:
    """What the head reads."""
    return stream.layer_norm("final_layernorm")


ARCHITECTURE = Architecture(
    Config,
    llama.embed,
    block,
    norm,
    bare=llama.bare,
    table="embed_tokens",
    layers="layers",
    head_bias=True,
)
