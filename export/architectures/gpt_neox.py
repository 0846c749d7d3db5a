"""GPT-NeoX (Pythia): both parts of a layer read the same stream, each through its layer norm.

    x = embed_in[ids]
    for each layer:  x += dense(attention(q, k, v of input_layernorm(x)))
                          + dense_4h_to_h(gelu(dense_h_to_4h(post_attention_layernorm(x))))
    logits = final_layer_norm(x) @ embed_out.T

One projection makes queries, keys and values, stored head by head; its rows are put in the order
q, k, v of all heads when they are read. Part of each head is rotated. Letters: see ``layers``.
Sources: Black et al. 2022 (arXiv 2204.06745); ``modeling_gpt_neox.py`` of Hugging Face transformers
for names, shapes and configuration fields.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from ..config_fields import require
from ..decoder import Architecture
from ..graph import Graph
from ..layers import Attend, activated_linear, linear
from ..rope import SHARE, Rope
from ..stream import Stream
from ..weight_source import Order
from . import llama

NAMES = {"embed_in": "embed_tokens", "final_layer_norm": "norm", "embed_out": "lm_head"}


@dataclass(frozen=True)
class Config(llama.Config):
    """Fields of config.json that shape the graph; defaults are those of transformers."""

    vocab_size: int = 50432
    hidden_size: int = 6144
    intermediate_size: int = 24576
    num_hidden_layers: int = 44
    num_attention_heads: int = 64
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    attention_bias: bool = True
    use_parallel_residual: bool = True

    share: ClassVar[float | None] = 0.25

    def check(self, config: dict[str, Any]) -> None:
        """As Llama; every head has its own keys, and they make up the width."""
        super().check(config)
        self.check_width()
        own = self.kv_heads == self.num_attention_heads
        require(own, "num_key_value_heads", self.kv_heads, ["null"])

    @property
    def epsilon(self) -> float:
        return self.layer_norm_eps

    def rope(self, config: dict[str, Any]) -> Rope:
        """As Llama; the older fields have names of their own."""
        older = {"rope_theta": config.get("rotary_emb_base"), SHARE: config.get("rotary_pct")}
        given = {name: value for name, value in config.items() if value is not None}
        return super().rope(older | given)


def bare(name: str) -> str | None:
    """Names of Llama outside the layers; older files hold causal masks and rotary frequencies."""
    name = name.removeprefix("gpt_neox.")
    if re.fullmatch(r"layers\.\d+\.attention\.(masked_bias|bias|rotary_emb\.inv_freq)", name):
        return None
    first, dot, rest = name.partition(".")
    return NAMES.get(first, first) + dot + rest


def order(config: Config, name: str) -> Order | None:
    """Rows of all queries, then all keys, then all values: stored are those of a head together."""
    if ".query_key_value." not in name:
        return None
    heads, size = config.num_attention_heads, config.head_size
    stored = np.arange(3 * heads * size, dtype=np.int64).reshape(heads, 3, size)
    return np.ascontiguousarray(stored.swapaxes(0, 1)).reshape(-1)


def block(g: Graph, config: Config, stream: Stream, attend: Attend) -> None:
    """One layer; older models than Pythia add the first part before the second reads."""
    d, f, bias = config.hidden_size, config.intermediate_size, config.attention_bias
    x = stream.layer_norm("input_layernorm")
    if config.use_parallel_residual:
        h = stream.layer_norm("post_attention_layernorm")
    with g.scope("attention"):
        attended = attend(linear(g, x, "query_key_value", (3 * d, d), bias=bias))
        stream.add_linear(attended, "dense", (d, d), bias=bias)
    if not config.use_parallel_residual:
        h = stream.layer_norm("post_attention_layernorm")
    with g.scope("mlp"):
        h = activated_linear(g, h, "dense_h_to_4h", (f, d), config.hidden_act)
        stream.add_linear(h, "dense_4h_to_h", (d, f), bias=True)


def norm(g: Graph, config: llama.Config, stream: Stream) -> ir.Value:
    """What the head reads."""
    return stream.layer_norm("norm")


ARCHITECTURE = Architecture(
    Config,
    llama.embed,
    block,
    norm,
    bare=bare,
    table="embed_tokens",
    layers="layers",
    order=order,
)
