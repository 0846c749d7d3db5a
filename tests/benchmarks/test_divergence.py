"""The fast comparison of logits against the formulas in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pocketlm.benchmarks import divergence
from pocketlm.benchmarks.divergence import Comparison, Logits, Rows


def slow_rows(reference: Logits, logits: Logits, targets: NDArray[np.int64]) -> Rows:
    """The definitions, one after the other, in float64."""

    def log_softmax(values: Logits) -> NDArray[np.float64]:
        wide = values.astype(np.float64)
        wide -= wide.max(axis=-1, keepdims=True)
        return np.asarray(wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True)))

    p, q = log_softmax(reference), log_softmax(logits)
    loss = -q[np.arange(len(targets)), targets]
    top = np.argsort(-logits, axis=-1, kind="stable")[:, :5]
    return Rows(
        loss,
        np.exp(-loss),
        (np.exp(p) * (p - q)).sum(axis=-1),
        top,
        np.exp(np.take_along_axis(q, top, axis=-1)),
    )


@settings(deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 12),
    st.integers(1, 300),
    st.sampled_from([0.01, 1.0, 30.0]),
    st.sampled_from([1e-4, 0.1, 3.0]),
    st.sampled_from([1, 1000, 1 << 17]),
)
def test_rows_equal_the_formulas(
    seed: int, count: int, vocab_size: int, scale: float, noise: float, block: int
) -> None:
    random = np.random.default_rng(seed)
    reference = random.normal(0, scale, (count, vocab_size)).astype(np.float32)
    other = (reference + random.normal(0, noise, reference.shape)).astype(np.float32)
    targets = random.integers(0, vocab_size, count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(divergence, "BLOCK_VALUES", block)
        found = Comparison(vocab_size).compare([reference, other, reference], targets)
    for rows, logits in zip(found, (reference, other, reference), strict=True):
        expected = slow_rows(reference, logits, targets)
        np.testing.assert_array_equal(rows.top, expected.top)
        # Float32 has z - m, up to 200 here, to 8e-6, and each exp to 1e-7.
        for name, tolerance in {"loss": 1e-5, "kl": 2e-6}.items():
            values = getattr(expected, name)
            np.testing.assert_allclose(getattr(rows, name), values, rtol=2e-6, atol=tolerance)
        for name in ("probability", "top_probability"):
            values = getattr(expected, name)
            np.testing.assert_allclose(getattr(rows, name), values, rtol=1e-5, atol=1e-7)
    assert (found[2].kl == 0).all()


def test_small_divergences_are_told_to_a_percent() -> None:
    """As between a model and itself in half precision, over a large vocabulary."""
    random = np.random.default_rng(5)
    reference = random.normal(0, 3, (8, 50257)).astype(np.float32)
    other = (reference + random.normal(0, 0.01, reference.shape)).astype(np.float32)
    targets = random.integers(0, 50257, 8)
    found = Comparison(50257).compare([reference, other], targets)[1].kl
    expected = slow_rows(reference, other, targets).kl
    assert 4e-5 < expected.mean() < 6e-5
    np.testing.assert_allclose(found, expected, rtol=0.01)


def test_equal_logits_tie_for_the_smaller_id() -> None:
    logits = np.zeros((1, 9), np.float32)
    logits[0, 7] = 1
    (rows,) = Comparison(9).compare([logits], np.array([0]))
    assert rows.top.tolist() == [[7, 0, 1, 2, 3]]


def test_the_logits_are_left_as_they_were() -> None:
    logits = np.random.default_rng(0).normal(0, 1, (3, 40)).astype(np.float32)
    before = logits.copy()
    Comparison(40).compare([logits, logits], np.array([1, 2, 3]))
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_finite_shows_in_the_loss(wrong: float) -> None:
    logits = np.zeros((2, 5), np.float32)
    logits[1, 2] = wrong
    (rows,) = Comparison(5).compare([logits], np.array([0, 0]))
    assert np.isfinite(rows.loss).tolist() == [True, False]
