"""Gemma 3 (text): norms on both sides of each part, and layers with and without a window.

    x = embed_tokens[ids] · sqrt(D)
    for each layer:  x += post_attention_layernorm(o_proj(attention(q, k, v of input_layernorm(x))))
                     x += post_feedforward_layernorm(mlp(pre_feedforward_layernorm(x)))
    logits = norm(x) @ embed_tokens.T

Queries and keys are normed head by head, then rotated: with one base in the layers that see
everything, with another in those that see a window. Letters: see ``layers``.
Sources: Gemma Team 2025 (arXiv 2503.19786); ``modeling_gemma3.py`` of Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from ..config_fields import refuse_unless, require
from ..graph import Graph
from ..layers import Attend, DecoderInputs, embedding, linear, rms_norm
from ..rope import Rope, Rotary
from ..stream import Stream
from ..weight_source import Change
from . import llama, qwen3

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class Config(llama.Config):
    """Fields of config.json that shape the graph; defaults are those of transformers."""

    vocab_size: int = 262208
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 26
    num_attention_heads: int = 8
    num_key_value_heads: int | None = 4
    head_dim: int | None = 256
    hidden_act: str = "gelu_pytorch_tanh"
    max_position_embeddings: int = 131072
    tie_word_embeddings: bool = True
    query_pre_attn_scalar: float = 256.0
    sliding_window: int = 4096
    sliding_window_pattern: int = 6
    kinds: tuple[str, ...] = ()  # FULL or SLIDING, one per layer

    @classmethod
    def read(cls, config: dict[str, Any]) -> Self:
        """As Llama; a config without ``layer_types`` has a full layer after some sliding ones."""
        act = config.get("hidden_activation", cls.hidden_act)
        own = {name: value for name, value in config.items() if name != "kinds"}
        fields = super().read(own | {"hidden_act": act})
        pattern, count = fields.sliding_window_pattern, fields.num_hidden_layers
        kinds = config.get("layer_types")
        if kinds is None:
            kinds = [SLIDING if (i + 1) % pattern else FULL for i in range(count)]
        whole = isinstance(kinds, list) and len(kinds) == count
        known = whole and all(kind in (FULL, SLIDING) for kind in kinds)
        require(known, "layer_types", kinds, [f"{count} times {FULL} or {SLIDING}"])
        return replace(fields, kinds=tuple(kinds))

    def check(self, config: dict[str, Any]) -> None:
        """As Llama, without what the graph does not do."""
        super().check(config)
        for name in ("attn_logit_softcapping", "final_logit_softcapping"):
            refuse_unless(config, name, None)
        refuse_unless(config, "use_bidirectional_attention", False)

    @property
    def scale(self) -> float:
        """From a number of its own, not the head size."""
        return float(self.query_pre_attn_scalar**-0.5)

    def window(self, layer: int) -> int | None:
        """The window of the layers that have one."""
        return self.sliding_window if self.kinds[layer] == SLIDING else None

    def rotaries(self, g: Graph, config: dict[str, Any]) -> Sequence[Rotary]:
        """One for each kind of layer."""
        by_kind = {
            kind: rope.rotary(g, f"rope.{kind}", self.max_position_embeddings)
            for kind, rope in ropes(config, self.head_size).items()
            if kind in self.kinds
        }
        return [by_kind[kind] for kind in self.kinds]


def ropes(config: dict[str, Any], size: int) -> dict[str, Rope]:
    """The rotation of each kind of layer; newer configs list them by kind."""
    by_kind = config.get("rope_parameters")
    if isinstance(by_kind, dict) and by_kind.keys() >= {FULL, SLIDING}:
        return {kind: Rope.read({"rope_parameters": by_kind[kind]}, size) for kind in by_kind}
    local = config.get("rope_local_base_freq", 10000.0)
    return {
        FULL: Rope.read({"rope_theta": 1e6} | config, size),
        SLIDING: Rope.read({"rope_theta": local}, size),
    }


def change(name: str) -> Change | None:
    """A norm's weight is stored as its difference from 1."""
    return (lambda rows: rows + np.float32(1)) if name.endswith("norm.weight") else None


def embed(g: Graph, config: llama.Config, inputs: DecoderInputs) -> Stream:
    """The stream begins as rows of the table, (B, S) -> (B, S, D), scaled."""
    d = config.hidden_size
    x = embedding(g, inputs.input_ids, "embed_tokens", (config.vocab_size, d))
    x = g.Mul(x, g.constant(np.float32(d**0.5), "embed_scale"), name="scaled")
    return Stream(g, x, d, config.rms_norm_eps)


def block(g: Graph, config: llama.Config, stream: Stream, attend: Attend) -> None:
    """One layer: what its parts read is normed, and what they add."""
    d, f, epsilon = config.hidden_size, config.intermediate_size, config.rms_norm_eps
    x = stream.rms_norm("input_layernorm")
    with g.scope("self_attn"):
        attended = attend(*qwen3.projections(g, config, x))
        shape = (d, config.query_size)
        branch = linear(g, attended, "o_proj", shape, bias=config.attention_bias)
    stream.add(rms_norm(g, branch, "post_attention_layernorm", d, epsilon))
    x = stream.rms_norm("pre_feedforward_layernorm")
    with g.scope("mlp"):
        branch = linear(g, llama.gated(g, config, x), "down_proj", (d, f), bias=config.mlp_bias)
    stream.add(rms_norm(g, branch, "post_feedforward_layernorm", d, epsilon))


ARCHITECTURE = replace(llama.ARCHITECTURE, config=Config, embed=embed, block=block, change=change)
