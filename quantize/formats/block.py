"""Weights in blocks along K, 4 or 8 bits each, with one float32 scale per block: MatMulNBits.

A weight (N, K) is cut into kb = ⌈K / size⌉ blocks along K, the last of which may be filled up. Zero
point z = 2**(bits - 1), or where the format has ``zero_points`` one for each block:

    q = clip(round(w / scale) + z, 0, 2**bits - 1)        w ≈ (q - z) · scale

Bytes: ``data`` uint8 (N, kb, size · bits / 8), for 4 bits the even element in the low nibble,
filled up with z; ``scales`` float32 (N, kb); ``zeros`` uint8 (N, ⌈kb · bits / 8⌉), z packed as the
data is, filled up with 0. The same data read as (N, kb · size · bits / 8) is what
GatherBlockQuantized takes, so that a tied embedding and head are stored once.

Without zero points the scale of a block starts from its extreme value e (the sign of e is put on
the side that has one step more, -2**(bits - 1)), with them from the range of its values and 0. Both
are chosen from a few fractions of that by least squared error, or with ``Feedback`` by what the
products lose: clipping the extreme a little makes all other steps finer.

With ``accuracy_level=4`` the kernel rounds the activations as well, symmetric int8 per row and
block (onnxruntime, ``docs/ContribOperators.md``, MatMulNBits); on processors without an int8 kernel
it computes in float32 instead. ``matmul`` and ``lookup`` are the plain NumPy twins.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...export.graph import Graph
from ..feedback import Feedback, Grid, panels
from ..weights import Floats, LinearWeight, Measure, PackedParts, Parts

Bytes = NDArray[np.uint8]

SMALLEST_BLOCK = 16  # the kernel's minimum
# Fractions of the block's extreme that are tried as the largest representable value. More of them,
# or unequal signs, change the KL divergence of the demo model by less than its spread over texts.
FRACTIONS = {4: (1.0, 0.95, 0.9, 0.85, 0.8, 0.75), 8: (1.0,)}
# With feedback, beside what is best without: nine from 1.1 to 0.7 lose as much as these.
FEEDBACK_FRACTIONS = {4: (1.05, 0.98, 0.91, 0.84), 8: ()}
ACCURACY_LEVEL = 4  # int8 activations; every other level is several times slower


@dataclass(frozen=True)
class Block:
    """The format with ``bits`` 4 or 8; ``size`` is a power of two from 16 up."""

    bits: int
    size: int
    zero_points: bool = False
    note: str = field(default="", compare=False)  # why it is not the size that was asked for
    stored_by_rows = True  # (N, …): one output feature after another
    has_embedding = True

    @property
    def name(self) -> str:
        """As it stands in plans and reports: int4-block128, int4-block64-zp."""
        return f"int{self.bits}-block{self.size}" + ("-zp" if self.zero_points else "")

    @property
    def bits_per_weight(self) -> float:
        """Of whole blocks."""
        return self.bits + (32 + self.zero_points * self.bits) / self.size

    def bits_of(self, in_features: int) -> float:
        """Bits per weight of rows of ``in_features``, with what fills up their last block."""
        return self.bits_per_weight * self._blocks(in_features) * self.size / in_features

    def fitted(self, weight: LinearWeight) -> Block:
        """The size up to this one that takes the fewest bits; with a ``note`` if it is another.

        A last block that is filled up costs bits, smaller blocks that divide cost scales: of 576
        input features blocks of 64 take less than blocks of 128, of 1600 they take more.
        """
        k = weight.in_features
        sizes = [1 << power for power in range(4, self.size.bit_length())]
        best = min((replace(self, size=size) for size in sizes), key=lambda each: each.bits_of(k))
        if best.size == self.size:
            return self
        why = (
            f"{k} input features take {best.bits_of(k):.2f} bits per weight in blocks of "
            f"{best.size}, {self.bits_of(k):.2f} in blocks of {self.size}"
        )
        return replace(best, note=why)

    def _blocks(self, in_features: int) -> int:
        return -(-in_features // self.size)

    # Numbers ----------------------------------------------------------------------------------

    def pack(
        self, weight: Floats, feedback: Feedback | None = None, first: int = 0
    ) -> tuple[NDArray[Any], ...]:
        """(N, K) float32 -> data (N, kb, …), scales (N, kb) and, where it has them, zeros (N, …).

        ``first`` is the number of the first of N, for the ``feedback``. Raises NotPositive for one
        that has no factor.
        """
        blocks = self._whole(weight)
        nearest = self._nearest(blocks)
        if feedback is None:
            codes, grid = self._round(blocks, nearest), nearest
        else:
            tried = [nearest, *self._grids(blocks, FEEDBACK_FRACTIONS[self.bits])]
            found, grid = feedback.round(weight, tried, first)
            codes = np.repeat(grid.zeros, self.size, axis=1)
            codes[:, : weight.shape[1]] = found
            codes = codes.reshape(blocks.shape)
        data, scales = self._bytes(codes), np.ascontiguousarray(grid.scales)
        return (data, scales, self._bytes(grid.zeros)) if self.zero_points else (data, scales)

    def _whole(self, rows: Floats) -> Floats:
        """(…, K) in blocks, (…, kb, size), the last filled up with zeros."""
        if rest := rows.shape[-1] % self.size:
            rows = np.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, self.size - rest)])
        return rows.reshape(*rows.shape[:-1], -1, self.size)

    def _grids(self, blocks: Floats, fractions: tuple[float, ...]) -> Iterator[Grid]:
        """Scales and zeros that hold ``fractions`` of what is in each block."""
        low, high = blocks.min(axis=-1), blocks.max(axis=-1)
        if self.zero_points:
            low, high = np.minimum(low, 0), np.maximum(high, 0)
            whole = (high - low) / self._largest
        else:
            whole = np.where(high > -low, high, low) / -self._zero
        # A block of subnormals would give a scale whose reciprocal overflows.
        whole = np.where(np.abs(whole) < 1e-30, np.float32(1), whole)
        for fraction in map(np.float32, fractions):
            scales = whole * fraction
            zeros: Floats = np.full_like(scales, self._zero)
            if self.zero_points:  # what is cut off is cut off at both ends
                middle = (self._largest - (high + low) / scales) / 2
                zeros = np.clip(np.rint(middle), 0, self._largest)
            yield Grid(scales, zeros, self.size, 0, int(self._largest))

    def _nearest(self, blocks: Floats) -> Grid:
        """Of each block the scale and zero of least squared error, over ``FRACTIONS``."""
        fractions = FRACTIONS[self.bits]
        first, *others = self._grids(blocks, fractions)
        if not others:
            return first
        scales, zeros, least = first.scales, first.zeros, self._error(blocks, first)
        for fraction, grid in zip(fractions[1:], others, strict=True):
            error = self._error(blocks, grid) * np.float32(fraction**2)
            better = error < least
            scales = np.where(better, grid.scales, scales)
            zeros = np.where(better, grid.zeros, zeros)
            least = np.where(better, error, least)
        return replace(first, scales=scales, zeros=zeros)

    def _error(self, blocks: Floats, grid: Grid) -> Floats:
        """Squared error of each block in units of its scale, so that it cannot overflow."""
        units = blocks * (1 / grid.scales)[..., None]
        off = np.rint(units)
        if self.zero_points:
            np.clip(off, -grid.zeros[..., None], (self._largest - grid.zeros)[..., None], out=off)
        else:
            np.clip(off, -self._zero, self._zero - 1, out=off)
        off -= units
        error: Floats = np.einsum("nbi,nbi->nb", off, off)
        return error

    @property
    def _zero(self) -> np.float32:
        return np.float32(2 ** (self.bits - 1))

    @property
    def _largest(self) -> np.float32:
        return np.float32(2**self.bits - 1)

    def _round(self, blocks: Floats, grid: Grid) -> Floats:
        """Codes as float32."""
        codes: Floats = np.multiply(blocks, (1 / grid.scales)[..., None], dtype=np.float32)
        np.rint(codes, out=codes)
        codes += grid.zeros[..., None]
        return np.clip(codes, 0, self._largest, out=codes)

    def _bytes(self, codes: Floats) -> Bytes:
        """Codes as they are stored, an odd one in 4 bits with a 0 beside it."""
        values = codes.astype(np.uint8)
        if self.bits == 8:
            return values
        if values.shape[-1] % 2:
            values = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, 1)])
        low, high = values[..., ::2], values[..., 1::2]
        return low | (high << np.uint8(4))

    def _codes(self, data: Bytes) -> Bytes:
        """The inverse of ``_bytes``."""
        if self.bits == 8:
            return data
        pairs = np.stack([data & np.uint8(15), data >> np.uint8(4)], axis=-1)
        return pairs.reshape(*data.shape[:-1], -1)

    def unpack(self, data: Bytes, scales: Floats, zeros: Bytes | None = None) -> Floats:
        """The inverse of ``pack`` up to rounding, with the zeros behind: (N, kb · size) float32."""
        codes = self._codes(data).astype(np.float32)
        if zeros is None:
            codes -= self._zero
        else:
            codes -= self._codes(zeros)[:, : scales.shape[1], None]
        codes *= scales[..., None]
        return codes.reshape(len(scales), -1)

    def matmul(self, x: Floats, *packed: NDArray[Any]) -> Floats:
        """What MatMulNBits computes at accuracy level 4: (…, K) -> (…, N)."""
        blocks = self._whole(x)
        step = np.abs(blocks).max(axis=-1, keepdims=True) / 127
        rounded = np.rint(np.divide(blocks, step, out=np.zeros_like(blocks), where=step > 0)) * step
        product: Floats = rounded.reshape(*x.shape[:-1], -1) @ self.unpack(*packed).T
        return product

    def lookup(self, ids: NDArray[np.int64], *packed: NDArray[Any]) -> Floats:
        """What GatherBlockQuantized computes: (…) -> (…, kb · size)."""
        rows = self.unpack(*(part[ids.reshape(-1)] for part in packed))
        return rows.reshape(*ids.shape, -1)

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
        parts: Parts = {
            name: np.empty(shape, dtype)
            for name, (shape, dtype) in self._stored(stop - start, weight.in_features).items()
        }
        runs = weight.runs(start, stop)
        for first, rows in runs if feedback is None else panels(runs):
            run = slice(first - start, first - start + len(rows))
            packed = self.pack(rows, feedback, first)
            for part, values in zip(parts.values(), packed, strict=True):
                part[run] = values
            measure(rows, self.unpack(*packed)[:, : rows.shape[1]])
        return parts

    def _stored(self, n: int, k: int) -> dict[str, tuple[tuple[int, ...], type]]:
        """Shape and type of each part of a weight (n, k)."""
        blocks = self._blocks(k)
        stored: dict[str, tuple[tuple[int, ...], type]] = {
            "data": ((n, blocks, self.size * self.bits // 8), np.uint8),
            "scales": ((n, blocks), np.float32),
        }
        if self.zero_points:
            stored["zeros"] = (n, -(-blocks * self.bits // 8)), np.uint8
        return stored

    def linear(self, g: Graph, x: ir.Value, weight: LinearWeight, parts: PackedParts) -> ir.Value:
        """x (…, K) -> (…, N) in one MatMulNBits node."""
        n, k = weight.out_features, weight.in_features
        shape, dtype = self._stored(n, k)["data"]
        data = g.weight(f"{weight.name}.data", shape, parts.blob("data", weight.step), dtype)
        result: ir.Value = g.MatMulNBits(
            x,
            data,
            *self._beside_data(g, weight, parts),
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
        """ids (…) -> (…, K) in one GatherBlockQuantized node over the same bytes.

        A last block that is filled up is cut off by a Slice.
        """
        n, k = weight.out_features, weight.in_features
        (_, *row), dtype = self._stored(n, k)["data"]
        rows = g.weight(
            f"{weight.name}.rows", (n, math.prod(row)), parts.blob("data", weight.step), dtype
        )
        scales, *zeros = self._beside_data(g, weight, parts)
        result: ir.Value = g.GatherBlockQuantized(
            rows,
            ids,
            scales,
            *zeros,
            bits=self.bits,
            block_size=self.size,
            gather_axis=0,
            quantize_axis=1,
            name=self.name,
        )
        if k % self.size:
            result = g.Slice(result, g.int64s(0), g.int64s(k), g.int64s(-1), name="columns")
        return result

    def _beside_data(self, g: Graph, weight: LinearWeight, parts: PackedParts) -> list[ir.Value]:
        """Scales and, where there are some, zeros."""
        _, *others = self._stored(weight.out_features, weight.in_features).items()
        return [
            g.weight(f"{weight.name}.{name}", shape, parts.blob(name), dtype)
            for name, (shape, dtype) in others
        ]


FORMATS = tuple(
    Block(bits, size, zero_points)
    for bits, zero_points in ((4, False), (4, True), (8, False))
    for size in (16, 32, 64, 128)
)
