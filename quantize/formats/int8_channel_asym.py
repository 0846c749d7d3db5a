"""As int8_channel.py, with each row of activations between its own minimum and maximum.

    range = max(x) - min(x)                 a = round((x - min(x)) / range · 255), uint8
    y = (a @ q) · (scale / 255) · range  +  min(x) · Σ_k q[k, :] · scale

Bytes: ``data`` int8 (K, N); ``scales`` float32 (N) = scale / 255; ``sums`` float32 (N), which is
Σ_k q · scale.

It takes three nodes more, over inputs and outputs, and loses less where inputs are not rotated:
GELU's output and the outliers after a layer norm are lopsided (benchmarks/NOTES.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...export.graph import Graph
from ..feedback import Feedback
from ..weights import Floats, LinearWeight, Measure, PackedParts, Parts
from .int8_channel import Int8Channel


@dataclass(frozen=True)
class Int8ChannelAsym(Int8Channel):
    """The format; it has no parameters."""

    name = "int8-channel-asym"
    bits_per_weight = 8.0  # plus 64 bits per output channel
    levels = 255  # steps from the smallest to the largest activation

    def sums(self, data: NDArray[np.int8], scales: Floats) -> Floats:
        """What a row of ones gives: (N,)."""
        sums: Floats = data.sum(axis=0, dtype=np.int64).astype(np.float32) * scales
        return sums * np.float32(255)

    def matmul(self, x: Floats, data: NDArray[np.int8], scales: Floats) -> Floats:
        """What the nodes of ``linear`` compute: (…, K) -> (…, N)."""
        low = x.min(axis=-1, keepdims=True)
        spread = (x - low).max(axis=-1, keepdims=True)
        unit = np.divide(x - low, spread, out=np.zeros_like(x), where=spread > 0)
        rounded = np.rint(unit * np.float32(self.levels))
        product: Floats = (rounded @ data.astype(np.float32)) * scales * spread
        product += low * self.sums(data, scales)
        return product

    def packed(
        self,
        weight: LinearWeight,
        start: int,
        stop: int,
        measure: Measure,
        feedback: Feedback | None = None,
    ) -> Parts:
        """As of ``Int8Channel``, and the sums."""
        parts = super().packed(weight, start, stop, measure, feedback)
        return parts | {"sums": self.sums(parts["data"], parts["scales"])}

    def linear(self, g: Graph, x: ir.Value, weight: LinearWeight, parts: PackedParts) -> ir.Value:
        """x (…, K) -> (…, N): quantize the rows, multiply integers, undo both."""
        low = g.ReduceMin(x, g.int64s(-1), keepdims=1, name="row_min")  # (…, 1)
        above = g.Sub(x, low, name="above")
        spread = g.ReduceMax(above, g.int64s(-1), keepdims=1, name="range")
        # A row of equal values gives 0 / 0 and thus some uint8, which its range of 0 then cancels.
        unit = g.Div(above, spread, name="unit")  # 0 to 1
        product = self._product(g, unit, 0, weight, parts)
        sums = g.weight(f"{weight.name}.sums", (weight.out_features,), parts.blob("sums"))
        result: ir.Value = g.Add(
            g.Mul(product, spread, name="rescale"), g.Mul(low, sums, name="shift"), name="result"
        )
        return result


FORMATS = (Int8ChannelAsym(),)
