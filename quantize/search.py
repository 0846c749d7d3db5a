"""The plan that keeps a promise: fewest bytes for a KL, or least KL for some bytes.

    options = options_of(model, feedbacks, windows)
    steps = frontier(options)                     # from the smallest plan to the closest one
    steps[17].formats, steps[17].num_bytes, steps[17].kl

What one weight's rounding adds is measured: the rest of the network is run with that weight in
``PROBE`` and all others in full precision. Every layer runs once, over the streams of all weights
before it, so that one layer is in memory at a time. Another format adds as much more or less as its
error does in the weight's own objective tr(E H Eᵀ), H the Hessian of its inputs: KL is quadratic in
small errors. The KL of several weights is the sum of each (benchmarks/NOTES.md shows how nearly).

Then every weight begins in its smallest format, and takes the steps of its lower convex hull; the
steps of all weights in the order of KL saved for each byte are the frontier: of any length of it,
no other plan of these formats has less KL for its bytes (Lagrange; Everett 1963). That is what
mlx-lm's and llama.cpp's searches for a target size do with other measures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

from ..export.blas import single_threaded_products
from ..export.errors import RequestError
from ..export.external_data import most_bytes, plan_ranges
from ..export.observer import Observer
from ..export.quantities import size_text
from ..export.threads import default_threads
from .calibration import Calibrated
from .feedback import Feedbacks
from .fidelity import Progress, Windows, chunks, mean_kl, run_rows
from .formats import Format, find_format
from .layerwise import OpenPart, Part, Values, split
from .plan import Plan, Rotated
from .precisions import FULL, MIXED, Budget
from .select import Selected, select
from .weights import Floats, LinearWeight

PROBE = "int4-block64"
# From small to large; W8A8 is not among them: its activations lose what no objective of weights
# tells, and blocks of 8 bits have less KL for as many bytes.
LADDER = (
    "int4-block128",
    "int4-block128-zp",
    "int4-block64",
    "int4-block64-zp",
    "int4-block32",
    "int4-block32-zp",
    "int8-block128",
    "int8-block32",
    FULL,
)
# Of the windows that were calibrated on: every weight runs through all layers behind it.
SENSITIVITY_ROWS, SENSITIVITY_TOKENS = 2, 256
# What text that nobody has seen may lose more than the windows that a promise is verified on.
MARGIN = 0.8


def search(
    found: Calibrated, budget: Budget, divergence: Callable[[Plan], float], observer: Observer
) -> Plan:
    """The plan that keeps ``budget``, ``divergence`` being that of a model written by a plan.

    Raises RequestError for fewer bytes than any plan has.
    """
    observer.message("measuring what each weight adds when it is rounded")
    windows = found.seen[-SENSITIVITY_ROWS:, :SENSITIVITY_TOKENS]
    options = options_of(found.model, found.feedbacks, windows)
    whole = sum(one.num_bytes for some in options.values() for one in some if one.format == FULL)
    others = plan_ranges(found.model)[1] - whole
    if budget.max_bytes is not None:
        return _plan(closest_within(options, budget.max_bytes, others))
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


def _plan(step: Step) -> Plan:
    return Plan(name=MIXED, formats=step.formats, rotation=Rotated())


@dataclass(frozen=True)
class Option:
    """A format that a weight can have."""

    format: str
    num_bytes: int
    kl: float  # nats per token that it adds


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


def closest_within(
    options: Mapping[str, Sequence[Option]], max_bytes: int, other_bytes: int = 0
) -> Step:
    """The frontier's way as far as ``max_bytes`` go, leaving out steps that do not fit.

    RequestError names the fewest bytes that can be had.
    """
    smallest, *_ = steps = frontier(options, other_bytes, max_bytes)
    if smallest.num_bytes > max_bytes:
        raise RequestError(
            f"the budget is {max_bytes:,} bytes, expected at least {smallest.num_bytes:,}: the "
            "smallest plan for this model; allow as many, or take a smaller model"
        )
    return steps[-1]


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


# Sensitivities ------------------------------------------------------------------------------------


def options_of(
    model: ir.Model,
    feedbacks: Feedbacks,
    windows: Windows,
    progress: Progress = lambda done, total: None,
) -> dict[str, list[Option]]:
    """What every weight of ``model`` (float32, rotated, lazy) could be, and what that would add.

    ``windows`` are token ids (rows, window); their products need not have been measured.
    """
    weights = {name: one for name, one in select(model).items() if one.obstacle is None}
    probes = {name: _fitted(one, PROBE) for name, one in weights.items()}
    rounded = {
        name: partial(_as_stored, probe, weights[name].weight, feedbacks)
        for name, probe in probes.items()
        if probe is not None
    }
    measured = sensitivities(model, windows, rounded, progress)
    return {
        name: _options(selected, probes[name], measured.get(name, 0.0), feedbacks)
        for name, selected in weights.items()
    }


def _options(
    selected: Selected, probe: Format | None, measured: float, feedbacks: Feedbacks
) -> list[Option]:
    weight = selected.weight
    full = Option(FULL, weight.weight.nbytes, 0.0)
    if probe is None:
        return [full]
    fitted = {one.name: one for name in LADDER if (one := _fitted(selected, name)) is not None}
    hessian = feedbacks.hessian(weight.name)
    sizes, objectives = {}, {}
    for name, one in {**fitted, probe.name: probe}.items():
        # Nearest rounding on both sides: error feedback lowers all formats about alike.
        after, sizes[name] = unpacked(one, weight)
        objectives[name] = objective(weight, after, hessian)
    whole = objectives[probe.name] or 1.0
    return [
        *(Option(name, sizes[name], measured * objectives[name] / whole) for name in fitted),
        full,
    ]


def _fitted(selected: Selected, name: str) -> Format | None:
    """The format as the weight can have it, None if it must stay as it is."""
    if name == FULL:
        return None
    fitted = selected.fitted(find_format(name))
    return None if isinstance(fitted, str) else fitted


def unpacked(
    number_format: Format, weight: LinearWeight, feedbacks: Feedbacks | None = None
) -> tuple[Floats, int]:
    """(N, K): what is left of a weight once it has been packed, with error feedback or without.

    And the bytes that its parts take in a file, at most.
    """
    found: list[Floats] = []
    feedback = feedbacks.of(weight.name) if feedbacks is not None else None
    parts = number_format.packed(
        weight, 0, weight.out_features, lambda before, after: found.append(after.copy()), feedback
    )
    return np.concatenate(found), sum(most_bytes(part.nbytes) for part in parts.values())


def _as_stored(number_format: Format, weight: LinearWeight, feedbacks: Feedbacks) -> Floats:
    after, _ = unpacked(number_format, weight, feedbacks)
    return after if weight.transposed else np.ascontiguousarray(after.T)


def objective(weight: LinearWeight, after: Floats, hessian: Floats | None) -> float:
    """tr(E H Eᵀ) of the error E (N, K); of inputs that were never measured, H is one."""
    total = 0.0
    for first, rows in weight.runs(0, weight.out_features):
        error = rows - after[first : first + len(rows)]
        spread = error if hessian is None else error @ hessian
        total += float(np.einsum("nk,nk->", spread, error, dtype=np.float64))
    return total


def sensitivities(
    model: ir.Model,
    windows: Windows,
    rounded: Mapping[str, Callable[[], Floats]],
    progress: Progress = lambda done, total: None,
) -> dict[str, float]:
    """KL in nats per token that each weight adds with the values that ``rounded`` gives.

    Those are of the shape that the weight is stored in.

    Streams of all variants, (rows, window, D) each, are held while the layers pass.
    """
    streams: dict[str, Values] = {"": {}}
    *parts, head = split(model)
    for number, part in enumerate(parts):
        progress(number, len(parts) + 1)
        with part.open() as opened:
            begun = {
                name: run_rows(opened, windows, streams[""], {name: values})
                for name, values in _replacements(part, rounded)
            }
            streams = {
                name: run_rows(opened, windows, values, _again(name, part, rounded))
                for name, values in streams.items()
            } | begun
    progress(len(parts), len(parts) + 1)
    with head.open() as opened:
        streams |= {
            name: streams[""] for name, _ in _replacements(head, rounded) if name not in streams
        }
        kl = dict.fromkeys(streams, 0.0)
        for rows in chunks(windows):
            reference = _logits(opened, windows, streams[""], rows, {})
            for name, values in streams.items():
                if name:
                    replaced = _again(name, head, rounded)
                    other = _logits(opened, windows, values, rows, replaced)
                    kl[name] += mean_kl(reference, other) * len(windows[rows]) / len(windows)
    del kl[""]
    return kl


def _replacements(
    part: Part, rounded: Mapping[str, Callable[[], Floats]]
) -> Iterator[tuple[str, Floats]]:
    """Of the weights of a part those that are to be rounded, as they are stored."""
    names = [str(weight.name) for weight in part.weights() if str(weight.name) in rounded]
    with single_threaded_products(), ThreadPoolExecutor(default_threads()) as pool:
        found = list(pool.map(lambda name: rounded[name](), names))
    yield from zip(names, found, strict=True)


def _again(name: str, part: Part, rounded: Mapping[str, Callable[[], Floats]]) -> dict[str, Floats]:
    """A tied table is met twice: what to replace in the head of the variant of that name."""
    return dict(_replacements(part, {name: rounded[name]} if name else {}))


def _logits(
    head: OpenPart, windows: Windows, values: Values, rows: slice, replaced: Values
) -> Floats:
    """(R, V)."""
    some = {name: array[rows] for name, array in values.items()}
    (logits,) = head.run(windows[rows], some, replaced).values()
    return logits.reshape(-1, logits.shape[-1])
