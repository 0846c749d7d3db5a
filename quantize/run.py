"""What quantizes on the way from a checkpoint or fp32 folder to a model folder.

export_model(open_checkpoint("gpt2"), "out", precision_of("int4"))
export_model(ModelFolder.open("fp32"), "out", precision_of("int4"))     # the same bytes
export_model(checkpoint, "out", precision_of("int4", calibration=Calibration()))
export_model(checkpoint, "out", within(Budget(max_kl=0.01), Calibration()))
export_model(checkpoint, "out", planned(Plan.read("plan.json")))
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from ..export.errors import RequestError
from ..export.external_data import plan_ranges
from ..export.folder import ModelFolder
from ..export.manifest import PrecisionEntry, PrefillEntry, PromiseEntry, RotationEntry
from ..export.observer import Observer
from ..export.plan import Forecast, forecast_text
from ..export.writing import Change, export_model, open_decoder
from .plan import EVEN, Plan, Rotated, choose, plan_for
from .precisions import FULL, MIXED, PREFILL, Budget, Calibration
from .prefill_graph import ALONE, nothing_to_add, prefill_plan
from .rewrite import Rewrite
from .rotation import Rotation

if TYPE_CHECKING:
    from .calibration import Calibrated, Declare

DREAMER = "int8"  # the precision that a model dreams in
CACHE_WINDOWS = 8  # that the scales of an int8 KV cache are taken from


class Quantized:
    """A ``Change`` that gives a graph the formats of a plan, which may be made for the graph.

    With ``calibration`` roundings make up for each other; with ``budget`` the plan is searched for;
    with ``prefill`` there is a second graph, in W8A8, for many tokens at a time. ``found`` is what
    another change of the same model was calibrated with.
    """

    def __init__(
        self,
        plan_of: Callable[[ir.Model], Plan],
        calibration: Calibration | None = None,
        budget: Budget | None = None,
        found: Calibrated | None = None,
        *,
        prefill: bool = False,
    ) -> None:
        self._plan_of = plan_of
        self._calibration = calibration
        self._budget = budget
        self._found = found
        self._has_prefill = prefill
        self.prefill: ir.Model | None = None

    @contextmanager
    def prepared(self, declare: Declare | None, observer: Observer) -> Iterator[None]:
        """Calibrates and searches, as asked; what that made is there while the block runs."""
        calibration = self._calibration
        obstacle = _obstacle(calibration, declare) if calibration is not None else None
        if calibration is None or (obstacle and calibration.most_seconds is not None):
            if obstacle:
                observer.message(f"not calibrated: {obstacle}")
            yield
            return
        if declare is None:
            raise RequestError(f"cannot be calibrated: {obstacle}")
        from .calibration import calibrated
        from .search import search

        if self._budget is not None and self._budget.max_bytes is not None:
            _check_reachable(declare().model, self._budget.max_bytes)

        def write_dreamer(folder: Path) -> ModelFolder:
            return export_model(declare(), folder, precision_of(DREAMER))

        plan = None if self._budget is not None else self._plan_of(declare().model)
        rotation = plan.rotation if plan is not None else Rotated()
        with calibrated(calibration, declare, rotation, write_dreamer, observer) as found:
            self._found = found
            if self._budget is not None:
                divergence = partial(_divergence, found, declare)
                self._plan_of = search(found, self._budget, divergence, observer).fitting
            yield
            self._found = None

    def forecast(self, model: ir.Model) -> Forecast | None:
        """What calibrating takes."""
        if self._calibration is None:
            return None
        from .forecast import forecast

        return forecast(model, self._calibration)

    def apply(self, model: ir.Model) -> None:
        """Runs the passes; what the last reports fills up when the weights are written."""
        self.plan = self._plan_of(model)
        self._rotation = rotate(self.plan, model)
        spread = self._rotation is not None and "R1" in self._rotation.parts
        if self.plan.name != MIXED and not spread:
            self.plan = self.plan.with_lopsided_rows()
        feedbacks = self._found.feedbacks if self._found else None
        self.prefill = model.clone() if self._has_prefill else None
        self._rewrite = Rewrite(self.plan, feedbacks)
        self._rewrite.apply(model)
        if self.prefill is not None:
            second = prefill_plan(self.plan, self.prefill, spread)
            if self._rotation is None:  # other inputs than those that were measured
                Rotation(parts=ALONE).apply(self.prefill)
                feedbacks = None
            self._second = Rewrite(second, feedbacks, self._rewrite)
            self._second.apply(self.prefill)

    def finish(self, folder: ModelFolder) -> None:
        """Compares ``folder`` with full precision, and gives it a graph with an int8 KV cache.

        Both where there is a calibration.
        """
        if self._found is None or self.plan.name == FULL:
            return
        from ..runtime.session import Session
        from .cache_scales import cache_scales
        from .second_graph import add_int8_cache, with_manifest

        promise = PromiseEntry(
            max_kl=self._budget.max_kl if self._budget else None,
            max_bytes=self._budget.max_bytes if self._budget else None,
            kl=self._found.reference.divergence(folder),
            tokens=self._found.unseen.size,
            text=self._found.entry.kind,
        )
        self.plan = replace(self.plan, calibration=self._found.entry, promise=promise)
        precision = self.describe(folder.manifest.num_parameters)
        folder = with_manifest(folder, replace(folder.manifest, precision=precision))
        if self._calibration is not None:  # not of a candidate
            windows = self._found.seen[:CACHE_WINDOWS]
            add_int8_cache(folder, cache_scales(Session(folder), windows))

    @property
    def name(self) -> str:
        """The plan's, once it is made."""
        return self.plan.name

    def describe(self, num_parameters: int) -> PrecisionEntry:
        """The manifest's ``precision``."""
        prefill = None
        if self.prefill is not None:
            prefill = PrefillEntry(name=PREFILL, tensors=self._second.report.rows())
        if self.plan.name == FULL:
            return PrecisionEntry(name=FULL, prefill=prefill)
        report = self._rewrite.report.describe(num_parameters)
        return replace(self.plan.describe(self._rotation, report), prefill=prefill)


def rotate(plan: Plan, model: ir.Model) -> RotationEntry | None:
    """Rotates the weights of ``model`` as the plan says; what that did, None if it says nothing."""
    if plan.rotation is None:
        return None
    outcome = Rotation(plan.rotation.seed, plan.rotation.parts).apply(model)
    return RotationEntry(
        seed=plan.rotation.seed, parts=tuple(outcome.changed), skipped=outcome.skipped
    )


def _obstacle(calibration: Calibration, declare: Declare | None) -> str | None:
    """Why a model is not calibrated, None where it is."""
    if declare is None:
        return (
            "found a traced graph, expected one that pocketlm declares; leave calibration out (in "
            "a command: --calibrate none)"
        )
    if calibration.most_seconds is None:
        return None
    from .forecast import forecast

    found = forecast(declare().model, calibration)
    if not found.left_out:
        return None
    return f"it would take {forecast_text(found)}; to do it all the same, say: --calibrate dream"


def _check_reachable(model: ir.Model, max_bytes: int) -> None:
    """RequestError for fewer bytes than any plan has; takes no more than a look at the shapes."""
    from .search import smallest_plan

    Quantized(smallest_plan).apply(model)
    _, fewest = plan_ranges(model)
    if fewest > max_bytes:
        raise RequestError(
            f"the budget is {max_bytes:,} bytes, expected at least {fewest:,}: the smallest plan "
            "for this model; allow as many, or take a smaller model"
        )


def _divergence(found: Calibrated, declare: Declare, plan: Plan) -> float:
    """Measured: the model is written as ``plan`` says, and removed again."""
    candidate = Quantized(plan.fitting, found=found)
    with tempfile.TemporaryDirectory(dir=found.folder) as place:
        export_model(declare(), Path(place) / "candidate", candidate)
    return candidate.plan.promise.kl if candidate.plan.promise else 0.0  # float32 loses nothing


def precision_of(
    precision: str,
    block_size: int | None = None,
    head: str | None = None,
    calibration: Calibration | None = None,
    *,
    prefill: bool = False,
) -> Change | None:
    """The change to a precision by name, None for fp32 alone; RequestError lists the known.

    With ``prefill`` there is a second graph for many tokens at a time, here and below.
    """
    choice = choose(precision, block_size, head)
    if prefill and choice.linear_format == EVEN:
        raise nothing_to_add(precision)
    changes = choice.changes or prefill
    return Quantized(choice.plan, calibration, prefill=prefill) if changes else None


def within(budget: Budget, calibration: Calibration, *, prefill: bool = False) -> Change:
    """The change to the plan that keeps ``budget``, which is searched for.

    The budget is that of the decoder's weights alone.
    """

    def before_the_search(model: ir.Model) -> Plan:
        raise RequestError(
            "found a plan that is still to be searched for, expected a known one; leave --dry-run "
            "out, or choose a precision"
        )

    return Quantized(before_the_search, calibration, budget, prefill=prefill)


def planned(plan: Plan, calibration: Calibration | None = None, *, prefill: bool = False) -> Change:
    """The change to ``plan``; on its way to a folder it raises what ``Plan.fitting`` raises."""
    return Quantized(plan.fitting, calibration, prefill=prefill)


def plan_of(folder: ModelFolder) -> Plan:
    """The plan of a model folder; that of an fp32 one names every weight that could be quantized.

    Raises ModelFolderError for a graph that we cannot have written.
    """
    precision = folder.manifest.precision
    if precision.report is None:
        return plan_for(open_decoder(folder).model, FULL)
    return Plan.of(precision, precision.report)
