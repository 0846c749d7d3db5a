"""Inputs of every decoder's graph, and what the attention mask tells of lengths.

Names, types and the mask arithmetic are the contract other runtimes load too: one formula serves
left, right and fixed-capacity padding. Letters: see ``layers``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .graph import Graph

# Large enough that exp() of it is 0 in float32, finite so that a fully masked row gives no NaN.
MASKED = np.float32(-1e9)


@dataclass(frozen=True)
class DecoderInputs:
    """Graph inputs of every decoder, and what is computed from the mask once for all layers."""

    input_ids: ir.Value  # (B, S) int64
    position_ids: ir.Value  # (B, S) int64
    num_logits_to_keep: ir.Value  # () int64; 0 keeps all
    ones: ir.Value  # (B,) int64: tokens of the row, past and new, padding not counted
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
        lengths = mask_lengths(g, input_ids, mask)
    return DecoderInputs(input_ids, position_ids, keep, *lengths)


def mask_lengths(
    g: Graph, input_ids: ir.Value, mask: ir.Value
) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value]:
    """Row lengths and the bias that hides left padding, from the attention mask alone.

    Of ``DecoderInputs`` they are ``ones``, ``seqlens_k``, ``total_sequence_length`` and
    ``attention_bias``.

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
    return ones, seqlens_k, total_int32, g.Expand(bias, shape, name="attention_bias")
