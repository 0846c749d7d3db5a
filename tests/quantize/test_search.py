"""The frontier of plans, and what a weight adds: against brute force and the whole graph."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.folder import ModelFolder
from pocketlm.export.graph import Blob, Weight
from pocketlm.export.writing import build_decoder, open_decoder
from pocketlm.quantize.fidelity import Reference, mean_kl
from pocketlm.quantize.layerwise import opened, run_parts, split
from pocketlm.quantize.options import Option, sensitivities
from pocketlm.quantize.search import (
    Step,
    frontier,
    smallest_that_keeps,
    thinned,
)
from pocketlm.quantize.select import select


@st.composite
def choices(draw: st.DrawFn) -> dict[str, list[Option]]:
    """Up to four weights with up to four formats each."""
    found = {}
    for weight in range(draw(st.integers(1, 4))):
        sizes = draw(st.lists(st.integers(1, 50), min_size=1, max_size=4, unique=True))
        found[f"w{weight}"] = [
            Option(f"f{size}", size, draw(st.floats(0, 10, width=16))) for size in sizes
        ]
    return found


@given(choices())
def test_no_plan_is_better_than_the_frontier_on_its_own_terms(
    options: dict[str, list[Option]],
) -> None:
    steps = frontier(options, other_bytes=7)
    assert steps == sorted(steps, key=lambda step: step.num_bytes)
    all_plans = [
        (7 + sum(o.num_bytes for o in plan), sum(o.kl for o in plan))
        for plan in itertools.product(*options.values())
    ]
    for step in steps:
        better = [kl for size, kl in all_plans if size <= step.num_bytes and kl < step.kl - 1e-9]
        # Between two steps there may be others, but at the step's own size there is none better.
        assert not better, (step, better)
    assert steps[0].num_bytes == min(size for size, _ in all_plans)
    assert steps[-1].kl == pytest.approx(min(kl for _, kl in all_plans))


def _steps(count: int) -> list[Step]:
    return [Step({}, 100 + i, float(0.5**i)) for i in range(count)]


@given(st.integers(1, 60), st.lists(st.floats(0, 1), min_size=60, max_size=60))
def test_a_looser_promise_never_takes_more_bytes(count: int, measured: list[float]) -> None:
    """Whatever is measured, even where more bytes are worse."""
    steps = _steps(count)
    chosen = [
        smallest_that_keeps(steps, lambda step, kl=kl: measured[step.num_bytes - 100] <= kl)  # type: ignore[misc]
        for kl in (0.01, 0.1, 0.3, 0.9)
    ]
    sizes = [step.num_bytes for step in chosen]
    assert sizes == sorted(sizes, reverse=True)


def test_the_smallest_step_that_keeps_is_found() -> None:
    steps = _steps(33)
    for limit in (2.0, 0.3, 0.01, 1e-9):
        found = smallest_that_keeps(steps, lambda step, limit=limit: step.kl <= limit)  # type: ignore[misc]
        assert found == next(step for step in steps if step.kl <= limit)


@pytest.mark.parametrize("budget, found", [(102, "large"), (101, "small"), (99, "small")])
def test_a_budget_is_used_as_far_as_it_goes(budget: int, found: str) -> None:
    options = {"w": [Option("small", 100, 1.0), Option("large", 102, 0.5)]}
    assert frontier(options, max_bytes=budget)[-1].formats == {"w": found}


@given(choices(), st.integers(0, 200))
def test_a_budget_is_kept_and_used_at_least_as_far_as_the_frontier(
    options: dict[str, list[Option]], spare: int
) -> None:
    steps = frontier(options)
    budget = steps[0].num_bytes + spare
    found = frontier(options, max_bytes=budget)[-1]
    within = [step for step in steps if step.num_bytes <= budget][-1]
    assert found.num_bytes <= budget
    assert found.kl <= within.kl + 1e-9


def test_a_step_that_does_not_fit_leaves_room_for_smaller_ones() -> None:
    options = {
        "head": [Option("small", 10, 9.0), Option("large", 100, 0.0)],
        "other": [Option("small", 10, 1.0), Option("large", 20, 0.9)],
    }
    assert frontier(options, max_bytes=60)[-1].formats == {"head": "small", "other": "large"}


def test_thinned_steps_keep_the_ends_and_their_order() -> None:
    steps = _steps(300)
    few = thinned(steps, 16)
    assert few[0] == steps[0] and few[-1] == steps[-1]
    assert 8 <= len(few) <= 18
    assert few == sorted(few, key=lambda step: step.num_bytes)


def _rounded(values: NDArray[np.float32]) -> NDArray[np.float32]:
    step = np.abs(values).max() / 7
    return np.asarray(np.rint(values / step) * step, np.float32)


def test_a_weight_adds_what_the_whole_graph_says_with_it_replaced(
    tiny_checkpoint: Path, tiny_folder: ModelFolder
) -> None:
    model = build_decoder(open_checkpoint(tiny_checkpoint)).model
    windows = np.random.default_rng(0).integers(0, 300, (3, 24))
    weights = {name: one.weight.weight for name, one in select(model).items()}
    names = ["wte.weight", "h.0.attn.c_attn.weight", "h.1.mlp.c_proj.weight"]
    found = sensitivities(
        model,
        windows,
        {name: partial(_rounded, weights[name].read()) for name in names},
    )
    assert list(found) == names or set(found) == set(names)
    before = _logits(tiny_folder, windows, {})
    for name in names:
        after = _logits(tiny_folder, windows, {name: _rounded(weights[name].read())})
        assert found[name] == pytest.approx(mean_kl(before, after), rel=1e-3)
        assert found[name] > 1e-6


def _rows(values: NDArray[np.float32], start: int, stop: int) -> NDArray[np.float32]:
    return values[start:stop]


def _logits(
    folder: ModelFolder, windows: NDArray[np.int64], replaced: dict[str, NDArray[np.float32]]
) -> NDArray[np.float32]:
    """(R, V) of the whole graph with other weights, one window at a time."""
    model = open_decoder(folder).model
    for name, values in replaced.items():
        model.graph.initializers[name].const_value = Weight(
            name, values.shape, np.float32, Blob(partial(_rows, values))
        )
    parts = split(model)
    with opened(parts, threads=1) as running:
        (logits,) = run_parts(running, windows).values()
    return logits.reshape(-1, logits.shape[-1])


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(2, 60), st.integers(0, 1 << 30))
def test_mean_kl_is_the_sum_over_the_vocabulary(rows: int, size: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    p, q = (random.normal(0, 5, (rows, size)).astype(np.float32) for _ in range(2))
    log_p, log_q = (z - np.log(np.exp(z).sum(-1, keepdims=True)) for z in map(np.float64, (p, q)))
    expected = (np.exp(log_p) * (log_p - log_q)).sum(-1).mean()
    assert mean_kl(p, q) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert mean_kl(p, p) == 0


def test_a_folder_in_full_precision_does_not_diverge(
    tiny_checkpoint: Path, tiny_folder: ModelFolder
) -> None:
    model = build_decoder(open_checkpoint(tiny_checkpoint)).model
    windows = np.random.default_rng(1).integers(0, 300, (2, 40))
    assert abs(Reference(model, windows).divergence(tiny_folder)) < 1e-6
