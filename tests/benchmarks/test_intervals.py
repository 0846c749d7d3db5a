"""Medians and their intervals: by enumeration, by simulation, and paired."""

from __future__ import annotations

import itertools
import json
import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketlm.benchmarks.intervals import (
    COVERAGE,
    estimate,
    interval_rank,
    paired_ratio,
    spread,
)


def enumerated_coverage(count: int, rank: int) -> float:
    """The share of all outcomes of ``count`` coins in which the interval holds the median.

    A coin says on which side of it a sample fell; it lies between the rank-th smallest and the
    rank-th largest if at least ``rank`` samples fell on either side.
    """
    sides = list(itertools.product((0, 1), repeat=count))
    return sum(rank <= sum(side) <= count - rank for side in sides) / len(sides)


@pytest.mark.parametrize("count", range(1, 15))
def test_coverage_is_that_of_all_outcomes_and_the_rank_is_the_largest(count: int) -> None:
    rank, confidence = interval_rank(count)
    assert confidence == pytest.approx(enumerated_coverage(count, rank), abs=1e-12)
    assert rank == 1 or confidence >= COVERAGE
    assert enumerated_coverage(count, rank + 1) < COVERAGE


def test_five_rounds_cannot_reach_95_percent_and_six_can() -> None:
    assert interval_rank(5) == (1, 1 - 2 / 32)
    assert interval_rank(6) == (1, 1 - 2 / 64)
    assert interval_rank(9) == (2, 1 - 20 / 512)


@pytest.mark.parametrize("count", [5, 9, 20])
def test_the_interval_covers_the_median_of_a_skewed_distribution(count: int) -> None:
    """Times have a long tail: the median of exp(normal) is 1, its mean 3.1 with sigma 1.5."""
    chance = random.Random(count)
    trials = 4000
    held = 0
    for _ in range(trials):
        found = estimate([math.exp(chance.gauss(0, 1.5)) for _ in range(count)])
        held += found.low <= 1 <= found.high
    _, confidence = interval_rank(count)
    # Four standard errors of a share.
    assert held / trials == pytest.approx(confidence, abs=4 * math.sqrt(0.25 / trials))


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=40))
def test_an_estimate_lies_among_its_samples(samples: list[float]) -> None:
    found = estimate(samples)
    assert min(samples) <= found.low <= found.median <= found.high <= max(samples)
    assert found.median == statistics.median(samples)
    assert estimate(list(reversed(samples))) == found
    assert json.loads(json.dumps(found.to_json())).keys() == {"median", "low", "high", "confidence"}


def test_a_single_sample_is_its_own_interval_and_covers_nothing() -> None:
    assert estimate([3.0]).to_json() == {"median": 3, "low": 3, "high": 3, "confidence": 0}
    assert spread([3.0]) == 0


def test_a_ratio_pairs_the_samples_of_one_round() -> None:
    # By rounds 1/2, 1/4 and 1/3; the ratio of the medians would be 2/8.
    found = paired_ratio([1.0, 2.0, 3.0], [2.0, 8.0, 9.0])
    assert (found.median, found.low, found.high) == (1 / 3, 1 / 4, 1 / 2)
    with pytest.raises(ValueError):
        paired_ratio([1.0], [1.0, 2.0])


@given(st.lists(st.floats(0.01, 100), min_size=3, max_size=20), st.floats(0.1, 10), st.randoms())
def test_what_slows_a_whole_round_down_does_not_show_in_a_ratio(
    rates: list[float], factor: float, chance: random.Random
) -> None:
    drift = [chance.uniform(0.2, 1) for _ in rates]
    slowed = [a * b for a, b in zip(rates, drift, strict=True)]
    found = paired_ratio([factor * rate for rate in slowed], slowed)
    assert found.low == pytest.approx(factor) == found.high


def test_spread_is_the_quartiles_distance_over_the_median() -> None:
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2 / 3)
    assert spread([7.0] * 4) == 0
