"""Weights with an orthogonal matrix absorbed: as lazy as before, and of the same name and shape.

    turned(W (K, N), 0, Turn(Q))        Qᵀ · W      for a product whose input comes as x · Q
    turned(W (K, N), 1, Turn(Q))        W · Q       for one whose output is to be y · Q

Turned along axis 1, rows are made a few at a time, as before. Along axis 0 a row needs all of its
block of Q's size: of heads and the like a few, of the residual stream the whole matrix. That one
is filled piece by piece and turned in place, so that it takes its own size and little beside.

Letters: K input and N output features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ..export.graph import WHOLE, Blob, Rows, Weight
from .orthogonal import Orthogonal
from .weights import CHUNK, Floats, LinearWeight

CHUNK_SCRATCH = 4 * 4 * CHUNK  # bytes of the arrays that turning a chunk takes
CACHE_LINE = 16  # numbers of a row that are read together anyway


@dataclass(frozen=True)
class Turn:
    """What becomes of the numbers along one axis: block by block they are multiplied by ``matrix``.

    ``start`` to ``stop`` is the part of the axis that is turned, both multiples of the matrix' size
    (None: to the end). ``gain`` multiplies the numbers before. ``centred`` makes the first one of
    a block 0 afterwards: of a matrix without signs, that takes away what the numbers' mean was.
    """

    matrix: Orthogonal
    start: int = 0
    stop: int | None = None
    gain: Weight | None = None
    centred: bool = False

    def part(self, length: int) -> slice:
        """The part of an axis of this length."""
        stop = length if self.stop is None else self.stop
        assert self.start % self.matrix.size == stop % self.matrix.size == 0
        return slice(self.start, stop)

    def times(self, x: Floats, gain: Floats | None) -> Floats:
        """(n, c) -> (n, c), a new array: every column turned; ``gain`` is what was read of it."""
        if gain is not None:
            x = x * gain[:, None]
        made = self.matrix.times(x.reshape(-1, self.matrix.size, x.shape[1]))
        if self.centred:
            made[:, 0] = 0
        return made.reshape(x.shape)

    def rows_of(self, x: Floats) -> Floats:
        """(r, n), its rows turned, in a new array."""
        made, part = np.empty_like(x), self.part(x.shape[1])
        made[:, : part.start], made[:, part.stop :] = x[:, : part.start], x[:, part.stop :]
        gain = self.gain.read() if self.gain is not None else None
        size = max(1, CHUNK // x.shape[1])
        for first in range(0, len(x), size):
            run = slice(first, first + size)
            made[run, part] = self.times(x[run, part].T, gain).T
        return made

    def turn_columns(self, x: Floats) -> None:
        """(n, c), its columns turned in place; they are all part of what is turned."""
        gain = self.gain.read() if self.gain is not None else None
        size = max(CACHE_LINE, CHUNK // max(1, len(x)))
        for first in range(0, x.shape[1] if len(x) else 0, size):
            run = slice(first, first + size)
            x[:, run] = self.times(x[:, run], gain)


def turned(weight: Weight, axis: int, turn: Turn) -> Weight:
    """``weight`` (1 or 2 dimensions) with ``turn`` absorbed along ``axis``."""
    length = int(weight.shape.numpy()[axis])
    part, size = turn.part(length), turn.matrix.size

    def by_rows(start: int, stop: int) -> Floats:
        if stop - start <= weight.step:
            return turn.rows_of(weight.rows(start, stop))
        return _filled(weight, start, stop, turn.rows_of)

    def by_columns(start: int, stop: int) -> Floats:
        first, last = start // size * size, min(-(-stop // size) * size, length)  # whole blocks
        made = _filled(weight, first, last)
        columns = made.reshape(last - first, -1)  # of a vector: one
        turn.turn_columns(columns[max(0, part.start - first) : max(0, part.stop - first)])
        return made[start - first : stop - first]

    whole = weight.blob.step is not None or (axis == 0 and size == length)
    piece = min(weight.step, weight.num_rows) * weight.row_bytes
    blob = Blob(
        by_rows if axis else by_columns,
        WHOLE if whole else None,
        scratch=weight.blob.scratch + piece + CHUNK_SCRATCH,
    )
    return _like(weight, blob)


def shifted(bias: Weight | str, product: LinearWeight, shift: Weight) -> Weight:
    """``bias`` (N,), or zeros of that name, plus ``shift`` (K,) · W: what the product makes of it.

    Summed in float64, so that the order of a processor's summation does not show.
    """

    weight = product.weight

    def rows(start: int, stop: int) -> Floats:
        total = np.zeros(product.out_features)
        if isinstance(bias, Weight):
            total += bias.read()
        added = shift.read().astype(np.float64)
        for run in _runs(weight, 0, weight.num_rows):
            values = weight.rows(run.start, run.stop).astype(np.float64)
            if product.transposed:
                total[run] += values @ added
            else:
                total += added[run] @ values
            del values  # or it would live on beside the next ones
        return total[start:stop].astype(np.float32)

    piece = min(weight.step, weight.num_rows) * weight.row_bytes
    blob = Blob(rows, WHOLE, scratch=weight.blob.scratch + 3 * piece)
    if isinstance(bias, Weight):
        return _like(bias, blob)
    made = Weight(bias, (product.out_features,), np.float32, blob)
    made.learned = False
    return made


def rearranged(weight: Weight, change: Callable[[Floats], Floats]) -> Rows:
    """Rows of what ``change`` makes of a small weight."""
    return lambda start, stop: change(weight.read())[start:stop]


def _like(weight: Weight, blob: Blob) -> Weight:
    made = Weight(str(weight.name), weight.shape.numpy(), weight.dtype.numpy(), blob)
    made.learned = weight.learned
    return made


def _runs(weight: Weight, start: int, stop: int) -> Iterator[slice]:
    """Rows ``start`` to ``stop``, as many at a time as the weight is to be asked for."""
    for first in range(start, stop, weight.step):
        yield slice(first, min(first + weight.step, stop))


def _filled(
    weight: Weight, start: int, stop: int, change: Callable[[Floats], Floats] = lambda rows: rows
) -> Floats:
    """Rows ``start`` to ``stop`` in an array of their own, each as ``change`` makes it.

    A few at a time, so that a large table is in memory once.
    """
    made = np.empty((stop - start, *weight.shape.numpy()[1:]), np.float32)
    for run in _runs(weight, start, stop):
        made[run.start - start : run.stop - start] = change(weight.rows(run.start, run.stop))
    return made
