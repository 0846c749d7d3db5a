"""Error feedback: equal to textbook GPTQ, never worse than plain rounding, the same for every cut.

Levels: the slow twin in float64 (GPTQ with the inverse of the Hessian), properties (hypothesis),
packed weights.
"""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pocketlm.quantize import feedback
from pocketlm.quantize.feedback import PANEL, Feedback, Feedbacks, Grid, NotPositive, panels
from pocketlm.quantize.formats.block import Block
from pocketlm.quantize.formats.int8_channel import Int8Channel
from pocketlm.quantize.formats.int8_channel_asym import Int8ChannelAsym

Floats = NDArray[np.float32]
FORMATS = [
    Block(4, 32),
    Block(4, 64, zero_points=True),
    Block(8, 32),
    Int8Channel(),
    Int8ChannelAsym(),
]


def hessian(k: int, seed: int = 0, samples: int | None = None, dtype: Any = np.float32) -> Any:
    """Of correlated inputs of unequal size."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((samples or 4 * k, k)) @ (
        np.eye(k) + 0.5 * random.standard_normal((k, k)) / np.sqrt(k)
    )
    x *= np.exp(random.standard_normal(k))
    return (x.T @ x / len(x)).astype(dtype)


def random_rows(n: int, k: int, seed: int = 1, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(seed).standard_normal((n, k)).astype(dtype)


def grid_of(rows: Any, size: int, largest: int = 7) -> Grid:
    """Symmetric, holding every number."""
    groups = [np.abs(rows[:, i : i + size]).max(axis=1) for i in range(0, rows.shape[1], size)]
    scales = np.maximum(np.stack(groups, axis=1) / largest, 1e-6)
    return Grid(scales, np.zeros_like(scales), size, -largest, largest)


def textbook(rows: Any, grid: Grid, h: Any, order: Any, damping: float) -> Any:
    """GPTQ (arXiv 2210.17323, algorithm 1) one column after another, with the inverse of H."""
    h = h + damping * np.diag(h).mean() * np.eye(len(h))
    upper = np.linalg.cholesky(np.linalg.inv(h[np.ix_(order, order)])).T
    w, codes = rows[:, order].copy(), np.empty_like(rows)
    for i, column in enumerate(order):
        scale = grid.scales[:, column // grid.size]
        zero = grid.zeros[:, column // grid.size]
        code = np.clip(np.rint(w[:, i] / scale) + zero, grid.low, grid.high)
        codes[:, column] = code
        error = (w[:, i] - (code - zero) * scale) / upper[i, i]
        w[:, i:] -= np.outer(error, upper[i, i:])
    return codes


# Against the slow twin ----------------------------------------------------------------------------


@pytest.mark.parametrize("k, size", [(96, 32), (160, 160), (300, 128)])
def test_codes_are_those_of_textbook_gptq(
    k: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feedback, "SWEEPS", 0)
    h, rows = hessian(k, dtype=np.float64), random_rows(40, k, dtype=np.float64)
    grid = grid_of(rows, size)
    fed = Feedback(h, damping=0.01)
    codes, found = fed.round(rows, [grid])
    expected = textbook(rows, grid, h, fed.factor(size).order[::-1], 0.01)
    # Rows that lose less when plainly rounded are not GPTQ's: there are none here.
    assert np.array_equal(codes, expected)
    assert np.array_equal(found.scales, grid.scales)


def test_float32_codes_are_those_of_float64_but_for_ties() -> None:
    h, rows = hessian(256, dtype=np.float64), random_rows(64, 256)
    grid = grid_of(rows, 64)
    one, on = Feedback(h).round(rows.astype(np.float64), [grid])
    other, other_on = Feedback(h.astype(np.float32)).round(rows, [grid])
    losses = [
        Feedback(h).loss(rows - on_grid.values(codes)).sum()
        for codes, on_grid in ((one, on), (other, other_on))
    ]
    # A tie that falls otherwise sends the rest of its row another way, no better and no worse.
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    assert (one == other).mean() > 0.9


def test_the_factor_is_that_of_the_damped_hessian() -> None:
    h = hessian(300, dtype=np.float32)
    found = Feedback(h, damping=0.05).factor(64)
    lower = (found.ratios * found.diagonal).astype(np.float64)
    damped = h.astype(np.float64) + 0.05 * np.diag(h).mean() * np.eye(300)
    expected = damped[np.ix_(found.order, found.order)]
    np.testing.assert_allclose(lower @ lower.T, expected, atol=1e-6 * np.abs(h).max())
    assert np.array_equal(np.sort(found.order), np.arange(300))
    assert found.order[-44:].min() == 256  # the short group


# Properties ---------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 130),
    st.sampled_from([(16, 16), (48, 16), (64, 64), (80, 32), (130, 130)]),
    st.integers(1, 200),
    st.sampled_from([1, 7, 127]),
    st.integers(0, 2**32 - 1),
)
def test_no_row_loses_more_than_rounded_plainly(
    n: int, shape: tuple[int, int], samples: int, largest: int, seed: int
) -> None:
    k, size = shape
    h, rows = hessian(k, seed, samples), random_rows(n, k, seed)
    grid, fed = grid_of(rows, size, largest), Feedback(h)
    codes, found = fed.round(rows, [grid])
    plain = fed.loss(rows - grid.values(grid.codes(rows)))
    loss = fed.loss(rows - found.values(codes))
    assert np.all(loss <= plain * (1 + 1e-4) + 1e-6)
    assert codes.min() >= grid.low and codes.max() <= grid.high
    assert np.array_equal(codes, np.rint(codes)) and np.isfinite(found.scales).all()


def test_feedback_loses_much_less_and_several_grids_less_still() -> None:
    h, rows = hessian(256), random_rows(64, 256)
    fed, grid = Feedback(h), grid_of(rows, 64)
    others = [Grid(grid.scales * f, grid.zeros, 64, -7, 7) for f in (0.95, 0.9, 0.85)]
    plain = fed.loss(rows - grid.values(grid.codes(rows))).sum()
    losses = []
    for grids in ([grid], [grid, *others]):
        codes, found = fed.round(rows, grids)
        losses.append(fed.loss(rows - found.values(codes)).sum() / plain)
    assert losses[0] < 0.6
    assert losses[1] < 0.97 * losses[0]


def test_rows_that_are_looked_up_too_stay_nearer_to_themselves() -> None:
    """What a table makes of the head's inputs is not all that it is used for."""
    h, rows = hessian(256), random_rows(64, 256)
    statistics: Any = SimpleNamespace(
        hessian_id=lambda name: (0, name), hessian=lambda name: h.copy()
    )
    feedbacks = Feedbacks(statistics, tables=["table"])
    error, loss = {}, {}
    for name in ("table", "other"):
        fed = feedbacks.of(name)
        assert fed is not None
        codes, grid = fed.round(rows, [grid_of(rows, 64)])
        off = rows - grid.values(codes)
        error[name], loss[name] = np.square(off).mean(), Feedback(h).loss(off).mean()
    assert error["table"] < 0.9 * error["other"]
    assert loss["other"] < loss["table"]


def test_a_row_does_not_depend_on_its_company() -> None:
    h, rows = hessian(200), random_rows(3 * PANEL + 5, 200)
    fed, grid = Feedback(h), grid_of(rows, 64)
    together, on = fed.round(rows, [grid])
    for start, stop in ((0, 1), (17, 203), (PANEL - 1, 2 * PANEL + 1)):
        part = slice(start, stop)
        alone, on_alone = fed.round(rows[part], [grid.rows(part)], first=start)
        assert np.array_equal(alone, together[part])
        assert np.array_equal(on_alone.scales, on.scales[part])


@pytest.mark.parametrize("number_format", FORMATS, ids=lambda f: f.name)
def test_threads_that_share_a_hessian_give_the_same_bytes(number_format: Any) -> None:
    h, rows = hessian(128), random_rows(64, 128)
    weight = rows if isinstance(number_format, Block) else rows.T
    expected = number_format.pack(weight, Feedback(h))
    shared, found = Feedback(h), {}

    def pack(number: int) -> None:
        found[number] = number_format.pack(weight, shared)

    threads = [threading.Thread(target=pack, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for packed in found.values():
        assert all(np.array_equal(a, b) for a, b in zip(packed, expected, strict=True))
    assert len(found) == 4


@pytest.mark.parametrize("number_format", FORMATS, ids=lambda f: f.name)
def test_packed_weights_lose_less_on_what_was_measured(number_format: Any) -> None:
    h, rows = hessian(128), random_rows(48, 128)
    weight = rows if isinstance(number_format, Block) else np.ascontiguousarray(rows.T)
    losses = []
    for fed in (None, Feedback(h)):
        error = weight - number_format.unpack(*number_format.pack(weight, fed))
        losses.append(Feedback(h).loss(error if isinstance(number_format, Block) else error.T))
    assert np.all(losses[1] <= losses[0] * 1.0001)
    assert losses[1].sum() < 0.7 * losses[0].sum()


# What cannot be measured --------------------------------------------------------------------------


def test_inputs_that_are_always_zero_do_no_harm() -> None:
    h, rows = hessian(64), random_rows(8, 64)
    h[10:20] = h[:, 10:20] = 0
    fed, grid = Feedback(h), grid_of(rows, 32)
    codes, found = fed.round(rows, [grid])
    assert np.isfinite(found.values(codes)).all()
    plain = fed.loss(rows - grid.values(grid.codes(rows))).sum()
    assert fed.loss(rows - found.values(codes)).sum() < plain


@pytest.mark.parametrize(
    "h, message",
    [
        (np.zeros((32, 32)), "not positive"),
        (-np.eye(32), "not positive"),
        (np.full((32, 32), np.nan), "not finite"),
        (np.where(np.eye(32) > 0, np.inf, 0), "not finite"),
        (np.where(np.eye(32) > 0, 1, 2.0), "not positive"),
    ],
)
def test_a_hessian_without_a_factor_is_refused(h: Any, message: str) -> None:
    rows = random_rows(4, 32)
    fed = Feedback(h.astype(np.float32))
    for _ in range(2):  # and is not taken for one the second time
        with pytest.raises(NotPositive, match=message):
            fed.round(rows, [grid_of(rows, 16)])


def test_runs_are_cut_where_panels_end() -> None:
    rows = random_rows(5 * PANEL + 7, 3)
    cuts = [0, 1, 50, 50 + PANEL, 60 + 3 * PANEL, len(rows)]
    runs = [(1000 + a, rows[a:b]) for a, b in zip(cuts, cuts[1:], strict=False)]
    found = list(panels(iter(runs)))
    assert all(first % PANEL == 0 for first, _ in found[1:])
    assert np.array_equal(np.concatenate([part for _, part in found]), rows)
    assert all(np.array_equal(rows[first - 1000 :][: len(part)], part) for first, part in found)
