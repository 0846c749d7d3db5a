"""The weight of a linear layer as a format sees it, and parts that are packed together.

Letters: K input features, N output features. A weight is stored (K, N), as MatMul takes it, or (N,
K), as a ``transB`` product does; a format asks for the orientation its kernel wants, a run of
output features at a time where the storage allows it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..export.graph import WHOLE, Blob, Weight, rows_per_piece

Floats = NDArray[np.float32]
Value = ir.Value  # for the protocol of formats, whose package imports no library

# Weights worked on at once: small enough for a cache, large enough that threads do not queue for
# the interpreter between two NumPy calls.
CHUNK = 1 << 18


@dataclass(frozen=True)
class LinearWeight:
    """A float32 matrix that is read when asked for."""

    weight: Weight
    transposed: bool  # stored (N, K)

    @property
    def name(self) -> str:
        """Dotted name of the checkpoint's tensor."""
        return str(self.weight.name)

    @property
    def in_features(self) -> int:
        return int(self.weight.shape.numpy()[1 if self.transposed else 0])  # K

    @property
    def out_features(self) -> int:
        return int(self.weight.shape.numpy()[0 if self.transposed else 1])  # N

    @property
    def step(self) -> int:
        """Output features to read at a time: all of them where they are columns of the file."""
        by_rows = self.transposed and self.weight.blob.step is None
        return rows_per_piece(4 * self.in_features) if by_rows else self.out_features

    @property
    def scratch(self) -> int:
        """Bytes that ``runs`` and packing its runs hold, about."""
        return 4 * self.step * self.in_features + self.weight.blob.scratch + 6 * 4 * CHUNK

    def runs(self, start: int, stop: int) -> Iterator[tuple[int, Floats]]:
        """Features ``start`` to ``stop`` in runs (n, K) that fit a cache, each with its first.

        Reads them now, ``step`` at a time.
        """
        size = max(1, CHUNK // self.in_features)
        for first in range(start, stop, self.step):
            last = min(first + self.step, stop)
            if self.transposed:
                values = self.weight.rows(first, last)
            else:
                values = self.weight.read()[:, first:last].T
            for row in range(first, last, size):
                run = values[row - first : row - first + size]
                yield row, np.ascontiguousarray(run)


Measure = Callable[[Floats, Floats], None]  # takes weights as they were, and as they come back
Parts = dict[str, NDArray[Any]]  # what is stored, by name


class PackedParts:
    """Several blobs from one computation, done once for each run of output features.

    ``compute(start, stop)`` gives all parts of those features. Any part may be asked for first, by
    any thread; what belongs to the others is kept until it is asked for.
    """

    def __init__(
        self, compute: Callable[[int, int], Parts], num_rows: int, step: int, scratch: int
    ) -> None:
        self._compute = compute
        self._scratch = scratch
        self._num_rows = num_rows
        self._step = step
        self._locks = [threading.Lock() for _ in range(0, num_rows, step)]
        self._kept: list[Parts] = [{} for _ in self._locks]
        self._blobs: dict[str, Blob] = {}

    def blob(self, part: str, step: int | None = None) -> Blob:
        """The blob of one part, to be written ``step`` rows at a time, None for all at once.

        It is the same one every time, so that two weights can share it.
        """
        if part not in self._blobs:
            self._blobs[part] = Blob(
                partial(self._rows, part),
                step or WHOLE,
                scratch=self._scratch,
                at_hand=bool(self._blobs),
            )
        return self._blobs[part]

    def _rows(self, part: str, start: int, stop: int) -> NDArray[Any]:
        last = -(-min(stop, self._num_rows) // self._step)
        runs = [self._run(part, run) for run in range(start // self._step, last)]
        return runs[0] if len(runs) == 1 else np.concatenate(runs)

    def _run(self, part: str, run: int) -> NDArray[Any]:
        with self._locks[run]:
            if part not in self._kept[run]:
                start = run * self._step
                self._kept[run] = self._compute(start, min(start + self._step, self._num_rows))
            return self._kept[run].pop(part)


def weight_of(value: ir.Value | None) -> Weight | None:
    """The lazy weight behind an initializer, or None."""
    tensor = value.const_value if value is not None else None
    return tensor if isinstance(tensor, Weight) else None
