"""Rotary position embedding in a graph: where cosines and sines come from, and what they turn.

Of a short context they are two tables, a row for each position, that the attention kernel reads by
itself. Of a longer one, and where the angles depend on how long the text is, they are computed: in
every step for its new tokens alone, once for all layers.

    position_ids (B, S) -> Cast -> Mul frequencies -> Cos, Sin (B, S, R / 2) [-> Mul factor]

Of ``dynamic`` and ``longrope``, the frequencies are those of a text of L tokens,

    L = max(position + 1, text_length), or all tokens of the row so far where text_length is 0

for every token by itself. A runtime that feeds a long prompt in parts gives its length as
``text_length``, so that the parts do not show. What a cache holds stays as it was rotated when the
text grows beyond the original context, as in transformers.

Letters: see ``layers``; R rotated numbers of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .decoder_inputs import DecoderInputs
from .graph import Graph, Rows
from .rope import Floats, Growth, Rope

# Bytes of the largest two tables that are stored.
LARGEST_TABLES = 4 << 20
TEXT_LENGTH = "text_length"
# In the metadata of such a graph: tokens up to which all texts are rotated alike.
ROTATED_ALIKE = "pocketlm.rotated_alike"


@dataclass(frozen=True)
class Rotary:
    """Cosines and sines: tables by position, (context length, R / 2), or of the new tokens."""

    cosines: ir.Value
    sines: ir.Value
    size: int  # R
    position_ids: ir.Value  # (B, S) int64
    stored: bool

    @property
    def fits_attention(self) -> bool:
        """Whether GroupQueryAttention can rotate by itself: its kernel wants R in sixteens."""
        return self.stored and self.size % 16 == 0

    def apply(self, g: Graph, x: ir.Value, num_heads: int, name: str) -> ir.Value:
        """Rotates the heads of (B, S, num_heads·E), in a node of its own."""
        given = (self.cosines, self.sines)
        return g.RotaryEmbedding(
            *((x, self.position_ids, *given) if self.stored else (x, *given)),
            num_heads=num_heads,
            rotary_embedding_dim=self.size,
            name=name,
            domain="com.microsoft" if self.stored else "",
        )


def rotary(g: Graph, rope: Rope, name: str, context_length: int, inputs: DecoderInputs) -> Rotary:
    """The rotation of texts of up to ``context_length`` tokens."""
    stored = rope.beyond is None and 4 * context_length * rope.size <= LARGEST_TABLES
    if stored:
        found = _tables(g, rope, name, context_length)
    else:
        found = _angles(g, rope, name, inputs)
    return Rotary(*found, rope.size, inputs.position_ids, stored)


def _tables(g: Graph, rope: Rope, name: str, context_length: int) -> tuple[ir.Value, ir.Value]:
    """Of every position, computed when they are written."""
    shape = (context_length, rope.size // 2)
    return (
        g.table(f"{name}.cos", shape, _rows(rope, np.cos)),
        g.table(f"{name}.sin", shape, _rows(rope, np.sin)),
    )


def _rows(rope: Rope, function: Callable[[Floats], Floats]) -> Rows:
    def rows(start: int, stop: int) -> Floats:
        # The product is rounded to float32 because the models were trained with it so.
        angles = np.arange(start, stop, dtype=np.float32)[:, None] * rope.frequencies
        found: Floats = function(angles)
        return found if rope.factor == 1 else found * np.float32(rope.factor)

    return rows


def _angles(g: Graph, rope: Rope, name: str, inputs: DecoderInputs) -> tuple[ir.Value, ir.Value]:
    """Of the new tokens."""
    with g.scope(name):
        columns = g.Unsqueeze(inputs.position_ids, g.int64s(-1), name="columns")  # (B, S, 1)
        positions = g.Cast(columns, to=ir.DataType.FLOAT, name="positions")
        frequencies = g.constant(rope.frequencies, f"{name}.plain")  # (R / 2,)
        if rope.beyond is not None:
            length = _text_length(g, rope, columns, inputs)
            frequencies = _of_length(g, rope, name, frequencies, length)
        angles = g.Mul(positions, frequencies, name="angles")  # (B, S, R / 2)
        cosines, sines = g.Cos(angles, name="cos"), g.Sin(angles, name="sin")
        if rope.factor == 1:
            return cosines, sines
        factor = g.constant(np.float32(rope.factor), f"{name}.factor")
        return g.Mul(cosines, factor, name="scaled_cos"), g.Mul(sines, factor, name="scaled_sin")


def _text_length(g: Graph, rope: Rope, columns: ir.Value, inputs: DecoderInputs) -> ir.Value:
    """L of every new token at the positions ``columns``: (B, S, 1) int64."""
    given = next((value for value in g.ir.inputs if value.name == TEXT_LENGTH), None)
    if given is None:  # another kind of layer may have asked
        given = g.input(TEXT_LENGTH, np.int64, [])
        g.default(given, np.array(0, np.int64))
        g.ir.metadata_props[ROTATED_ALIKE] = str(rope.original)
    one = g.constant(np.int64(1), "one")
    unknown = g.Cast(g.Less(given, one), to=ir.DataType.INT64, name="unknown")  # 1 or 0
    so_far = g.Unsqueeze(inputs.ones, g.int64s(1, 2), name="so_far")  # (B, 1, 1)
    return g.Max(g.Add(columns, one), given, g.Mul(so_far, unknown), name="length")


def _of_length(g: Graph, rope: Rope, name: str, short: ir.Value, length: ir.Value) -> ir.Value:
    """The frequencies (B, S, R / 2) of texts as long as ``length`` (B, S, 1) says."""
    original = g.constant(np.int64(rope.original or 0), f"{name}.original")
    if isinstance(rope.beyond, Growth):
        excess = g.Sub(g.Max(length, original), original, name="excess")
        excess = g.Cast(excess, to=ir.DataType.FLOAT, name="excess_float")
        share = np.float32(rope.beyond.factor / (rope.original or 1))
        one = g.constant(np.float32(1), "one_float")
        growth = g.Add(g.Mul(excess, g.constant(share, f"{name}.share")), one, name="growth")
        exponents = g.constant(rope.beyond.exponents, f"{name}.exponents")
        return g.Mul(short, g.Pow(growth, exponents, name="grown"), name="frequencies")
    assert rope.beyond is not None
    longer = g.constant(rope.beyond, f"{name}.beyond")
    return g.Where(g.Less(original, length), longer, short, name="frequencies")
