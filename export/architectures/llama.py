"""Llama 2 to 3.3: a checkpoint with Hugging Face names -> one fused float32 graph.

    x = embed_tokens[ids]
    for each layer:  x += o_proj(attention(rotated q, k, v of input_layernorm(x)))
                     h = post_attention_layernorm(x)
                     x += down_proj(silu(gate_proj(h)) · up_proj(h))
    logits = norm(x) @ lm_head.T

Other families replace what they do in another way. Letters: see ``layers``; F feed-forward width.
Sources: Touvron et al. 2023 (arXiv 2307.09288); ``modeling_llama.py`` of Hugging Face transformers
for names, shapes (weights are (out, in)) and the fields and defaults of the configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import onnx_ir as ir

from ..config_fields import DERIVED, require
from ..decoder import Architecture, DecoderConfig
from ..decoder_inputs import DecoderInputs
from ..folder import DecoderShape
from ..graph import Graph
from ..layers import ACTIVATIONS, Attend, activation, embedding, linear
from ..rope import Rope
from ..rotary import Rotary, rotary
from ..stream import Stream


@dataclass(frozen=True)
class Config(DecoderConfig):
    """Fields of config.json that shape the graph; defaults are those of transformers."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    context_length: int = field(default=0, metadata=DERIVED)

    theta: ClassVar[float] = 10000.0  # where the config has none
    share: ClassVar[float | None] = None  # the rotated part of a head, of families that have one

    @classmethod
    def read(cls, config: dict[str, Any]) -> Self:
        """As all; a rotation may be for longer texts than the model was trained with."""
        fields = super().read(config)
        longest = fields.rope(config).longest(fields.max_position_embeddings)
        return replace(fields, context_length=longest)

    def check(self, config: dict[str, Any]) -> None:
        """Raises CheckpointError for a combination of fields that has no graph."""
        require(self.hidden_act in ACTIVATIONS, "hidden_act", self.hidden_act, sorted(ACTIVATIONS))
        heads = (self.num_attention_heads, self.kv_heads)
        require(
            heads[0] % heads[1] == 0,
            "num_key_value_heads",
            heads[1],
            [f"a divisor of num_attention_heads {heads[0]}"],
        )
        # ONNX Runtime's attention kernel has no other.
        require(self.head_size % 8 == 0, "the head size", self.head_size, ["a multiple of 8"])

    @property
    def kv_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads  # K

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads  # E

    @property
    def query_size(self) -> int:
        return self.num_attention_heads * self.head_size  # H·E

    @property
    def key_size(self) -> int:
        return self.kv_heads * self.head_size  # K·E

    def check_width(self) -> None:
        """Raises CheckpointError unless all heads make up the width, as some families have it."""
        sizes = f"{self.num_attention_heads} heads of {self.head_size}"
        fits = self.query_size == self.hidden_size
        require(fits, "the heads", sizes, [f"hidden_size {self.hidden_size} together"])

    @property
    def epsilon(self) -> float:
        """Of the norms."""
        return self.rms_norm_eps

    @property
    def qkv_bias(self) -> bool:
        """Whether the projections of queries, keys and values have biases."""
        return self.attention_bias

    @property
    def shape(self) -> DecoderShape:
        return DecoderShape(
            vocab_size=self.vocab_size,
            context_length=self.context_length,
            hidden_size=self.hidden_size,
            num_layers=self.num_hidden_layers,
            num_heads=self.num_attention_heads,
            kv_heads=self.kv_heads,
            head_size=self.head_size,
        )

    def rope(self, config: dict[str, Any]) -> Rope:
        """The rotation that ``config`` asks for."""
        trained = self.max_position_embeddings
        return Rope.read(config, self.head_size, trained, self.theta, self.share)

    def rotaries(
        self, g: Graph, config: dict[str, Any], inputs: DecoderInputs
    ) -> Sequence[Rotary | None]:
        """The same in every layer."""
        made = rotary(g, self.rope(config), "rope", self.context_length, inputs)
        return [made] * self.num_hidden_layers


def bare(name: str) -> str | None:
    """``layers.0.…``: some files have the prefix ``model.``, and older ones rotary frequencies."""
    return None if name.endswith("rotary_emb.inv_freq") else name.removeprefix("model.")


def embed(g: Graph, config: Config, inputs: DecoderInputs) -> Stream:
    """The stream begins as rows of the table: (B, S) -> (B, S, D)."""
    shape = (config.vocab_size, config.hidden_size)
    x = embedding(g, inputs.input_ids, "embed_tokens", shape)
    return Stream(g, x, config.hidden_size, config.epsilon)


def projections(g: Graph, config: Config, x: ir.Value) -> Sequence[ir.Value]:
    """x (B, S, D) -> q (B, S, H·E), k and v (B, S, K·E)."""
    d, bias = config.hidden_size, config.qkv_bias
    return (
        linear(g, x, "q_proj", (config.query_size, d), bias=bias),
        linear(g, x, "k_proj", (config.key_size, d), bias=bias),
        linear(g, x, "v_proj", (config.key_size, d), bias=bias),
    )


def gated(g: Graph, config: Config, x: ir.Value) -> ir.Value:
    """The wide part of the feed-forward: (B, S, D) -> (B, S, F)."""
    shape, bias = (config.intermediate_size, config.hidden_size), config.mlp_bias
    gate = activation(g, linear(g, x, "gate_proj", shape, bias=bias), config.hidden_act)
    return g.Mul(gate, linear(g, x, "up_proj", shape, bias=bias), name="gated")


Projections = Callable[[Graph, Config, ir.Value], Sequence[ir.Value]]
FeedForward = Callable[[Graph, Config, ir.Value], ir.Value]


def block(
    g: Graph,
    config: Config,
    stream: Stream,
    attend: Attend,
    project: Projections = projections,
    feed: FeedForward = gated,
) -> None:
    """One layer; other families ``project`` or ``feed`` in another way."""
    d, f = config.hidden_size, config.intermediate_size
    x = stream.rms_norm("input_layernorm")
    with g.scope("self_attn"):
        attended = attend(*project(g, config, x))
        stream.add_linear(attended, "o_proj", (d, config.query_size), bias=config.attention_bias)
    x = stream.rms_norm("post_attention_layernorm")
    with g.scope("mlp"):
        stream.add_linear(feed(g, config, x), "down_proj", (d, f), bias=config.mlp_bias)


def norm(g: Graph, config: Config, stream: Stream) -> ir.Value:
    """What the head reads."""
    return stream.rms_norm("norm")


ARCHITECTURE = Architecture(
    Config, embed, block, norm, bare=bare, table="embed_tokens", layers="layers"
)
