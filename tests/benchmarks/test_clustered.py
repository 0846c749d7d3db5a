"""Running sums against what NumPy says of all values at once, and errors against resampling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketlm.benchmarks.quality.clustered import LARGEST, NUM_GROUPS, SMALLEST, Quantiles, Ratio

SHARES = (0.5, 0.99)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-100, 100), st.integers(1, 50)), min_size=2, max_size=30))
def test_a_ratio_and_its_error_are_those_of_the_formula(clusters: list[tuple[float, int]]) -> None:
    ratio = Ratio()
    for cluster in clusters:
        ratio.add(*cluster)
    values, weights = np.array(clusters).T
    mean = values.sum() / weights.sum()
    count = len(clusters)
    variance = count / (count - 1) * np.square(values - mean * weights).sum() / weights.sum() ** 2
    assert ratio.mean == pytest.approx(mean, abs=1e-12)
    assert (ratio.standard_error or 0) == pytest.approx(np.sqrt(variance), rel=1e-6, abs=1e-6)


def test_equal_clusters_give_the_textbook_error() -> None:
    values = np.random.default_rng(0).normal(3, 2, 100)
    ratio = Ratio()
    for value in values:
        ratio.add(5 * value, 5)
    assert ratio.standard_error == pytest.approx(values.std(ddof=1) / 10)


def test_one_cluster_has_a_mean_and_no_error() -> None:
    ratio, quantiles = Ratio(), Quantiles()
    ratio.add(6, 3)
    quantiles.add(np.array([1.0, 2.0, 3.0]))
    assert ratio.result() == {"value": 2, "standard_error": None}
    assert quantiles.result(0.5) == {"value": pytest.approx(2, rel=0.01), "standard_error": None}


def test_clusters_without_a_spread_have_no_error() -> None:
    ratio, quantiles = Ratio(), Quantiles()
    for _ in range(5):
        ratio.add(6, 3)
        quantiles.add(np.zeros(3))
    assert ratio.result() == {"value": 2, "standard_error": None}
    assert quantiles.result(0.99) == {"value": 0, "standard_error": None}


@given(st.lists(st.lists(st.floats(0.01, 9), min_size=1, max_size=4), min_size=1, max_size=40))
def test_a_cluster_may_be_added_in_parts(clusters: list[list[float]]) -> None:
    ratios, quantiles = (Ratio(), Ratio()), (Quantiles(), Quantiles())
    for cluster in clusters:
        ratios[0].add(sum(cluster), len(cluster))
        quantiles[0].add(np.array(cluster))
        for place, value in enumerate(cluster):
            ratios[1].add(value, 1, more=place > 0)
            quantiles[1].add(np.array([value]), more=place > 0)
    assert ratios[1].clusters == len(clusters)
    assert ratios[1].mean == pytest.approx(ratios[0].mean)
    errors = [ratio.standard_error or 0 for ratio in ratios]
    assert errors[1] == pytest.approx(errors[0], rel=1e-6, abs=1e-6)
    assert quantiles[0].result(0.5) == quantiles[1].result(0.5)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.lists(st.floats(SMALLEST, LARGEST) | st.just(0.0), min_size=1, max_size=40),
        min_size=1,
        max_size=NUM_GROUPS + 3,
    )
)
def test_quantiles_are_within_a_percent(clusters: list[list[float]]) -> None:
    quantiles = Quantiles()
    for cluster in clusters:
        quantiles.add(np.array(cluster))
    values = np.concatenate(clusters)
    for share in (0.0, *SHARES, 1.0):
        exact = np.quantile(values, share, method="inverted_cdf")
        # At the border itself a value may count as 0.
        found = quantiles.result(share)["value"]
        assert found == pytest.approx(exact, rel=0.01001, abs=SMALLEST)
        assert min(values.min(), found) in (0, values.min()) and found <= max(values)


def test_values_out_of_range_count_as_the_border() -> None:
    quantiles = Quantiles()
    quantiles.add(np.array([-1e-9, 0.0, 1e9]))
    assert quantiles.result(0.5)["value"] == 0
    assert quantiles.result(1)["value"] == pytest.approx(LARGEST, rel=0.02)


@pytest.mark.parametrize("share", SHARES)
def test_the_error_of_a_quantile_is_its_spread_over_new_texts(share: float) -> None:
    """Windows whose values are correlated: the error told is the one found over many such texts."""
    random = np.random.default_rng(2)
    found, told = [], []
    for _ in range(200):
        quantiles = Quantiles()
        for _ in range(150):
            window = random.normal(0, 0.7)  # all values of a window share it
            quantiles.add(np.exp(window + random.normal(0, 1, 40)))
        result = quantiles.result(share)
        found.append(result["value"])
        told.append(result["standard_error"])
    # 200 texts tell a spread to 5 %; groups tell a text's error to some 12 %, and no bias beyond.
    assert np.mean(told) == pytest.approx(np.std(found), rel=0.2)


def test_the_order_of_equal_sums_is_the_same_to_the_bit() -> None:
    values = np.random.default_rng(3).lognormal(0, 2, (40, 100))
    results = []
    for _ in range(2):
        quantiles, ratio = Quantiles(), Ratio()
        for cluster in values:
            quantiles.add(cluster)
            ratio.add(float(cluster.sum()), len(cluster))
        results.append([ratio.result(), *(quantiles.result(share) for share in SHARES)])
    assert results[0] == results[1]
