"""Llama 2 to 3.3: a checkpoint with Hugging Face names -> one fused float32 graph.

    x = embed_tokens[ids]
    for each layer:  x += o_proj(attention(rotated q, k, v of input_layernorm(x)))
                     h = post_attention_layernorm(x)
                     x += down_proj(silu(gate_proj(h)) · up_proj(h))
    logits = norm(x) @ lm_head.T

Families that differ in a few fields build with ``build_decoder`` and a ``Config`` of their own, and
may pass other projections for the attention. Letters: see ``layers``; F feed-forward width.
Sources: Touvron et al. 2023 (arXiv 2307.09288); ``modeling_llama.py`` of Hugging Face transformers
for names, shapes (weights are (out, in)) and the fields and defaults of the configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import onnx_ir as ir

from ..checkpoint import Checkpoint
from ..config_fields import read_fields, require
from ..folder import DecoderShape
from ..graph import Dimension, Graph
from ..layers import (
    ACTIVATIONS,
    Rotation,
    activation,
    attention,
    decoder_inputs,
    embedding,
    last_rows,
    linear,
    rms_norm,
    skip_rms_norm,
)
from ..rope import Rope
from ..weight_source import WeightSource

Weights = Callable[[str], ir.Value]
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Config:
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

    @classmethod
    def read(cls, config: dict[str, Any]) -> Self:
        """Reads and checks ``config``; CheckpointError names a field and value we cannot build."""
        fields = read_fields(cls, config)
        fields.check(config)
        return fields

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
    def rotary_size(self) -> int:
        """R: how many of a head's numbers are rotated."""
        return self.head_size

    @property
    def qkv_bias(self) -> bool:
        """Whether the projections of queries, keys and values have biases."""
        return self.attention_bias

    @property
    def output_bias(self) -> bool:
        """Whether the projection of the attention's output has a bias."""
        return self.attention_bias

    def window(self, layer: int) -> int | None:
        """Tokens that a token of ``layer`` sees, itself included; None for all."""
        return None


def attention_shapes(config: Config) -> Shapes:
    """The tensors of one layer's attention."""
    d, e = config.hidden_size, config.head_size
    h, k = config.num_attention_heads, config.kv_heads
    shapes: Shapes = {
        "self_attn.q_proj.weight": (h * e, d),
        "self_attn.k_proj.weight": (k * e, d),
        "self_attn.v_proj.weight": (k * e, d),
        "self_attn.o_proj.weight": (d, h * e),
    }
    if config.qkv_bias:
        for name in ("q_proj", "k_proj", "v_proj"):
            shapes[f"self_attn.{name}.bias"] = shapes[f"self_attn.{name}.weight"][:1]
    if config.output_bias:
        shapes["self_attn.o_proj.bias"] = (d,)
    return shapes


def feed_forward_shapes(config: Config) -> Shapes:
    """The tensors of one layer's feed-forward part."""
    d, f = config.hidden_size, config.intermediate_size
    shapes: Shapes = {
        "mlp.gate_proj.weight": (f, d),
        "mlp.up_proj.weight": (f, d),
        "mlp.down_proj.weight": (d, f),
    }
    if config.mlp_bias:
        for name in ("gate_proj", "up_proj", "down_proj"):
            shapes[f"mlp.{name}.bias"] = shapes[f"mlp.{name}.weight"][:1]
    return shapes


def layer_shapes(config: Config) -> Shapes:
    """The tensors of one layer."""
    norm = (config.hidden_size,)
    return {
        "input_layernorm.weight": norm,
        **attention_shapes(config),
        "post_attention_layernorm.weight": norm,
        **feed_forward_shapes(config),
    }


def decoder_shapes(config: Config, layer: Shapes) -> Shapes:
    """Every tensor a checkpoint must have, in the order of the forward pass."""
    shapes: Shapes = {"embed_tokens.weight": (config.vocab_size, config.hidden_size)}
    for i in range(config.num_hidden_layers):
        shapes |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
    shapes["norm.weight"] = (config.hidden_size,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, config.hidden_size)
    return shapes


def weights(checkpoint: Checkpoint, config: Config, layer: Shapes) -> WeightSource:
    """The checkpoint's tensors under bare names (``layers.0.…``), each with its expected shape.

    Quirks that stop here: files with and without the prefix ``model.``; frequencies of the rotary
    embedding that older files carry; a tied head stored a second time.
    """

    def bare(name: str) -> str | None:
        name = name.removeprefix("model.")
        if name.endswith("rotary_emb.inv_freq"):
            return None
        if name == "lm_head.weight" and config.tie_word_embeddings:
            return None
        return name

    source = WeightSource(checkpoint, bare, decoder_shapes(config, layer))
    source.check()
    return source


Projections = Callable[[Graph, Weights, Config, ir.Value, str], Sequence[ir.Value]]
FeedForward = Callable[[Graph, Weights, Config, ir.Value, str], ir.Value]


def projections(
    g: Graph, w: Weights, config: Config, x: ir.Value, layer: str
) -> Sequence[ir.Value]:
    """x (B, S, D) -> q (B, S, H·E), k and v (B, S, K·E)."""
    return [
        linear(
            g,
            x,
            w(f"{layer}.self_attn.{name}.weight"),
            w(f"{layer}.self_attn.{name}.bias") if config.qkv_bias else None,
            name=name,
        )
        for name in ("q_proj", "k_proj", "v_proj")
    ]


def tensor_shapes(config: dict[str, Any]) -> Shapes:
    """Name and shape of every tensor that a checkpoint with this config.json has."""
    fields = Config.read(config)
    return decoder_shapes(fields, layer_shapes(fields))


def build(checkpoint: Checkpoint) -> tuple[ir.Model, DecoderShape]:
    """The float32 model of ``checkpoint`` and its sizes; no weight is read yet.

    Raises CheckpointError when the config asks for something else or a tensor does not fit it.
    """
    config = Config.read(checkpoint.config)
    return build_decoder(checkpoint, config, layer_shapes(config))


def build_decoder(
    checkpoint: Checkpoint,
    config: Config,
    layer: Shapes,
    project: Projections = projections,
    feed: FeedForward | None = None,
) -> tuple[ir.Model, DecoderShape]:
    """The graph of any family with Llama's names: ``layer`` has the tensors of one layer."""
    feed = feed or feed_forward
    rope = Rope.read(checkpoint.config, config.rotary_size)
    source = weights(checkpoint, config, layer)
    g = Graph(str(checkpoint.config["model_type"]))
    inputs = decoder_inputs(g)
    rotation = Rotation(*rope.tables(g, "rope", config.max_position_embeddings))

    def w(name: str) -> ir.Value:
        return source.weight(g, name)

    table = w("embed_tokens.weight")
    x = embedding(g, table, inputs.input_ids, "embed_tokens")  # (B, S) -> (B, S, D)

    # A layer hands on its residual stream x and a branch that the next norm still has to add.
    branch: ir.Value | None = None
    branch_bias: ir.Value | None = None
    for i in range(config.num_hidden_layers):
        name = f"layers.{i}"
        with g.scope(name):
            normed, x = norm(g, w, config, f"{name}.input_layernorm", x, branch, branch_bias)
            with g.scope("self_attn"):
                attended = attention(
                    g,
                    project(g, w, config, normed, name),
                    inputs,
                    i,
                    num_heads=config.num_attention_heads,
                    kv_heads=config.kv_heads,
                    head_size=config.head_size,
                    scale=config.head_size**-0.5,
                    rotation=rotation,
                    window=config.window(i),
                )
                branch = linear(g, attended, w(f"{name}.self_attn.o_proj.weight"), name="o_proj")
            branch_bias = w(f"{name}.self_attn.o_proj.bias") if config.output_bias else None
            normed, x = norm(
                g, w, config, f"{name}.post_attention_layernorm", x, branch, branch_bias
            )
            branch = feed(g, w, config, normed, name)
            branch_bias = w(f"{name}.mlp.down_proj.bias") if config.mlp_bias else None
    x, _ = norm(g, w, config, "norm", x, branch, branch_bias)

    head = table if config.tie_word_embeddings else w("lm_head.weight")
    logits = linear(g, last_rows(g, x, inputs.num_logits_to_keep), head, name="lm_head")
    return finished(g, config, logits)


def norm(
    g: Graph,
    w: Weights,
    config: Config,
    name: str,
    x: ir.Value,
    branch: ir.Value | None,
    branch_bias: ir.Value | None,
) -> tuple[ir.Value, ir.Value]:
    """(norm(x + branch + branch_bias), x + branch + branch_bias)."""
    weight = w(f"{name}.weight")
    with g.scope(name.rpartition(".")[2]):
        if branch is None:
            return rms_norm(g, x, weight, config.rms_norm_eps, "rms_norm"), x
        return skip_rms_norm(g, branch, x, weight, config.rms_norm_eps, branch_bias)


def feed_forward(g: Graph, w: Weights, config: Config, x: ir.Value, layer: str) -> ir.Value:
    """The gated feed-forward part, (B, S, D) -> (B, S, D), without the bias of ``down_proj``."""

    def part(name: str) -> ir.Value:
        bias = w(f"{layer}.mlp.{name}.bias") if config.mlp_bias else None
        return linear(g, x, w(f"{layer}.mlp.{name}.weight"), bias, name=name)

    with g.scope("mlp"):
        gate = activation(g, part("gate_proj"), config.hidden_act)
        hidden = g.Mul(gate, part("up_proj"), name="gated")  # (B, S, F)
        return linear(g, hidden, w(f"{layer}.mlp.down_proj.weight"), name="down_proj")


def finished(g: Graph, config: Config, logits: ir.Value) -> tuple[ir.Model, DecoderShape]:
    """Declares the logits first among the outputs, as callers by position expect."""
    dims: list[Dimension] = ["batch_size", "sequence_length", config.vocab_size]
    g.output(logits, "logits", np.float32, dims, first=True)
    shape = DecoderShape(
        vocab_size=config.vocab_size,
        context_length=config.max_position_embeddings,
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        kv_heads=config.kv_heads,
        head_size=config.head_size,
    )
    return g.model(), shape
