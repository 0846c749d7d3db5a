"""Weights in 8 bits per output channel, activations in 8 bits per token (W8A8), both symmetric.

Weights (K, N), one scale per output channel:

    scale[n] = max_k |w[k, n]| / 127        q = clip(round(w / scale), -127, 127)

Activations, each row (token) by itself:

    largest = max |x|                       a = round(x / largest · 127) + 128, uint8
    y = ((a - 128) @ q) · (scale / 127) · largest

Bytes: ``data`` int8 (K, N); ``scales`` float32 (N) = scale / 127.

A row's result depends on that row alone, so it is the same for every chunking and batch. It fits
inputs whose elements are alike, as they are once rotated; int8_channel_asym.py is for others.

Without VNNI the AVX2 kernel adds pairs of u8 x s8 products in 16 bits and saturates, silently:
255 · 127 · 2 > 32767. So whoever opens such a graph sets ``session.x64quantprecision`` to 1, by
which ONNX Runtime makes the weights uint8 on those processors, and changes nothing on others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...export.graph import Graph
from ..feedback import Feedback, Grid, panels
from ..weights import Floats, LinearWeight, Measure, PackedParts, Parts

LARGEST = 127  # of weights
ZERO = 128  # of activations


@dataclass(frozen=True)
class Int8Channel:
    """The format; it has no parameters."""

    name = "int8-channel"
    bits_per_weight = 8.0  # plus 32 bits per output channel
    levels = 127  # steps from 0 to the largest activation
    stored_by_rows = False  # (K, N): one output feature is a column
    has_embedding = False
    note = ""

    def fitted(self, weight: LinearWeight) -> Int8Channel:
        """Every matrix fits."""
        return self

    # Numbers ----------------------------------------------------------------------------------

    def pack(
        self, weight: Floats, feedback: Feedback | None = None, first: int = 0
    ) -> tuple[NDArray[np.int8], Floats]:
        """(K, N) float32 -> data int8 (K, N), scales (N,).

        ``first`` is the number of the first of N, for the ``feedback``. Raises NotPositive for one
        that has no factor.
        """
        rows = np.ascontiguousarray(weight.T)
        scale = np.maximum(np.abs(rows).max(axis=1) / np.float32(LARGEST), np.float32(1e-30))
        grid = Grid(scale[:, None], np.zeros_like(scale[:, None]), rows.shape[1], -LARGEST, LARGEST)
        codes = grid.codes(rows) if feedback is None else feedback.round(rows, [grid], first)[0]
        return codes.T.astype(np.int8), scale / np.float32(self.levels)

    def unpack(self, data: NDArray[np.int8], scales: Floats) -> Floats:
        """The inverse of ``pack`` up to rounding: (K, N) float32."""
        weights: Floats = data * (scales * np.float32(self.levels))
        return weights

    def matmul(self, x: Floats, data: NDArray[np.int8], scales: Floats) -> Floats:
        """What the nodes of ``linear`` compute: (…, K) -> (…, N)."""
        largest = np.abs(x).max(axis=-1, keepdims=True)
        unit = np.divide(x, largest, out=np.zeros_like(x), where=largest > 0)
        rounded = np.rint(unit * np.float32(self.levels))
        product: Floats = (rounded @ data.astype(np.float32)) * scales * largest
        return product

    # Nodes ------------------------------------------------------------------------------------

    def packed(
        self,
        weight: LinearWeight,
        start: int,
        stop: int,
        measure: Measure,
        feedback: Feedback | None = None,
    ) -> Parts:
        """Reads output features ``start`` to ``stop``, packs them, and measures what that loses.

        Raises NotPositive for a ``feedback`` that has no factor.
        """
        data = np.empty((weight.in_features, stop - start), np.int8)
        scales = np.empty(stop - start, np.float32)
        runs = weight.runs(start, stop)
        for first, rows in runs if feedback is None else panels(runs):
            run = slice(first - start, first - start + len(rows))
            data[:, run], scales[run] = self.pack(rows.T, feedback, first)
            measure(rows, self.unpack(data[:, run], scales[run]).T)
        return {"data": data, "scales": scales}

    def linear(self, g: Graph, x: ir.Value, weight: LinearWeight, parts: PackedParts) -> ir.Value:
        """x (…, K) -> (…, N): quantize the rows, multiply integers, undo both."""
        largest = g.ReduceMax(g.Abs(x, name="abs"), g.int64s(-1), keepdims=1, name="row_max")
        # A row of zeros gives 0 / 0 and thus some uint8, which its largest of 0 then cancels.
        unit = g.Div(x, largest, name="unit")  # -1 to 1
        product = self._product(g, unit, ZERO, weight, parts)
        result: ir.Value = g.Mul(product, largest, name="rescale")
        return result

    def _product(
        self, g: Graph, unit: ir.Value, zero: int, weight: LinearWeight, parts: PackedParts
    ) -> ir.Value:
        """Units (…, K) in ``levels`` steps, times the weight: (…, N)."""
        k, n = weight.in_features, weight.out_features
        data = g.weight(f"{weight.name}.data", (k, n), parts.blob("data"), np.int8)
        scales = g.weight(f"{weight.name}.scales", (n,), parts.blob("scales"))
        zero_point = g.constant(np.uint8(zero), f"uint8.{zero}")
        step = g.constant(np.float32(1) / np.float32(self.levels), f"step.{self.levels}")
        rounded = g.QuantizeLinear(unit, step, zero_point, name="quantize")
        result: ir.Value = g.MatMulIntegerToFloat(
            rounded,
            data,
            g.constant(np.float32(1), "one_float"),
            scales,
            zero_point,
            name=self.name,
        )
        return result


FORMATS = (Int8Channel(),)
