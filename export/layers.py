"""Layers as functions of values: what every architecture's forward pass is written with.

Letters: B batch, S new tokens, T total tokens (past and new), H heads, K key/value heads, E head
size, D width, V vocabulary. Names, types and the mask arithmetic of inputs and outputs are the
contract other runtimes load too: one formula serves left, right and fixed-capacity padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx_ir as ir

from .folder import DecoderShape
from .graph import Dimension, Graph
from .rope import Rotary

# Large enough that exp() of it is 0 in float32, finite so that a fully masked row gives no NaN.
MASKED = np.float32(-1e9)

# The tanh approximation has several names in transformers.
TANH_GELU = frozenset({"gelu_new", "gelu_fast", "gelu_pytorch_tanh"})
ACTIVATIONS = frozenset({*TANH_GELU, "gelu", "relu", "silu", "swish"})


@dataclass(frozen=True)
class DecoderInputs:
    """Graph inputs of every decoder, and what is computed from the mask once for all layers."""

    input_ids: ir.Value  # (B, S) int64
    position_ids: ir.Value  # (B, S) int64
    num_logits_to_keep: ir.Value  # () int64; 0 keeps all
    seqlens_k: ir.Value  # (B,) int32: total tokens of the row, minus one
    total_sequence_length: ir.Value  # () int32: T
    attention_bias: ir.Value  # (B, 1, S, T) float32: MASKED on left padding, else 0


def decoder_inputs(g: Graph) -> DecoderInputs:
    """Declares the inputs that do not depend on the architecture, and reads the mask."""
    input_ids = g.input("input_ids", np.int64, ["batch_size", "sequence_length"])
    mask = g.input("attention_mask", np.int64, ["batch_size", "total_sequence_length"])
    position_ids = g.input("position_ids", np.int64, ["batch_size", "sequence_length"])
    keep = g.input("num_logits_to_keep", np.int64, [])
    g.default(keep, np.array(0, np.int64))
    with g.scope("mask"):
        seqlens_k, total, bias = mask_lengths(g, input_ids, mask)
    return DecoderInputs(input_ids, position_ids, keep, seqlens_k, total, bias)


def mask_lengths(
    g: Graph, input_ids: ir.Value, mask: ir.Value
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Row lengths and the bias that hides left padding, from the attention mask alone.

    ``pad = (last + 1 - ones) * (1 - mask[:, 0])`` counts the columns of left padding; holes that
    some runtimes leave in a right-padded row, and a fixed-capacity mask that ends in zeros, give 0.
    """
    zero, one = g.constant(np.int64(0), "zero"), g.constant(np.int64(1), "one")
    total = g.Shape(mask, start=1, end=2, name="total")  # (1,)
    total_scalar = g.Squeeze(total, name="total_scalar")
    columns = g.Range(zero, total_scalar, one, name="columns")  # (T,)
    ones = g.ReduceSum(mask, g.int64s(1), keepdims=0, name="ones")  # (B,)
    last = g.ReduceMax(g.Mul(mask, columns), g.int64s(1), keepdims=0, name="last")  # (B,)
    first = g.Squeeze(g.Slice(mask, g.int64s(0), g.int64s(1), g.int64s(1)), g.int64s(1))
    pad = g.Mul(g.Sub(g.Add(last, one), ones), g.Sub(one, first), name="pad")  # (B,)

    seqlens_k = g.Cast(g.Sub(g.Add(ones, pad), one), to=ir.DataType.INT32, name="seqlens_k")
    total_int32 = g.Cast(total_scalar, to=ir.DataType.INT32, name="total_sequence_length")

    hidden = g.Less(columns, g.Unsqueeze(pad, g.int64s(1, 2, 3)))  # (B, 1, 1, T)
    bias = g.Mul(g.Cast(hidden, to=ir.DataType.FLOAT), g.constant(MASKED, "masked"))
    rows = g.Concat(g.Shape(input_ids), total, axis=0)  # B, S, T
    shape = g.Concat(
        g.Slice(rows, g.int64s(0), g.int64s(1)),
        g.int64s(1),
        g.Slice(rows, g.int64s(1), g.int64s(3)),
        axis=0,
    )
    return seqlens_k, total_int32, g.Expand(bias, shape, name="attention_bias")


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
) -> ir.Value:
    """Causal attention over the cache: q (B, S, H·E), k and v (B, S, K·E) -> (B, S, H·E).

    ``qkv`` is the three, or one value that packs them along the last axis. ``rotary`` turns q and
    k by their positions; ``window`` lets a token see that many, itself included.

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
        query, key, value = qkv
        qkv = (
            rotary.apply(g, query, inputs.position_ids, num_heads, "rotate_q"),
            rotary.apply(g, key, inputs.position_ids, kv_heads, "rotate_k"),
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


def activation(g: Graph, x: ir.Value, function: str) -> ir.Value:
    """The activation that transformers calls ``function``, one of ``ACTIVATIONS``."""
    if function in ("silu", "swish"):
        return g.QuickGelu(x, alpha=1.0, name="silu")
    if function in TANH_GELU:
        return g.FastGelu(x, name="gelu")
    if function == "gelu":
        return g.Gelu(x, name="gelu")
    return g.Relu(x, name="relu")


def last_rows(g: Graph, x: ir.Value, count: ir.Value) -> ir.Value:
    """Keeps the last ``count`` rows of (B, S, D) along S; a count of 0 keeps all (-0 is 0)."""
    start = g.Reshape(g.Neg(count), g.int64s(1))
    end = g.int64s(np.iinfo(np.int64).max)
    return g.Slice(x, start, end, g.int64s(1), name="last_rows")
