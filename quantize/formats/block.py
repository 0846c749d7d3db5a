"""Weights in blocks along K, 4 or 8 bits each, with one float32 scale per block: MatMulNBits.

A weight (N, K) is cut into blocks of ``size`` along K; with zero point z = 2**(bits - 1):

    q = clip(round(w / scale) + z, 0, 2**bits - 1)        w ≈ (q - z) · scale

Bytes: ``data`` uint8 (N, K / size, size · bits / 8), for 4 bits the even element in the low nibble;
``scales`` float32 (N, K / size). The same bytes read as (N, K · bits / 8) are what
GatherBlockQuantized takes, so that a tied embedding and head are stored once.

The scale of a block starts from its extreme value e (the sign of e is put on the side that has
one step more, -2**(bits - 1)) and is chosen from a few fractions of it by least squared error:
clipping the extreme a little makes all other steps finer.

With ``accuracy_level=4`` the kernel rounds the activations as well, symmetric int8 per row and
block (onnxruntime, ``docs/ContribOperators.md``, MatMulNBits); on processors without an int8 kernel
it computes in float32 instead. ``matmul`` and ``lookup`` are the plain NumPy twins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...export.graph import Blob, Graph
from ..weights import Floats, LinearWeight, Measure, PackedParts, Parts

SMALLEST_BLOCK = 16  # the kernel's minimum
# Fractions of the block's extreme that are tried as the largest representable value. More of them,
# or unequal signs, change the KL divergence of the demo model by less than its spread over texts.
FRACTIONS = {4: (1.0, 0.95, 0.9, 0.85, 0.8, 0.75), 8: (1.0,)}
ACCURACY_LEVEL = 4  # int8 activations; every other level is several times slower


@dataclass(frozen=True)
class Block:
    """The format with ``bits`` 4 or 8; ``size`` is a power of two from 16 up."""

    bits: int
    size: int
    stored_by_rows = True  # (N, …): one output feature after another
    has_embedding = True

    @property
    def name(self) -> str:
        """As it stands in reports: int4-block128."""
        return f"int{self.bits}-block{self.size}"

    @property
    def bits_per_weight(self) -> float:
        return self.bits + 32 / self.size

    def fitted(self, weight: LinearWeight) -> Block | str:
        """This format with the largest block up to ``size`` dividing K, or why there is none."""
        size = self.size
        while weight.in_features % size:
            size //= 2
        if size < SMALLEST_BLOCK:
            return f"{weight.in_features} input features are not a multiple of {SMALLEST_BLOCK}"
        return Block(self.bits, size)

    # Numbers ----------------------------------------------------------------------------------

    def pack(self, weight: Floats) -> tuple[NDArray[np.uint8], Floats]:
        """(N, K) float32 -> data (N, K / size, size · bits / 8) and scales (N, K / size)."""
        blocks = weight.reshape(len(weight), -1, self.size)
        scales = self._scales(blocks)
        return self._nibbles(self._round(blocks, scales)), scales

    def _scales(self, blocks: Floats) -> Floats:
        """One scale per block, by least squared error over ``FRACTIONS``; 1 for zeros."""
        low, high = blocks.min(axis=-1), blocks.max(axis=-1)
        extreme = np.where(high > -low, high, low)
        whole = np.where(extreme == 0, np.float32(1), extreme / -(2 ** (self.bits - 1)))
        # A block of subnormals would give a scale whose reciprocal overflows.
        whole = np.where(np.abs(whole) < 1e-30, np.float32(1), whole).astype(np.float32)
        fractions = FRACTIONS[self.bits]
        if len(fractions) == 1:
            return whole
        # The search runs in units of ``whole``, where a block's error is the same up to a factor.
        units = blocks / whole[..., None]
        work = np.empty_like(units)
        best, least = np.ones_like(whole), np.full(whole.shape, np.inf, np.float32)
        for fraction in map(np.float32, fractions):
            np.multiply(units, 1 / fraction, out=work)
            np.rint(work, out=work)
            np.clip(work, -self._zero, self._zero - 1, out=work)
            work *= fraction
            work -= units
            error = np.einsum("nbi,nbi->nb", work, work)
            better = error < least
            best, least = np.where(better, fraction, best), np.where(better, error, least)
        scales: Floats = whole * best
        return scales

    @property
    def _zero(self) -> np.float32:
        return np.float32(2 ** (self.bits - 1))

    def _round(self, rows: Floats, scale: Floats) -> Floats:
        """q as float32."""
        q: Floats = rows * (np.float32(1) / scale)[..., None]
        np.rint(q, out=q)
        q += self._zero
        return np.clip(q, 0, 2**self.bits - 1, out=q)

    def _nibbles(self, q: Floats) -> NDArray[np.uint8]:
        values = q.astype(np.uint8)
        if self.bits == 8:
            return values
        low, high = values[..., ::2], values[..., 1::2]
        return low | (high << np.uint8(4))

    def unpack(self, data: NDArray[np.uint8], scales: Floats) -> Floats:
        """The inverse of ``pack`` up to rounding: (N, K) float32."""
        if self.bits == 4:
            data = np.stack([data & 15, data >> 4], axis=-1).reshape(*scales.shape, self.size)
        values = (data.astype(np.float32) - self._zero) * scales[..., None]
        return values.reshape(len(scales), -1)

    def matmul(self, x: Floats, data: NDArray[np.uint8], scales: Floats) -> Floats:
        """What MatMulNBits computes at accuracy level 4: (…, K) -> (…, N)."""
        blocks = x.reshape(*x.shape[:-1], -1, self.size)
        step = np.abs(blocks).max(axis=-1, keepdims=True) / 127
        rounded = np.rint(np.divide(blocks, step, out=np.zeros_like(blocks), where=step > 0)) * step
        product: Floats = rounded.reshape(x.shape) @ self.unpack(data, scales).T
        return product

    def lookup(self, ids: NDArray[np.int64], data: NDArray[np.uint8], scales: Floats) -> Floats:
        """What GatherBlockQuantized computes: (…) -> (…, K)."""
        return self.unpack(data[ids.reshape(-1)], scales[ids.reshape(-1)]).reshape(*ids.shape, -1)

    # Nodes ------------------------------------------------------------------------------------

    def packed(
        self, weight: LinearWeight, start: int, stop: int, measure: Measure, feedback: object = None
    ) -> Parts:
        """Reads output features ``start`` to ``stop``, packs them, and measures what that loses."""
        n, k = stop - start, weight.in_features
        data = np.empty((n, k // self.size, self.size * self.bits // 8), np.uint8)
        scales = np.empty((n, k // self.size), np.float32)
        for first, rows in weight.runs(start, stop):
            run = slice(first - start, first - start + len(rows))
            data[run], scales[run] = self.pack(rows)
            measure(rows, self.unpack(data[run], scales[run]))
        return {"data": data, "scales": scales}

    def linear(self, g: Graph, x: ir.Value, weight: LinearWeight, parts: PackedParts) -> ir.Value:
        """x (…, K) -> (…, N) in one MatMulNBits node."""
        n, k = weight.out_features, weight.in_features
        data = g.weight(
            f"{weight.name}.data",
            (n, k // self.size, self.size * self.bits // 8),
            parts.blob("data", weight.step),
            np.uint8,
        )
        result: ir.Value = g.MatMulNBits(
            x,
            data,
            self._scales_value(g, weight, parts.blob("scales")),
            K=k,
            N=n,
            bits=self.bits,
            block_size=self.size,
            accuracy_level=ACCURACY_LEVEL,
            name=self.name,
        )
        return result

    def embedding(
        self, g: Graph, ids: ir.Value, weight: LinearWeight, parts: PackedParts
    ) -> ir.Value:
        """ids (…) -> (…, K) in one GatherBlockQuantized node over the same bytes."""
        n, k = weight.out_features, weight.in_features
        rows = g.weight(
            f"{weight.name}.rows",
            (n, k * self.bits // 8),
            parts.blob("data", weight.step),
            np.uint8,
        )
        result: ir.Value = g.GatherBlockQuantized(
            rows,
            ids,
            self._scales_value(g, weight, parts.blob("scales")),
            bits=self.bits,
            block_size=self.size,
            gather_axis=0,
            quantize_axis=1,
            name=self.name,
        )
        return result

    def _scales_value(self, g: Graph, weight: LinearWeight, blob: Blob) -> ir.Value:
        shape = (weight.out_features, weight.in_features // self.size)
        return g.weight(f"{weight.name}.scales", shape, blob)


FORMATS = tuple(Block(bits, size) for bits in (4, 8) for size in (16, 32, 64, 128))
