"""GPT-2: a checkpoint with Hugging Face names -> one fused float32 graph.

    x = wte[ids] + wpe[positions]
    for each block:  x += attn(ln_1(x));  x += mlp(ln_2(x))
    logits = ln_f(x) @ lm_head.T (+ lm_head.bias)

Letters: see ``layers``; F feed-forward width.
Sources: Radford et al. 2019; ``modeling_gpt2.py`` of Hugging Face transformers for names,
shapes (Conv1D weights are (in, out), which is what MatMul wants) and configuration fields.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from ..config_fields import refuse_unless, require
from ..decoder import Architecture, DecoderConfig
from ..decoder_inputs import DecoderInputs
from ..errors import CheckpointError
from ..folder import DecoderShape
from ..graph import Graph
from ..layers import TANH_GELU, Attend, add_bias, biased_activation, embedding
from ..stream import Stream

ACTIVATIONS = {*TANH_GELU, "gelu", "relu"}


@dataclass(frozen=True)
class Config(DecoderConfig):
    """Fields of config.json that shape the graph; defaults are those of transformers."""

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True
    tie_word_embeddings: bool = True

    def check(self, config: dict[str, Any]) -> None:
        """Refuses other kinds of attention, and a head size that has no kernel."""
        refuse_unless(config, "scale_attn_by_inverse_layer_idx", False)
        refuse_unless(config, "add_cross_attention", False)
        function = self.activation_function
        require(function in ACTIVATIONS, "activation_function", function, sorted(ACTIVATIONS))
        if self.n_embd % self.n_head or self.head_size % 8:
            raise CheckpointError(
                f"config.json: n_embd {self.n_embd} over n_head {self.n_head} heads gives a "
                f"head size of {self.n_embd / self.n_head:g}, expected a multiple of 8; "
                "ONNX Runtime's attention kernel has no other"
            )

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head  # E

    @property
    def feed_forward_size(self) -> int:
        return self.n_inner or 4 * self.n_embd  # F

    @property
    def scale(self) -> float:
        """That of all, unless it is switched off."""
        return super().scale if self.scale_attn_weights else 1.0

    @property
    def shape(self) -> DecoderShape:
        return DecoderShape(
            vocab_size=self.vocab_size,
            context_length=self.n_positions,
            hidden_size=self.n_embd,
            num_layers=self.n_layer,
            num_heads=self.n_head,
            kv_heads=self.n_head,
            head_size=self.head_size,
        )


def bare(name: str) -> str | None:
    """``h.0.…``: some files have the prefix ``transformer.``, and older ones causal masks."""
    name = name.removeprefix("transformer.")
    return None if re.fullmatch(r"h\.\d+\.attn\.(masked_)?bias", name) else name


def embed(g: Graph, config: Config, inputs: DecoderInputs) -> Stream:
    """The stream begins as the tokens' rows plus the positions': (B, S) -> (B, S, D)."""
    d = config.n_embd
    tokens = embedding(g, inputs.input_ids, "wte", (config.vocab_size, d))
    stream = Stream(g, tokens, d, config.layer_norm_epsilon)
    stream.add(embedding(g, inputs.position_ids, "wpe", (config.n_positions, d)))
    return stream


def block(g: Graph, config: Config, stream: Stream, attend: Attend) -> None:
    """One layer; its norms are named for the layer, as in every folder written so far."""
    d, f = config.n_embd, config.feed_forward_size
    x = stream.layer_norm("ln_1")
    with g.scope("attn"):
        qkv = add_bias(g, conv1d(g, x, "c_attn", (d, 3 * d)), "c_attn", 3 * d)
        stream.add(conv1d(g, attend(qkv), "c_proj", (d, d)), g.parameter("c_proj.bias", (d,)))
    x = stream.layer_norm("ln_2")
    with g.scope("mlp"):
        x = conv1d(g, x, "c_fc", (d, f))
        bias, function = g.parameter("c_fc.bias", (f,)), config.activation_function
        x = biased_activation(g, x, bias, function)
        stream.add(conv1d(g, x, "c_proj", (f, d)), g.parameter("c_proj.bias", (d,)))


def conv1d(g: Graph, x: ir.Value, name: str, shape: tuple[int, int]) -> ir.Value:
    """x (…, in) times the weight ``name``, stored (in, out): (…, out)."""
    return g.MatMul(x, g.parameter(f"{name}.weight", shape), name=name)


def norm(g: Graph, config: Config, stream: Stream) -> ir.Value:
    """What the head reads."""
    return stream.layer_norm("ln_f")


ARCHITECTURE = Architecture(
    Config,
    embed,
    block,
    norm,
    bare=bare,
    table="wte",
    layers="h",
    head_bias=True,
    inputs_first=True,
)
