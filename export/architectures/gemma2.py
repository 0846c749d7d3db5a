"""Gemma 2: norms on both sides of each part, and a window in every other layer.

    x = embed_tokens[ids] · sqrt(D)
    for each layer:  x += post_attention_layernorm(o_proj(attention(q, k, v of input_layernorm(x))))
                     x += post_feedforward_layernorm(mlp(pre_feedforward_layernorm(x)))
    logits = softcap(norm(x) @ embed_tokens.T)

What a query and a key give and what the head makes are bounded by a softcap, s · tanh(y / s); the
head's division by s is done in the weight of the norm before it. Letters: see ``layers``.
Sources: Gemma Team 2024 (arXiv 2408.00118); ``modeling_gemma2.py`` of Hugging Face transformers.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

from ..config_fields import DERIVED, refuse_unless
from ..decoder import Architecture
from ..decoder_inputs import DecoderInputs
from ..graph import Graph
from ..layer_kinds import SLIDING, layer_kinds
from ..layers import Attend, embedding, linear, rms_norm
from ..stream import Stream
from ..weight_source import Change, Floats
from . import llama


@dataclass(frozen=True)
class Config(llama.Config):
    """Fields of config.json that shape the graph; defaults are those of transformers."""

    vocab_size: int = 256000
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 26
    num_attention_heads: int = 8
    num_key_value_heads: int | None = 4
    head_dim: int | None = 256
    hidden_act: str = "gelu_pytorch_tanh"
    max_position_embeddings: int = 8192
    tie_word_embeddings: bool = True
    query_pre_attn_scalar: float = 256.0
    sliding_window: int = 4096
    attn_logit_softcapping: float | None = 50.0
    final_logit_softcapping: float | None = 30.0
    kinds: tuple[str, ...] = field(default=(), metadata=DERIVED)  # one per layer

    @classmethod
    def read(cls, config: dict[str, Any]) -> Self:
        """As Llama; a config without ``layer_types`` has a full layer after some sliding ones."""
        act = config.get("hidden_activation") or cls.hidden_act
        fields = super().read(config | {"hidden_act": act})
        every, count = fields.full_every, fields.num_hidden_layers
        return replace(fields, kinds=layer_kinds(config, count, lambda i: bool((i + 1) % every)))

    def check(self, config: dict[str, Any]) -> None:
        """As Llama, without what the graph does not do."""
        super().check(config)
        refuse_unless(config, "use_bidirectional_attention", False)

    @property
    def full_every(self) -> int:
        """One layer of so many sees all tokens."""
        return 2

    @property
    def scale(self) -> float:
        """From a number of its own, not the head size."""
        return float(self.query_pre_attn_scalar**-0.5)

    @property
    def softcap(self) -> float | None:
        return self.attn_logit_softcapping

    @property
    def logit_softcap(self) -> float | None:
        return self.final_logit_softcapping

    def window(self, layer: int) -> int | None:
        """The window of the layers that have one."""
        return self.sliding_window if self.kinds[layer] == SLIDING else None


def change(config: Config, name: str) -> Change | None:
    """A norm's weight is stored as its difference from 1; the last one divides for the softcap."""
    if not name.endswith("norm.weight"):
        return None
    divisor = config.logit_softcap if name == "norm.weight" else None

    def weight(rows: Floats) -> Floats:
        whole = rows + np.float32(1)
        return whole if divisor is None else whole / np.float32(divisor)

    return weight


def embed(g: Graph, config: llama.Config, inputs: DecoderInputs) -> Stream:
    """The stream begins as rows of the table, (B, S) -> (B, S, D), scaled."""
    d = config.hidden_size
    x = embedding(g, inputs.input_ids, "embed_tokens", (config.vocab_size, d))
    x = g.Mul(x, g.constant(np.float32(d**0.5), "embed_scale"), name="scaled")
    return Stream(g, x, d, config.epsilon)


def block(
    g: Graph,
    config: llama.Config,
    stream: Stream,
    attend: Attend,
    project: llama.Projections = llama.projections,
) -> None:
    """One layer: what its parts read is normed, and what they add."""
    d, f, epsilon = config.hidden_size, config.intermediate_size, config.epsilon
    x = stream.rms_norm("input_layernorm")
    with g.scope("self_attn"):
        attended = attend(*project(g, config, x))
        shape = (d, config.query_size)
        branch = linear(g, attended, "o_proj", shape, bias=config.attention_bias)
    stream.add(rms_norm(g, branch, "post_attention_layernorm", d, epsilon))
    x = stream.rms_norm("pre_feedforward_layernorm")
    with g.scope("mlp"):
        branch = linear(g, llama.gated(g, config, x), "down_proj", (d, f), bias=config.mlp_bias)
    stream.add(rms_norm(g, branch, "post_feedforward_layernorm", d, epsilon))


ARCHITECTURE = Architecture(
    Config,
    embed,
    block,
    llama.norm,
    bare=llama.bare,
    table="embed_tokens",
    layers="layers",
    change=change,
)
