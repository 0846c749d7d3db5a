"""Medians of few repetitions, with intervals that assume no distribution.

The interval of a median runs from the k-th smallest to the k-th largest of n samples. It misses the
true median only if fewer than k of the samples fell on one side of it, so that it covers it with
probability

    1 - 2 · P(Binomial(n, 1/2) < k)

whatever the distribution (David and Nagaraja, Order Statistics, 3rd ed., section 7.1). k is the
largest with which that is at least 95 %. Fewer than 6 samples cannot reach it; then the interval is
from the smallest to the largest, with the coverage that it has.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

COVERAGE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A median, and the interval that holds the true one with probability ``confidence``."""

    median: float
    low: float
    high: float
    confidence: float

    def to_json(self) -> dict[str, float]:
        """Its fields."""
        return asdict(self)


def estimate(samples: Sequence[float]) -> Estimate:
    """The median of ``samples``, at least one, and its interval. A single one has no coverage."""
    ordered = sorted(samples)
    rank, confidence = interval_rank(len(ordered))
    return Estimate(statistics.median(ordered), ordered[rank - 1], ordered[-rank], confidence)


def interval_rank(count: int) -> tuple[int, float]:
    """k of the interval for ``count`` samples, from 1, and its coverage."""
    rank, confidence = 1, _coverage(count, 1)
    while (next_confidence := _coverage(count, rank + 1)) >= COVERAGE:
        rank, confidence = rank + 1, next_confidence
    return rank, confidence


def _coverage(count: int, rank: int) -> float:
    below = sum(math.comb(count, successes) for successes in range(rank))
    return 1 - 2 * below / (1 << count)


def paired_ratio(rates: Sequence[float], reference: Sequence[float]) -> Estimate:
    """How many times ``reference`` the rate is, from the ratios of the samples of one round.

    What slows the machine down for a while slows both of a pair, and cancels.
    """
    return estimate([a / b for a, b in zip(rates, reference, strict=True)])


def spread(samples: Sequence[float]) -> float:
    """The distance between the quartiles, as a share of the median; 0 for a single sample."""
    if len(samples) < 2:
        return 0.0
    lower, middle, upper = statistics.quantiles(samples, n=4, method="inclusive")
    return (upper - lower) / middle
