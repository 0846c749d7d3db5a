"""Means and quantiles with standard errors, from running sums over clusters of values.

Losses of neighbouring tokens are correlated, so a window of text, not a token, is what counts as
one draw: a mean is a ratio of two sums over windows, and its error is taken between the windows.
Where there are many documents a cluster is a document, whose windows are added one by one.

Sources: the ratio estimator and its variance by linearization, Cochran, "Sampling Techniques" (3rd
edition), sections 6.4 and 9A.2; the error of a quantile by way of its ranks, Woodruff 1952,
"Confidence intervals for medians and other position measures"; quantiles of a relative accuracy
from buckets of a geometric width, Masson, Rim and Lee 2019, "DDSketch".
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Of a bucket's ends, so that whatever is in it is within 1 % of its values.
BUCKET_RATIO = 1.01
SMALLEST, LARGEST = 1e-12, 1e3  # what lies outside counts as 0, and as the largest
NUM_BUCKETS = 2 + math.ceil(math.log(LARGEST / SMALLEST) / math.log(BUCKET_RATIO))
# Clusters take turns in as many groups: more make the error of a quantile steadier.
NUM_GROUPS = 32
ROUNDING = 1e-14  # of the terms of a spread: less is what their own rounding leaves of it


class Ratio:
    """Σ values / Σ weights over clusters, such as nats per token."""

    def __init__(self) -> None:
        self.clusters = 0
        self.values = self.weights = 0.0
        self._squares = np.zeros(3)  # Σ v², Σ v w, Σ w² over all clusters but the last
        self._last = (0.0, 0.0)  # v and w of the last one

    def add(self, value: float, weight: float, more: bool = False) -> None:
        """Adds the sums of one cluster, or ``more`` of the last one."""
        if not more:
            self._squares += _squares(*self._last)
            self._last = (0.0, 0.0)
            self.clusters += 1
        self.values += value
        self.weights += weight
        self._last = (self._last[0] + value, self._last[1] + weight)

    @property
    def mean(self) -> float:
        return self.values / self.weights if self.weights else 0.0

    @property
    def standard_error(self) -> float | None:
        """√(G/(G-1) Σ (v - mean·w)²) / Σ w over G clusters.

        None for a single one, and for clusters without a spread: what it is cannot be known then.
        """
        if self.clusters < 2 or not self.weights:
            return None
        vv, vw, ww = self._squares + _squares(*self._last)
        terms = np.array([vv, -2 * self.mean * vw, self.mean**2 * ww])
        spread = float(terms.sum())
        if spread <= ROUNDING * float(np.abs(terms).sum()):
            return None
        return math.sqrt(self.clusters / (self.clusters - 1) * spread) / self.weights

    def result(self) -> dict[str, Any]:
        """As it stands in results."""
        return {"value": self.mean, "standard_error": self.standard_error}


def _squares(value: float, weight: float) -> NDArray[np.float64]:
    return np.array([value * value, value * weight, weight * weight])


class Quantiles:
    """A histogram of values from 0 up, of a fixed size; quantiles are within 1 %.

    None is below the least of the values or above the largest, which are told beside them.
    """

    def __init__(self) -> None:
        self._counts = np.zeros((NUM_GROUPS, NUM_BUCKETS), np.int64)
        self._clusters = 0
        self._least, self._largest = LARGEST, 0.0

    def add(self, values: NDArray[np.float64], more: bool = False) -> None:
        """Adds the values of one cluster, or ``more`` of the last one.

        What is not above SMALLEST counts as 0.
        """
        if len(values):
            self._least = min(self._least, float(values.min()))
            self._largest = max(self._largest, float(values.max()))
        positions = np.log(np.clip(values, SMALLEST, LARGEST) / SMALLEST) / math.log(BUCKET_RATIO)
        buckets = np.ceil(positions).astype(np.int64)
        self._clusters += not more
        group = (self._clusters - 1) % NUM_GROUPS
        self._counts[group] += np.bincount(buckets, minlength=NUM_BUCKETS)

    def result(self, share: float) -> dict[str, Any]:
        """The quantile below which ``share`` of the values lie, and its standard error.

        The error is half the distance of the quantiles whose ranks are one standard error of the
        share of values below the quantile apart from its own; None where that is not known.
        """
        totals = np.cumsum(self._counts.sum(axis=0))
        bucket, value = _quantile(totals, share)
        below = Ratio()
        for counts in self._counts[: min(self._clusters, NUM_GROUPS)]:
            below.add(float(counts[: bucket + 1].sum()), float(counts.sum()))
        error = below.standard_error
        if error is not None:
            low, high = (_quantile(totals, share + sign * error)[1] for sign in (-1, 1))
            error = (high - low) / 2 or None
        if value:  # not one of those that count as 0
            value = min(max(value, self._least), self._largest)
        return {"value": value, "standard_error": error}


def _quantile(totals: NDArray[np.int64], share: float) -> tuple[int, float]:
    """The bucket with the value of rank share · n, and the value if those in it lie evenly.

    Bucket i > 0 has the values in (SMALLEST·r^(i-1), SMALLEST·r^i], and bucket 0 those up to it.
    """
    count = int(totals[-1])
    rank = min(max(share * count, 1.0), float(count))
    # What rounding puts above a whole number is that number.
    bucket = int(np.searchsorted(totals, math.ceil(rank - 1e-9)))
    if bucket == 0:
        return 0, 0.0
    before, up_to = int(totals[bucket - 1]), int(totals[bucket])
    fraction = min(1.0, (rank - before) / (up_to - before))
    return bucket, SMALLEST * BUCKET_RATIO ** (bucket - 1 + fraction)
