"""OLMo 2: Llama's parts with the norms behind them, and norms over all queries and all keys.

    for each layer:  x += post_attention_layernorm(o_proj(attention(q_norm(q), k_norm(k), v)))
                     x += post_feedforward_layernorm(mlp(x))

Sources: OLMo Team 2024 (arXiv 2501.00656); ``modeling_olmo2.py`` of Hugging Face transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from ..checkpoint import Checkpoint
from ..folder import DecoderShape
from ..graph import Graph
from ..layers import Rotation, attention, decoder_inputs, embedding, last_rows, linear, rms_norm
from ..rope import Rope
from . import llama


@dataclass(frozen=True)
class Config(llama.Config):
    """Llama's fields; defaults are those of transformers."""

    vocab_size: int = 50304
    rms_norm_eps: float = 1e-5


def layer_shapes(config: Config) -> llama.Shapes:
    """The tensors of one layer."""
    d, e = config.hidden_size, config.head_size
    return {
        **llama.attention_shapes(config),
        "self_attn.q_norm.weight": (config.num_attention_heads * e,),
        "self_attn.k_norm.weight": (config.kv_heads * e,),
        "post_attention_layernorm.weight": (d,),
        **llama.feed_forward_shapes(config),
        "post_feedforward_layernorm.weight": (d,),
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
    rope = Rope.read(checkpoint.config, config.rotary_size)
    source = llama.weights(checkpoint, config, layer_shapes(config))
    g = Graph("olmo2")
    inputs = decoder_inputs(g)
    rotation = Rotation(*rope.tables(g, "rope", config.max_position_embeddings))

    def w(name: str) -> ir.Value:
        return source.weight(g, name)

    def norm(x: ir.Value, name: str) -> ir.Value:
        return rms_norm(g, x, w(f"{name}.weight"), config.rms_norm_eps, name.rpartition(".")[2])

    x = embedding(g, w("embed_tokens.weight"), inputs.input_ids, "embed_tokens")
    for i in range(config.num_hidden_layers):
        layer = f"layers.{i}"
        with g.scope(layer):
            with g.scope("self_attn"):
                query, key, value = llama.projections(g, w, config, x, layer)
                attended = attention(
                    g,
                    (
                        norm(query, f"{layer}.self_attn.q_norm"),
                        norm(key, f"{layer}.self_attn.k_norm"),
                        value,
                    ),
                    inputs,
                    i,
                    num_heads=config.num_attention_heads,
                    kv_heads=config.kv_heads,
                    head_size=config.head_size,
                    scale=config.head_size**-0.5,
                    rotation=rotation,
                )
                bias = w(f"{layer}.self_attn.o_proj.bias") if config.output_bias else None
                weight = w(f"{layer}.self_attn.o_proj.weight")
                branch = linear(g, attended, weight, bias, name="o_proj")
            x = g.Add(x, norm(branch, f"{layer}.post_attention_layernorm"), name="attended")
            branch = llama.feed_forward(g, w, config, x, layer)
            x = g.Add(x, norm(branch, f"{layer}.post_feedforward_layernorm"), name="fed")

    head = w("embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight")
    rows = last_rows(g, norm(x, "norm"), inputs.num_logits_to_keep)
    return llama.finished(g, config, linear(g, rows, head, name="lm_head"))
