"""Rounding with error feedback: codes that keep the products of a weight with the inputs it saw.

A weight W in rows (N, K) becomes Q on a grid. What that loses on inputs x is tr(E H Eᵀ) with the
error E = W - Q and the Hessian H = mean of x xᵀ (K, K). It is damped: λ, ``damping`` of its mean
diagonal, is added to the diagonal. With H + λI = L Lᵀ a row e of E loses |e L|², and

    (e L)_i = L_ii · (w_i + Σ_{j>i} e_j L_ji / L_ii - q_i)

depends on the columns from i on: so columns are rounded from the last to the first, each to the
value nearest to its target w_i + Σ …, which takes up what the later ones did wrong. That is GPTQ
(arXiv 2210.17323) without an inverse: Babai's nearest plane (arXiv 2507.18553). On top of it:

- Columns that share a scale stay together; groups, and columns inside a group, go from the largest
  diagonal of H to the smallest, as errors made early can still be taken up.
- A group tries several scales, and keeps the one of least loss: its terms of |e L|² are known once
  it is rounded, and the groups to come are free to take up whatever it leaves.
- A row for which plain rounding loses less takes that.
- Then ``SWEEPS`` of coordinate descent over the groups: the scale by least squares for the codes as
  they are, and each code to its best for all others as they are.

Measured on the real Hessians of two models, 4 bits: benchmarks/NOTES.md. Letters beside N and K: R
rows of a panel, G groups of columns that share a scale, F grids tried.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .statistics import Statistics

Array = NDArray[Any]  # float32; float64 where the Hessian is

DAMPING = 0.01  # 0.001 to 0.05 make no difference, 0.2 is worse
# Of a table that is looked up as well as multiplied: an error e of a row costs about |e|² there,
# whatever the head's inputs are. In 4 bits the demo has least KL from 0.3 to 1; SmolLM2 is even.
TABLE_DAMPING = 0.3
SWEEPS = 2
# Rows that are rounded together, filled up with zeros, each at the place that its number gives it:
# so its codes do not depend on how rows are cut, as a product's last bit does on place and shape.
PANEL = 512
BLOCK = 128  # columns between two products with everything that was rounded before
WIDE = 1024  # columns that are made float64 at once


class NotPositive(ValueError):
    """The Hessian has no Cholesky factor, damped or not: nothing was measured, or no numbers."""


@dataclass(frozen=True)
class Grid:
    """What rows (n, K) can be rounded to: (code - zero) · scale, codes from ``low`` to ``high``.

    ``scales`` and ``zeros`` (n, G) hold for ``size`` columns each, the last of them for the rest.
    """

    scales: Array
    zeros: Array
    size: int
    low: int
    high: int

    def codes(self, rows: Array) -> Array:
        """Every number rounded by itself, to the nearest: (n, K)."""
        steps = self._spread(1 / self.scales, rows)
        codes: Array = np.rint(rows * steps) + self._spread(self.zeros, rows)
        return np.clip(codes, self.low, self.high, out=codes)

    def values(self, codes: Array) -> Array:
        """What ``codes`` (n, K) stand for."""
        values: Array = (codes - self._spread(self.zeros, codes)) * self._spread(self.scales, codes)
        return values

    def rows(self, part: slice) -> Grid:
        """The grid of some of the rows."""
        return replace(self, scales=self.scales[part], zeros=self.zeros[part])

    def _spread(self, groups: Array, like: Array) -> Array:
        return np.repeat(groups, self.size, axis=1)[:, : like.shape[1]]


@dataclass(frozen=True)
class Factor:
    """H + λI with its columns in ``order`` is L Lᵀ, L = ``ratios`` · diag(``diagonal``)."""

    order: NDArray[np.intp]
    ratios: Array  # (K, K), lower, 1 on the diagonal
    diagonal: Array  # (K,)


class Feedback:
    """The Hessian of the inputs of one or several weights; any thread may round by it.

    ``hessian`` (K, K) is symmetric, float32 or float64, and not copied. It takes as much again for
    each size of groups that it rounds with, from the first time on.
    """

    def __init__(self, hessian: Array, damping: float = DAMPING) -> None:
        self.hessian = hessian
        diagonal = np.diag(hessian)
        self._damping = hessian.dtype.type(damping * float(diagonal.mean(dtype=np.float64)))
        self._lock = threading.Lock()
        self._factors: dict[int, Factor] = {}

    def loss(self, errors: Array) -> Array:
        """e (H + λI) eᵀ of each row e of ``errors`` (n, K): (n,)."""
        losses: Array = np.einsum("nk,nk->n", errors @ self.hessian, errors)
        losses += self._damping * np.einsum("nk,nk->n", errors, errors)
        return losses

    def round(self, rows: Array, grids: Sequence[Grid], first: int = 0) -> tuple[Array, Grid]:
        """Codes (n, K) of the rows (n, K) of a weight from its row ``first`` on, and their grid.

        The grids differ in scales and zeros; of several each group takes what is best, with a
        scale that is then fitted. Groups have at most ``BLOCK`` columns, or there is one grid. No
        row loses more than plainly rounded on the first grid. Raises NotPositive.
        """
        factor = self.factor(grids[0].size)
        codes = np.empty_like(rows)
        scales, zeros = np.empty_like(grids[0].scales), np.empty_like(grids[0].zeros)
        for part in _aligned(first, len(rows)):
            place = (first + part.start) % PANEL
            panel = _Panel(
                rows[part], [grid.rows(part) for grid in grids], place, self.hessian.dtype
            )
            panel.round_to_nearest_plane(factor)
            panel.take_plain_where_better(self._gradient)
            for _ in range(SWEEPS):
                panel.descend(self._gradient, self._square)
            codes[part], scales[part], zeros[part] = panel.result()
        return codes, replace(grids[0], scales=scales, zeros=zeros)

    def factor(self, size: int) -> Factor:
        """For groups of ``size`` columns; computed once. Raises NotPositive."""
        with self._lock:
            if size not in self._factors:
                order = _order(np.diag(self.hessian), size)
                ratios = _cholesky(self.hessian, order, float(self._damping))
                diagonal = np.diag(ratios).copy()
                ratios /= diagonal
                self._factors[size] = Factor(order, ratios, diagonal)
            return self._factors[size]

    def _gradient(self, errors: Array, start: int, stop: int) -> Array:
        """Rows ``start`` to ``stop`` of (H + λI) times errors (K, R)."""
        result: Array = self.hessian[start:stop] @ errors
        result += self._damping * errors[start:stop]
        return result

    def _square(self, start: int, stop: int) -> Array:
        """The block of H + λI on its diagonal."""
        block = self.hessian[start:stop, start:stop].copy()
        block.flat[:: len(block) + 1] += self._damping
        return block


def _aligned(first: int, count: int) -> Iterator[slice]:
    """Cuts ``count`` rows from ``first`` on where a panel ends."""
    start = 0
    while start < count:
        stop = min(start + PANEL - (first + start) % PANEL, count)
        yield slice(start, stop)
        start = stop


def panels(runs: Iterable[tuple[int, Array]]) -> Iterator[tuple[int, Array]]:
    """``runs`` of rows, each with the number of its first, cut anew where panels end."""
    kept: Array | None = None
    start = 0
    for first, rows in runs:
        start = first if kept is None else start
        kept = rows if kept is None else np.concatenate([kept, rows])
        whole = (start + len(kept)) // PANEL * PANEL - start
        if whole > 0:
            yield start, kept[:whole]
            start, kept = start + whole, kept[whole:]
    if kept is not None and len(kept):
        yield start, kept


class _Panel:
    """Some rows on their way from weights to codes, turned: columns of the weight come first.

    ``error`` is always that of ``codes`` with ``scales`` and ``zeros``.
    """

    def __init__(
        self, rows: Array, grids: Sequence[Grid], place: int, dtype: np.dtype[Any]
    ) -> None:
        self._plain = grids[0]
        self._size = grids[0].size
        self._limits = np.float32(grids[0].low), np.float32(grids[0].high)
        self._dtype = dtype
        self._rows = rows
        self._places = slice(place, place + len(rows))
        self.weight = self._turned(rows, 0)  # (K, R)
        self._tried = [  # scales and zeros (F, G, R)
            np.stack([self._turned(grid.scales, 1) for grid in grids]),
            np.stack([self._turned(grid.zeros, 0) for grid in grids]),
        ]
        self.scales, self.zeros = (tried[0].copy() for tried in self._tried)
        self.codes = np.empty_like(self.weight)
        self.error = np.empty_like(self.weight)
        self.loss = np.zeros(PANEL, dtype)

    def _turned(self, rows: Array, filling: float) -> Array:
        """(n, …) -> (…, R), filled up to R."""
        turned = np.full((rows.shape[1], PANEL), filling, self._dtype)
        turned[:, self._places] = rows.T
        return turned

    def result(self) -> tuple[Array, Array, Array]:
        """Codes, scales and zeros of the rows."""
        found = (self.codes, self.scales, self.zeros)
        codes, scales, zeros = (each[:, self._places].T for each in found)
        return codes, scales, zeros

    def blocks(self) -> list[tuple[int, int]]:
        """Columns that go together, within a group and no more than ``BLOCK``: from, to."""
        size = min(self._size, BLOCK)
        columns = len(self.weight)
        return [(start, min(start + size, columns)) for start in range(0, columns, size)]

    # Nearest plane ----------------------------------------------------------------------------

    def round_to_nearest_plane(self, factor: Factor) -> None:
        """Sets codes and error, and of each group the scale and zero of least loss."""
        order, ratios = factor.order, factor.ratios
        weight = self.weight[order]
        error = np.empty_like(weight)
        for start, stop in reversed(self.blocks()):
            target = weight[start:stop]
            if stop < len(weight):
                target = target + ratios[stop:, start:stop].T @ error[stop:]
            columns, group = order[start:stop], order[start] // self._size
            scale, zero = (tried[:, group] for tried in self._tried)  # (F, R)
            triangle = ratios[start:stop, start:stop]
            codes, errors = self._round_block(target, weight[start:stop], scale, zero, triangle)
            losses = np.square(
                (triangle.T @ errors.reshape(len(columns), -1)).reshape(errors.shape)
                + (target - weight[start:stop])[:, None]
            )
            losses = np.einsum("kfr,k->fr", losses, np.square(factor.diagonal[start:stop]))
            best = losses.argmin(axis=0)[None]
            self.loss += np.take_along_axis(losses, best, 0)[0]
            self.scales[group] = np.take_along_axis(scale, best, 0)[0]
            self.zeros[group] = np.take_along_axis(zero, best, 0)[0]
            self.codes[columns] = np.take_along_axis(codes, best[None], 1)[:, 0]
            error[start:stop] = np.take_along_axis(errors, best[None], 1)[:, 0]
        self.error[order] = error

    def _round_block(
        self, target: Array, weight: Array, scale: Array, zero: Array, triangle: Array
    ) -> tuple[Array, Array]:
        """Codes and errors (k, F, R) of a block of columns on every grid."""
        codes = np.empty((len(target), *scale.shape), self._dtype)
        errors = np.empty_like(codes)
        steps = 1 / scale
        for i in reversed(range(len(target))):
            later = np.einsum("k,kfr->fr", triangle[i + 1 :, i], errors[i + 1 :])
            later += target[i]
            code = codes[i]
            np.multiply(later, steps, out=code)
            np.rint(code, out=code)
            code += zero
            np.clip(code, *self._limits, out=code)
            np.subtract(zero, code, out=errors[i])
            errors[i] *= scale
            errors[i] += weight[i]
        return codes, errors

    # What may lower the loss further ----------------------------------------------------------

    def take_plain_where_better(self, gradient: Callable[[Array, int, int], Array]) -> None:
        """Rows that lose less when every number is rounded by itself take those codes."""
        codes = self._plain.codes(self._rows)
        error = self._turned(self._rows - self._plain.values(codes), 0)
        loss = np.einsum("kr,kr->r", error, gradient(error, 0, len(error)))
        better = loss < self.loss
        for found, plain in (
            (self.codes, self._turned(codes, 0)),
            (self.error, error),
            (self.scales, self._tried[0][0]),
            (self.zeros, self._tried[1][0]),
        ):
            found[:, better] = plain[:, better]

    def descend(
        self,
        gradient: Callable[[Array, int, int], Array],
        square: Callable[[int, int], Array],
    ) -> None:
        """Fits each group's scale to its codes, then each code to all others."""
        for start, stop in self.blocks():
            slope = gradient(self.error, start, stop)
            hessian = square(start, stop)
            if self._size <= BLOCK:
                self._fit_scale(start, stop, slope, hessian)
            self._fit_codes(start, stop, slope, hessian)

    def _fit_scale(self, start: int, stop: int, slope: Array, hessian: Array) -> None:
        group = start // self._size
        steps = self.codes[start:stop] - self.zeros[group]
        bent = hessian @ steps
        curvature = np.einsum("kr,kr->r", steps, bent)
        change = np.einsum("kr,kr->r", steps, slope)
        np.divide(change, curvature, out=change, where=curvature > 0)
        # Codes of almost nothing may ask for any scale.
        change[(np.abs(change) > 0.5 * np.abs(self.scales[group])) | (curvature <= 0)] = 0
        self.scales[group] += change
        self.error[start:stop] -= steps * change
        slope -= bent * change

    def _fit_codes(self, start: int, stop: int, slope: Array, hessian: Array) -> None:
        group = start // self._size
        scale = self.scales[group]
        steps = 1 / scale
        for i, column in enumerate(range(start, stop)):
            code = np.rint(self.codes[column] + slope[i] * (steps / hessian[i, i]))
            np.clip(code, *self._limits, out=code)
            moved = (code - self.codes[column]) * scale
            self.codes[column] = code
            self.error[column] -= moved
            slope -= np.multiply.outer(hessian[:, i], moved)


def _order(diagonal: Array, size: int) -> NDArray[np.intp]:
    """Columns by rising diagonal inside their group, groups by rising mean.

    A last group of fewer columns stays last, so that every block of columns is of one group.
    """
    columns = np.arange(len(diagonal))
    groups = [columns[start : start + size] for start in range(0, len(columns), size)]
    groups.sort(key=lambda group: (-len(group), diagonal[group].mean(dtype=np.float64)))
    return np.concatenate([group[np.argsort(diagonal[group], kind="stable")] for group in groups])


def _cholesky(hessian: Array, order: NDArray[np.intp], damping: float) -> Array:
    """L of H + λI in ``order``, computed in float64 a block of columns at a time.

    So it takes as much memory as H, and is as good as float64 where that is float32: after large
    outliers the smallest of H is less than a float32 product of the largest rounds away.
    """
    size = len(hessian)
    lower = np.zeros_like(hessian)
    for start in range(0, size, BLOCK):
        stop = min(start + BLOCK, size)
        block = hessian[np.ix_(order[start:], order[start:stop])].astype(np.float64)
        block[: stop - start].flat[:: stop - start + 1] += damping
        for done in range(0, start, WIDE):
            part = slice(done, min(done + WIDE, start))
            left = lower[start:, part].astype(np.float64)
            block -= left @ left[: stop - start].T
        try:
            corner = np.linalg.cholesky(block[: stop - start])
        except np.linalg.LinAlgError as error:
            raise NotPositive("the Hessian is not positive, damped or not") from error
        lower[start:stop, start:stop] = corner
        lower[stop:, start:stop] = np.linalg.solve(corner, block[stop - start :].T).T
    if not np.isfinite(np.diag(lower)).all():
        raise NotPositive("the Hessian has numbers that are not finite")
    return lower


class Feedbacks:
    """Error feedback by name of the weight, from ``statistics``; the last few are kept.

    ``tables`` are the weights that are looked up, too. A factor is as large as its Hessian, and
    products that follow each other share them.
    """

    KEPT = 2

    def __init__(self, statistics: Statistics, tables: Collection[str] = ()) -> None:
        self._statistics = statistics
        self._tables = tables
        self._kept: OrderedDict[tuple[int, int], Feedback] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, weight: str) -> Feedback | None:
        """None for a weight whose products were not measured."""
        place = self._statistics.hessian_id(weight)
        if place is None:
            return None
        with self._lock:
            if place not in self._kept:
                hessian = self._statistics.hessian(weight)
                assert hessian is not None
                damping = TABLE_DAMPING if weight in self._tables else DAMPING
                self._kept[place] = Feedback(hessian, damping)
                while len(self._kept) > self.KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(place)
            return self._kept[place]

    def hessian(self, weight: str) -> Array | None:
        """H of the products with a weight, None where they were not measured."""
        found = self.of(weight)
        return None if found is None else found.hessian
