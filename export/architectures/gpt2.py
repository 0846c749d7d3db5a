"""GPT-2: a checkpoint with Hugging Face names -> one fused float32 graph.

    x = wte[ids] + wpe[positions]
    for each block:  x += attn(ln_1(x));  x += mlp(ln_2(x))
    logits = ln_f(x) @ lm_head.T (+ lm_head.bias)

Residual adds, biases and norms are fused into SkipLayerNormalization nodes, so the additive bias of
each ``c_proj`` is added by the norm that follows it. Letters: see ``layers``; F feed-forward width.
Sources: Radford et al. 2019; ``modeling_gpt2.py`` of Hugging Face transformers for names,
shapes (Conv1D weights are (in, out), which is what MatMul wants) and configuration fields.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ..checkpoint import Checkpoint
from ..config_fields import read_fields, refuse_unless, require
from ..errors import CheckpointError
from ..folder import DecoderShape
from ..graph import Dimension, Graph
from ..layers import (
    TANH_GELU,
    DecoderInputs,
    attention,
    decoder_inputs,
    last_rows,
    skip_layer_norm,
)
from ..weight_source import WeightSource

ACTIVATIONS = {*TANH_GELU, "gelu", "relu"}


@dataclass(frozen=True)
class Config:
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

    @classmethod
    def read(cls, config: dict[str, Any]) -> Config:
        """Reads and checks ``config``; CheckpointError names a field and value we cannot build."""
        fields = read_fields(cls, config)
        refuse_unless(config, "scale_attn_by_inverse_layer_idx", False)
        refuse_unless(config, "add_cross_attention", False)
        function = fields.activation_function
        require(function in ACTIVATIONS, "activation_function", function, sorted(ACTIVATIONS))
        if fields.n_embd % fields.n_head or fields.head_size % 8:
            raise CheckpointError(
                f"config.json: n_embd {fields.n_embd} over n_head {fields.n_head} heads gives a "
                f"head size of {fields.n_embd / fields.n_head:g}, expected a multiple of 8; "
                "ONNX Runtime's attention kernel has no other"
            )
        return fields

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head  # E

    @property
    def feed_forward_size(self) -> int:
        return self.n_inner or 4 * self.n_embd  # F


def weights(checkpoint: Checkpoint, config: Config) -> WeightSource:
    """The checkpoint's tensors under bare names (``h.0.…``), each with its expected shape.

    Quirks that stop here: files with and without the prefix ``transformer.``; causal mask buffers
    (``attn.bias``, ``attn.masked_bias``) that older files carry; a tied head stored a second time.
    """

    def bare(name: str) -> str | None:
        name = name.removeprefix("transformer.")
        if re.fullmatch(r"h\.\d+\.attn\.(masked_)?bias", name):
            return None
        if name == "lm_head.weight" and config.tie_word_embeddings:
            return None
        return name

    source = WeightSource(checkpoint, bare, expected_shapes(config))
    source.allow("lm_head.bias", (config.vocab_size,))
    source.check()
    return source


def expected_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Every tensor a checkpoint must have, in the order of the forward pass."""
    d, f = config.n_embd, config.feed_forward_size
    block = {
        "ln_1.weight": (d,),
        "ln_1.bias": (d,),
        "attn.c_attn.weight": (d, 3 * d),
        "attn.c_attn.bias": (3 * d,),
        "attn.c_proj.weight": (d, d),
        "attn.c_proj.bias": (d,),
        "ln_2.weight": (d,),
        "ln_2.bias": (d,),
        "mlp.c_fc.weight": (d, f),
        "mlp.c_fc.bias": (f,),
        "mlp.c_proj.weight": (f, d),
        "mlp.c_proj.bias": (d,),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (config.vocab_size, d),
        "wpe.weight": (config.n_positions, d),
    }
    for i in range(config.n_layer):
        shapes |= {f"h.{i}.{name}": shape for name, shape in block.items()}
    shapes |= {"ln_f.weight": (d,), "ln_f.bias": (d,)}
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, d)
    return shapes


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a checkpoint with this config.json has."""
    return expected_shapes(Config.read(config))


def build(checkpoint: Checkpoint) -> tuple[ir.Model, DecoderShape]:
    """The float32 model of ``checkpoint`` and its sizes; no weight is read yet.

    Raises CheckpointError when the config asks for something else or a tensor does not fit it.
    """
    config = Config.read(checkpoint.config)
    source = weights(checkpoint, config)
    g = Graph("gpt2")
    inputs = decoder_inputs(g)

    def w(name: str) -> ir.Value:
        return source.weight(g, name)

    wte = w("wte.weight")
    tokens = g.Gather(wte, inputs.input_ids, name="wte")  # (B, S) -> (B, S, D)
    positions = g.Gather(w("wpe.weight"), inputs.position_ids, name="wpe")  # -> (B, S, D)

    # A block hands on its residual stream x and a branch that the next norm still has to add.
    x, branch, branch_bias = tokens, positions, None
    for i in range(config.n_layer):
        with g.scope(f"h.{i}"):
            x, branch, branch_bias = block(g, w, config, inputs, i, x, branch, branch_bias)
    with g.scope("ln_f"):
        x, _ = norm(g, w, config, "ln_f", branch, x, branch_bias)

    x = last_rows(g, x, inputs.num_logits_to_keep)
    head = wte if config.tie_word_embeddings else w("lm_head.weight")
    logits = g.FusedMatMul(x, head, transB=1, name="lm_head")  # (B, S, D) -> (B, S, V)
    if "lm_head.bias" in source:
        logits = g.Add(logits, w("lm_head.bias"), name="lm_head.add_bias")
    dims: list[Dimension] = ["batch_size", "sequence_length", config.vocab_size]
    g.output(logits, "logits", np.float32, dims, first=True)  # what callers by position expect
    shape = DecoderShape(
        vocab_size=config.vocab_size,
        context_length=config.n_positions,
        hidden_size=config.n_embd,
        num_layers=config.n_layer,
        num_heads=config.n_head,
        kv_heads=config.n_head,
        head_size=config.head_size,
    )
    return g.model(), shape


def block(
    g: Graph,
    w: Callable[[str], ir.Value],
    config: Config,
    inputs: DecoderInputs,
    i: int,
    x: ir.Value,
    branch: ir.Value,
    branch_bias: ir.Value | None,
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """One transformer block: adds the pending branch to x, attends, and leaves the MLP's branch."""
    normed, x = norm(g, w, config, f"h.{i}.ln_1", branch, x, branch_bias)
    with g.scope("attn"):
        qkv = g.MatMul(normed, w(f"h.{i}.attn.c_attn.weight"), name="c_attn")  # -> (B, S, 3·D)
        qkv = g.Add(qkv, w(f"h.{i}.attn.c_attn.bias"), name="c_attn.add_bias")
        attended = attention(
            g,
            [qkv],
            inputs,
            i,
            num_heads=config.n_head,
            kv_heads=config.n_head,
            head_size=config.head_size,
            scale=config.head_size**-0.5 if config.scale_attn_weights else 1.0,
        )
        branch = g.MatMul(attended, w(f"h.{i}.attn.c_proj.weight"), name="c_proj")

    normed, x = norm(g, w, config, f"h.{i}.ln_2", branch, x, w(f"h.{i}.attn.c_proj.bias"))
    with g.scope("mlp"):
        hidden = g.MatMul(normed, w(f"h.{i}.mlp.c_fc.weight"), name="c_fc")  # -> (B, S, F)
        hidden = activation(g, hidden, w(f"h.{i}.mlp.c_fc.bias"), config.activation_function)
        branch = g.MatMul(hidden, w(f"h.{i}.mlp.c_proj.weight"), name="c_proj")  # -> (B, S, D)
    return x, branch, w(f"h.{i}.mlp.c_proj.bias")


def norm(
    g: Graph,
    w: Callable[[str], ir.Value],
    config: Config,
    name: str,
    branch: ir.Value,
    x: ir.Value,
    branch_bias: ir.Value | None,
) -> tuple[ir.Value, ir.Value]:
    """(norm(x + branch + branch_bias), x + branch + branch_bias)."""
    weight, bias = w(f"{name}.weight"), w(f"{name}.bias")
    return skip_layer_norm(g, branch, x, weight, bias, config.layer_norm_epsilon, branch_bias)


def activation(g: Graph, x: ir.Value, bias: ir.Value, function: str) -> ir.Value:
    """``function(x + bias)`` with the add fused where ONNX Runtime has a kernel for it."""
    if function in TANH_GELU:
        return g.FastGelu(x, bias, name="gelu")
    if function == "gelu":
        return g.BiasGelu(x, bias, name="gelu")
    return g.Relu(g.Add(x, bias, name="add_bias"), name="relu")
