"""The plan that keeps a promise: fewest bytes for a KL, or least KL for some bytes.

    options = options_of(model, feedbacks, windows)
    steps = frontier(options)                     # from the smallest plan to the closest one
    steps[17].formats, steps[17].num_bytes, steps[17].kl

Every weight begins in its smallest format, and takes the steps of its lower convex hull; the
steps of all weights in the order of KL saved for each byte are the frontier: of any length of it,
no other plan of these formats has less KL for its bytes (Lagrange; Everett 1963). That is what
mlx-lm's and llama.cpp's searches for a target size do with other measures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..export.external_data import plan_ranges
from ..export.observer import Observer
from ..export.quantities import size_text
from .calibration import Calibrated
from .formats import find_format
from .options import LADDER, Option, kept_options
from .plan import Plan, Rotated
from .precisions import FULL, MIXED, Budget
from .select import select

# What text that nobody has seen may lose more than the windows that a promise is verified on.
MARGIN = 0.8


def search(
    found: Calibrated, budget: Budget, divergence: Callable[[Plan], float], observer: Observer
) -> Plan:
    """The plan that keeps ``budget``, ``divergence`` being that of a model written by a plan.

    With fewer bytes than any plan has it is the smallest.
    """
    options = kept_options(found, observer)
    whole = sum(one.num_bytes for some in options.values() for one in some if one.format == FULL)
    others = plan_ranges(found.model)[1] - whole
    if budget.max_bytes is not None:
        step = frontier(options, others, budget.max_bytes)[-1]
        # By whole pages even the smallest may be too large that are not by what is in them.
        fits = step.num_bytes <= budget.max_bytes
        return _plan(step) if fits else smallest_plan(found.model)
    steps = frontier(options, others)
    assert budget.max_kl is not None
    limit = MARGIN * budget.max_kl

    def keeps(step: Step) -> bool:
        kl = divergence(_plan(step))
        observer.message(
            f"{size_text(step.num_bytes)}: {kl:.3g} nats per token (predicted {step.kl:.3g})"
        )
        return kl <= limit

    return _plan(smallest_that_keeps(thinned(steps), keeps))


def smallest_plan(model: ir.Model) -> Plan:
    """Every weight in its smallest format."""
    smallest = find_format(LADDER[0])
    fitted = {name: one.fitted(smallest) for name, one in select(model).items()}
    formats = {name: FULL if isinstance(f, str) else f.name for name, f in fitted.items()}
    return Plan(name=MIXED, formats=formats, rotation=Rotated())


def _plan(step: Step) -> Plan:
    return Plan(name=MIXED, formats=step.formats, rotation=Rotated())


@dataclass(frozen=True)
class Step:
    """A plan on the frontier."""

    formats: dict[str, str]
    num_bytes: int  # of all weights of the model
    kl: float  # predicted


def frontier(
    options: Mapping[str, Sequence[Option]], other_bytes: int = 0, max_bytes: float = math.inf
) -> list[Step]:
    """Plans from the smallest to the one with the least KL, each a weight's step from the last.

    ``other_bytes`` are those of what has no options. A step that would lead beyond ``max_bytes`` is
    left out, and so are all further ones of that weight: smaller ones may still fit.
    """
    hulls = {name: _hull(some) for name, some in options.items()}
    chosen = {name: hull[0] for name, hull in hulls.items()}
    moves = [
        (_slope(before, after), name, after)
        for name, hull in hulls.items()
        for before, after in zip(hull, hull[1:], strict=False)
    ]
    moves.sort(key=lambda move: -move[0])  # stable: a weight's own steps stay in order
    steps = [_step(chosen, other_bytes)]
    full = set()
    for _, name, option in moves:
        step = _step({**chosen, name: option}, other_bytes)
        if name in full or step.num_bytes > max_bytes:
            full.add(name)
            continue
        chosen[name] = option
        steps.append(step)
    return steps


def _step(chosen: Mapping[str, Option], other_bytes: int) -> Step:
    return Step(
        {name: option.format for name, option in chosen.items()},
        other_bytes + sum(option.num_bytes for option in chosen.values()),
        sum(option.kl for option in chosen.values()),
    )


def _slope(before: Option, after: Option) -> float:
    return (before.kl - after.kl) / (after.num_bytes - before.num_bytes)


def _hull(options: Sequence[Option]) -> list[Option]:
    """The lower convex hull: ever fewer nats saved for each byte more."""
    hull: list[Option] = []
    for option in sorted(options, key=lambda option: (option.num_bytes, option.kl)):
        if hull and (option.num_bytes == hull[-1].num_bytes or option.kl >= hull[-1].kl):
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], option):
            hull.pop()
        hull.append(option)
    return hull


def thinned(steps: Sequence[Step], count: int = 64) -> list[Step]:
    """About ``count`` of them, evenly far apart in the logarithm of the KL; the first and last."""
    floor = max(steps[0].kl, 1e-30) * 1e-6
    marks = np.log([max(step.kl, floor) for step in steps])
    places = np.searchsorted(-marks, np.linspace(-marks[0], -marks[-1], count))
    return [steps[i] for i in sorted({0, len(steps) - 1, *(int(i) for i in places)})]


def smallest_that_keeps(steps: Sequence[Step], keeps: Callable[[Step], bool]) -> Step:
    """The first of ``steps`` that ``keeps`` says so of, by halving; the last needs no asking.

    A looser promise halves the same way, so that its step is never behind a stricter one's.
    """
    low, high = 0, len(steps) - 1
    while low < high:
        middle = (low + high) // 2
        if keeps(steps[middle]):
            high = middle
        else:
            low = middle + 1
    return steps[high]
