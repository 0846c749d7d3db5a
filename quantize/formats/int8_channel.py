"""Weights in 7 bits per output channel, activations in 8 bits per token (W8A8).

Weights (K, N), symmetric, one scale per output channel, kept within ±63:

    scale[n] = max_k |w[k, n]| / 63        q = clip(round(w / scale), -63, 63)

Activations, each row (token) by itself, between its own minimum and maximum:

    range = max(x) - min(x)                 a = round((x - min(x)) / range · 255), uint8
    y = (a @ q) · (scale / 255) · range  +  min(x) · Σ_k q[k, :] · scale

Bytes: ``data`` int8 (K, N); ``scales`` float32 (N) = scale / 255; ``sums`` float32 (N), which is
Σ_k q · scale.

A row's result depends on that row alone, so it is the same for every chunking and batch. Choices:
- ±63, not ±127: without VNNI the AVX2 kernel adds pairs of u8 × s8 products in 16 bits and
  saturates, silently: 255 · 127 · 2 > 32767. 255 · 63 · 2 fits, so every processor agrees.
- The row's minimum is subtracted because GELU's output and the outliers after a layer norm are
  lopsided; the activations' rounding is most of what this format loses (benchmarks/NOTES.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...export.graph import Graph
from ..weights import Floats, LinearWeight, Measure, PackedParts, Parts

LARGEST = 63
LEVELS = np.float32(255)


@dataclass(frozen=True)
class Int8Channel:
    """The format; it has no parameters."""

    name: str = "int8-channel"
    bits_per_weight: float = 8.0  # plus 64 bits per output channel
    stored_by_rows: bool = False  # (K, N): one output feature is a column
    has_embedding: bool = False

    def fitted(self, weight: LinearWeight) -> Int8Channel | str:
        """Every matrix fits."""
        return self

    # Numbers ----------------------------------------------------------------------------------

    def pack(self, weight: Floats) -> tuple[NDArray[np.int8], Floats, Floats]:
        """(K, N) float32 -> data int8 (K, N), scales (N,), sums (N,)."""
        largest = np.abs(weight).max(axis=0)
        scale = np.where(largest > 0, largest / LARGEST, 1).astype(np.float32)
        scale = np.maximum(scale, np.float32(1e-30))
        data = np.clip(np.rint(weight / scale), -LARGEST, LARGEST).astype(np.int8)
        sums = data.sum(axis=0, dtype=np.int64).astype(np.float32) * scale
        return data, scale / LEVELS, sums

    def unpack(self, data: NDArray[np.int8], scales: Floats) -> Floats:
        """The inverse of ``pack`` up to rounding: (K, N) float32."""
        weights: Floats = data * (scales * LEVELS)
        return weights

    def matmul(self, x: Floats, data: NDArray[np.int8], scales: Floats, sums: Floats) -> Floats:
        """What the nodes of ``linear`` compute: (…, K) -> (…, N)."""
        low = x.min(axis=-1, keepdims=True)
        spread = (x - low).max(axis=-1, keepdims=True)
        unit = np.divide(x - low, spread, out=np.zeros_like(x), where=spread > 0)
        rounded = np.rint(unit * LEVELS)
        product: Floats = (rounded @ data.astype(np.float32)) * scales * spread + low * sums
        return product

    # Nodes ------------------------------------------------------------------------------------

    def packed(
        self, weight: LinearWeight, start: int, stop: int, measure: Measure, feedback: object = None
    ) -> Parts:
        """Reads output features ``start`` to ``stop``, packs them, and measures what that loses."""
        n = stop - start
        data = np.empty((weight.in_features, n), np.int8)
        scales, sums = np.empty(n, np.float32), np.empty(n, np.float32)
        for first, rows in weight.runs(start, stop):
            run = slice(first - start, first - start + len(rows))
            data[:, run], scales[run], sums[run] = self.pack(rows.T)
            measure(rows, self.unpack(data[:, run], scales[run]).T)
        return {"data": data, "scales": scales, "sums": sums}

    def linear(self, g: Graph, x: ir.Value, weight: LinearWeight, parts: PackedParts) -> ir.Value:
        """x (…, K) -> (…, N): quantize the rows, multiply integers, undo both."""
        k, n = weight.in_features, weight.out_features
        data = g.weight(f"{weight.name}.data", (k, n), parts.blob("data"), np.int8)
        scales = g.weight(f"{weight.name}.scales", (n,), parts.blob("scales"))
        sums = g.weight(f"{weight.name}.sums", (n,), parts.blob("sums"))
        zero = g.constant(np.uint8(0), "uint8.0")

        low = g.ReduceMin(x, g.int64s(-1), keepdims=1, name="row_min")  # (…, 1)
        above = g.Sub(x, low, name="above")
        spread = g.ReduceMax(above, g.int64s(-1), keepdims=1, name="range")
        # A row of equal values gives 0 / 0 and thus some uint8, which its range of 0 then cancels.
        unit = g.Div(above, spread, name="unit")  # 0 to 1
        step = g.constant(np.float32(1) / LEVELS, "uint8.step")
        rounded = g.QuantizeLinear(unit, step, zero, name="quantize")
        product = g.MatMulIntegerToFloat(
            rounded, data, g.constant(np.float32(1), "one_float"), scales, zero, name=self.name
        )
        result: ir.Value = g.Add(
            g.Mul(product, spread, name="rescale"), g.Mul(low, sums, name="shift"), name="result"
        )
        return result


FORMATS = (Int8Channel(),)
