"""Layers as functions of values: what every architecture's forward pass is written with.

Letters: B batch, S new tokens, T total tokens (past and new), H heads, K key/value heads, E head
size, D width, V vocabulary. Names and types of inputs and outputs are the contract other runtimes
load too.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import onnx_ir as ir

from .decoder_inputs import DecoderInputs
from .folder import DecoderShape
from .graph import Dimension, Graph
from .rotary import Rotary

# The tanh approximation has several names in transformers.
TANH_GELU = frozenset({"gelu_new", "gelu_fast", "gelu_pytorch_tanh"})
ACTIVATIONS = frozenset({*TANH_GELU, "gelu", "relu", "silu", "swish"})


class Attend(Protocol):
    """``attention`` of one layer, with all but queries, keys and values given to it."""

    def __call__(self, *qkv: ir.Value) -> ir.Value: ...


def attention(
    g: Graph,
    *qkv: ir.Value,
    inputs: DecoderInputs,
    layer: int,
    shape: DecoderShape,
    scale: float,
    rotary: Rotary | None,
    window: int | None,
    softcap: float | None,
) -> ir.Value:
    """Causal attention over the cache: q (B, S, H·E), k and v (B, S, K·E) -> (B, S, H·E).

    ``qkv`` is the three, or one value that packs them along the last axis. ``rotary`` turns q and
    k by their positions; ``window`` lets a token see that many, itself included; ``softcap`` bends
    every product s of a query and a key to softcap · tanh(s / softcap).

    Declares the layer's ``past_key_values`` inputs and ``present`` outputs. A caller that binds
    one buffer as both has the new rows written in place.
    """
    num_heads, kv_heads, head_size = shape.num_heads, shape.kv_heads, shape.head_size
    dims: list[Dimension] = ["batch_size", kv_heads, "past_sequence_length", head_size]
    past = [
        g.input(f"past_key_values.{layer}.{kind}", np.float32, dims) for kind in ("key", "value")
    ]
    tables: tuple[ir.Value | None, ...] = (None, None)
    if rotary is not None and rotary.fits_attention:
        tables = (rotary.cosines, rotary.sines)
    elif rotary is not None:
        if len(qkv) == 1:
            sizes = g.int64s(*(count * head_size for count in (num_heads, kv_heads, kv_heads)))
            qkv = g.Split(qkv[0], sizes, outputs=3, axis=-1, name="qkv")
        query, key, value = qkv
        qkv = (
            rotary.apply(g, query, num_heads, "rotate_q"),
            rotary.apply(g, key, kv_heads, "rotate_k"),
            value,
        )
    attended, *present = g.GroupQueryAttention(
        *(qkv if len(qkv) == 3 else (*qkv, None, None)),
        *past,
        inputs.seqlens_k,
        inputs.total_sequence_length,
        *tables,
        None,
        inputs.attention_bias,
        outputs=3,
        name="attention",
        num_heads=num_heads,
        kv_num_heads=kv_heads,
        scale=scale,
        **({"do_rotary": 1} if tables[0] is not None else {}),
        **({"local_window_size": window} if window is not None else {}),
        **({"softcap": softcap} if softcap is not None else {}),
    )
    dims = ["batch_size", kv_heads, "total_sequence_length", head_size]
    for output, kind in zip(present, ("key", "value"), strict=True):
        g.output(output, f"present.{layer}.{kind}", np.float32, dims)
    return attended


def embedding(g: Graph, ids: ir.Value, name: str, shape: tuple[int, int]) -> ir.Value:
    """Rows of the weight ``name``, (V, D), by token id or position: (B, S) -> (B, S, D)."""
    return g.Gather(g.parameter(f"{name}.weight", shape), ids, name=name)


def product(g: Graph, x: ir.Value, name: str, shape: tuple[int, int]) -> ir.Value:
    """x (…, in) times the weight ``name``, stored (out, in): (…, out)."""
    return g.FusedMatMul(x, g.parameter(f"{name}.weight", shape), transB=1, name=name)


def linear(
    g: Graph, x: ir.Value, name: str, shape: tuple[int, int], *, bias: bool = False
) -> ir.Value:
    """``product``, plus the bias ``name`` (out,) if it has one."""
    outputs = product(g, x, name, shape)
    return add_bias(g, outputs, name, shape[0]) if bias else outputs


def add_bias(g: Graph, x: ir.Value, name: str, size: int) -> ir.Value:
    """x (…, size) plus the bias ``name``."""
    return g.Add(x, g.parameter(f"{name}.bias", (size,)), name=f"{name}.add_bias")


def rms_norm(g: Graph, x: ir.Value, name: str, size: int, epsilon: float) -> ir.Value:
    """x / sqrt(mean(x²) + epsilon) · weight over the last axis (Zhang and Sennrich 2019)."""
    weight = g.parameter(f"{name}.weight", (size,))
    return g.RMSNormalization(x, weight, axis=-1, epsilon=epsilon, name=name)


def head_rms_norm(g: Graph, x: ir.Value, name: str, head_size: int, epsilon: float) -> ir.Value:
    """``rms_norm`` of each head by itself: (B, S, heads·E), weight (E,)."""
    heads = g.Reshape(x, g.int64s(0, 0, -1, head_size), name=f"{name}.split")  # -> (B, S, heads, E)
    normed = rms_norm(g, heads, name, head_size, epsilon)
    return g.Reshape(normed, g.int64s(0, 0, -1), name=f"{name}.join")


def head_layer_norms(
    g: Graph, x: ir.Value, name: str, shape: tuple[int, int], epsilon: float
) -> ir.Value:
    """(B, S, H·E), each head normed without a bias, by a weight (E,) of its own; ``shape`` (H, E).

    ONNX Runtime 1.32 crashes on a LayerNormalization without a bias, so zeros are one.
    """
    count, size = shape
    heads = g.Reshape(x, g.int64s(0, 0, -1, size), name=f"{name}.split")  # -> (B, S, H, E)
    ones = g.constant(np.ones(size, np.float32), f"ones.{size}")
    zeros = g.constant(np.zeros(size, np.float32), f"zeros.{size}")
    normed = g.LayerNormalization(heads, ones, zeros, axis=-1, epsilon=epsilon, name=name)
    joined = g.Reshape(normed, g.int64s(0, 0, -1), name=f"{name}.join")
    weights = [g.parameter(f"{name}.norms.{i}.weight", (size,)) for i in range(count)]
    weight = g.Concat(*weights, axis=0, name=f"{name}.weight")  # (H·E,)
    return g.Mul(joined, weight, name=f"{name}.weighted")


def activated_linear(
    g: Graph, x: ir.Value, name: str, shape: tuple[int, int], function: str, *, bias: bool = True
) -> ir.Value:
    """The activation ``function`` of ``linear``: (…, in) -> (…, out)."""
    outputs = product(g, x, name, shape)
    if not bias:
        return activation(g, outputs, function)
    return biased_activation(g, outputs, g.parameter(f"{name}.bias", shape[:1]), function)


def activation(g: Graph, x: ir.Value, function: str) -> ir.Value:
    """The activation that transformers calls ``function``, one of ``ACTIVATIONS``."""
    if function in ("silu", "swish"):
        return g.QuickGelu(x, alpha=1.0, name="silu")
    if function in TANH_GELU:
        return g.FastGelu(x, name="gelu")
    if function == "gelu":
        return g.Gelu(x, name="gelu")
    return g.Relu(x, name="relu")


def biased_activation(g: Graph, x: ir.Value, bias: ir.Value, function: str) -> ir.Value:
    """That of x + bias, with the add fused where ONNX Runtime has a kernel for it."""
    if function in TANH_GELU:
        return g.FastGelu(x, bias, name="gelu")
    if function == "gelu":
        return g.BiasGelu(x, bias, name="gelu")
    return activation(g, g.Add(x, bias, name="add_bias"), function)


def last_rows(g: Graph, x: ir.Value, count: ir.Value) -> ir.Value:
    """Keeps the last ``count`` rows of (B, S, D) along S; a count of 0 keeps all (-0 is 0)."""
    start = g.Reshape(g.Neg(count), g.int64s(1))
    end = g.int64s(np.iinfo(np.int64).max)
    return g.Slice(x, start, end, g.int64s(1), name="last_rows")
