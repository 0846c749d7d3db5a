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

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import onnx_ir as ir

from ..checkpoint import Checkpoint
from ..config_fields import refuse_unless, require
from ..folder import DecoderShape
from ..graph import Graph
from ..layers import Rotation, attention, decoder_inputs, embedding, last_rows, linear, rms_norm
from ..rope import Rope
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

    def window(self, layer: int) -> int | None:
        """The window of the layers that have one."""
        return self.sliding_window if self.kinds[layer] == SLIDING else None


def layer_shapes(config: Config) -> llama.Shapes:
    """The tensors of one layer: Qwen3's, and the norms around the feed-forward part."""
    norm = (config.hidden_size,)
    return qwen3.layer_shapes(config) | {
        "pre_feedforward_layernorm.weight": norm,
        "post_feedforward_layernorm.weight": norm,
    }


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


def tensor_shapes(config: dict[str, Any]) -> llama.Shapes:
    """Name and shape of every tensor that a checkpoint with this config.json has."""
    fields = Config.read(config)
    return llama.decoder_shapes(fields, layer_shapes(fields))


def build(checkpoint: Checkpoint) -> tuple[ir.Model, DecoderShape]:
    """The float32 model of ``checkpoint`` and its sizes; no weight is read yet.

    Raises CheckpointError when the config asks for something else or a tensor does not fit it.
    """
    config = Config.read(checkpoint.config)
    source = llama.weights(checkpoint, config, layer_shapes(config))
    g = Graph("gemma3_text")
    inputs = decoder_inputs(g)
    rotations = {
        kind: Rotation(*rope.tables(g, f"rope.{kind}", config.max_position_embeddings))
        for kind, rope in ropes(checkpoint.config, config.head_size).items()
        if kind in config.kinds
    }

    def w(name: str) -> ir.Value:
        # A norm's weight is stored as its difference from 1.
        change = (lambda rows: rows + np.float32(1)) if name.endswith("norm.weight") else None
        return source.weight(g, name, change)

    table = w("embed_tokens.weight")
    width = g.constant(np.float32(config.hidden_size**0.5), "embed_scale")
    x = g.Mul(embedding(g, table, inputs.input_ids, "embed_tokens"), width, name="scaled")

    # A layer hands on its residual stream x and a branch that the next norm still has to add.
    branch: ir.Value | None = None
    for i in range(config.num_hidden_layers):
        layer = f"layers.{i}"
        with g.scope(layer):
            normed, x = llama.norm(g, w, config, f"{layer}.input_layernorm", x, branch, None)
            with g.scope("self_attn"):
                attended = attention(
                    g,
                    qwen3.projections(g, w, config, normed, layer),
                    inputs,
                    i,
                    num_heads=config.num_attention_heads,
                    kv_heads=config.kv_heads,
                    head_size=config.head_size,
                    scale=config.query_pre_attn_scalar**-0.5,
                    rotation=rotations[config.kinds[i]],
                    window=config.window(i),
                )
                weight, bias = f"{layer}.self_attn.o_proj.weight", f"{layer}.self_attn.o_proj.bias"
                bias_value = w(bias) if config.output_bias else None
                branch = linear(g, attended, w(weight), bias_value, name="o_proj")
            branch = after(g, w, config, f"{layer}.post_attention_layernorm", branch)
            before = f"{layer}.pre_feedforward_layernorm"
            normed, x = llama.norm(g, w, config, before, x, branch, None)
            branch = llama.feed_forward(g, w, config, normed, layer)
            branch = after(g, w, config, f"{layer}.post_feedforward_layernorm", branch)
    x, _ = llama.norm(g, w, config, "norm", x, branch, None)

    head = table if config.tie_word_embeddings else w("lm_head.weight")
    logits = linear(g, last_rows(g, x, inputs.num_logits_to_keep), head, name="lm_head")
    return llama.finished(g, config, logits)


def after(g: Graph, w: llama.Weights, config: Config, name: str, branch: ir.Value) -> ir.Value:
    """The norm of a branch before it is added."""
    epsilon = config.rms_norm_eps
    return rms_norm(g, branch, w(f"{name}.weight"), epsilon, name.rpartition(".")[2])
