"""Granite 3: Llama's layers with multipliers of embedding, attention, branches and logits.

    x = embed_tokens[ids] · embedding_multiplier
    for each layer:  x += branch(x) · residual_multiplier, of both parts
    logits = norm(x) @ lm_head.T / logits_scaling

A branch's multiplier is in the weights of the projection that ends it, the last one in the weight
of the norm before the head. Sources: Granite Team 2024 (Granite 3.0 Language Models);
``modeling_granite.py`` of Hugging Face transformers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..decoder import Architecture
from ..decoder_inputs import DecoderInputs
from ..graph import Graph
from ..layers import embedding
from ..stream import Stream
from ..weight_source import Change
from . import llama


@dataclass(frozen=True)
class Config(llama.Config):
    """Llama's fields and the multipliers; defaults are those of transformers."""

    embedding_multiplier: float = 1.0
    attention_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_scaling: float = 1.0

    @property
    def scale(self) -> float:
        return self.attention_multiplier


def change(config: Config, name: str) -> Change | None:
    """The multipliers that are in weights."""
    *_, part, _ = name.rsplit(".", 2)
    if name == "norm.weight":
        return lambda rows: rows / np.float32(config.logits_scaling)
    if part in ("o_proj", "down_proj"):
        return lambda rows: rows * np.float32(config.residual_multiplier)
    return None


def embed(g: Graph, config: Config, inputs: DecoderInputs) -> Stream:
    """The stream begins as rows of the table, (B, S) -> (B, S, D), multiplied."""
    x = embedding(g, inputs.input_ids, "embed_tokens", (config.vocab_size, config.hidden_size))
    multiplier = g.constant(np.float32(config.embedding_multiplier), "embedding_multiplier")
    return Stream(g, g.Mul(x, multiplier, name="scaled"), config.hidden_size, config.epsilon)


ARCHITECTURE = Architecture(
    Config,
    embed,
    llama.block,
    llama.norm,
    bare=llama.bare,
    table="embed_tokens",
    layers="layers",
    change=change,
)
