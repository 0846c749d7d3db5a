"""What quantizes on the way from a checkpoint or fp32 folder to a model folder.

    export_model(open_checkpoint("gpt2"), "out", precision_of("int4"))
    export_model(ModelFolder.open("fp32"), "out", precision_of("int4"))     # the same bytes
    export_model(checkpoint, "out", precision_of("int4", calibration=Calibration()))
    export_model(checkpoint, "out", within(Budget(max_kl=0.01), Calibration()))
    export_model(checkpoint, "out", planned(Plan.read("plan.json")))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ..export.errors import RequestError
from ..export.external_data import plan_ranges
from ..export.folder import ModelFolder
from ..export.observer import Observer
from ..export.quantities import size_text
from ..export.writing import Change, export_model, open_decoder
from .calibration import Calibrated, Calibration, Declare, calibrated
from .plan import Plan, Rotated, choose, plan_for
from .precisions import FULL
from .rewrite import Rewrite
from .rotation import Rotation
from .search import Step, frontier, largest_within, options_of, smallest_that_keeps, thinned

DREAMER = "int8"  # the precision that a model dreams in
SENSITIVITY_WINDOWS = 2
# What text that nobody has seen may lose more than the windows that a promise is verified on.
MARGIN = 0.8


@dataclass(frozen=True)
class Budget:
    """A promise to keep: one of the two."""

    max_kl: float | None = None  # nats per token
    max_bytes: int | None = None  # of the weights


class Quantized:
    """A ``Change`` that gives a graph the formats of a plan, which may be made for the graph.

    With ``calibration`` roundings make up for each other; ``found`` are those of another change of
    the same model. With ``budget`` the plan is searched for.
    """

    def __init__(
        self,
        plan_of: Callable[[ir.Model], Plan],
        calibration: Calibration | None = None,
        budget: Budget | None = None,
        found: Calibrated | None = None,
    ) -> None:
        self._plan_of = plan_of
        self._calibration = calibration
        self._budget = budget
        self._found = found

    @contextmanager
    def prepared(self, declare: Declare | None, observer: Observer) -> Iterator[None]:
        """Calibrates and searches, as asked; what that made is there while the block runs."""
        if self._calibration is None:
            yield
            return
        if declare is None:
            raise RequestError(
                "found a traced graph to calibrate, expected one that pocketlm declares; leave "
                "calibration out (in a command: --calibrate none)"
            )
        rotation = Rotation()
        with calibrated(
            self._calibration,
            declare,
            rotation.apply,
            lambda folder: export_model(declare(), folder, precision_of(DREAMER)),
            observer,
        ) as found:
            self._found = found
            if self._budget is not None:
                searched = Search(found, declare, observer).plan(self._budget)
                self._plan_of = searched.fitting
            yield
            self._found = None

    def apply(self, model: ir.Model) -> None:
        """Runs the passes; what they report fills up when the weights are written."""
        self.plan = self._plan_of(model)
        rotation = self.plan.rotation
        self._rotation = Rotation(rotation.seed, rotation.parts) if rotation else None
        if self._rotation is not None:
            self._rotation.apply(model)
        self._rewrite = Rewrite(self.plan, self._found.feedbacks if self._found else None)
        self._rewrite.apply(model)

    def written(self, folder: ModelFolder) -> None:
        """Compares what was written with full precision, where that was measured."""
        if self._found is None or self.plan.name == FULL:
            return
        promise = dict(self.plan.promise or {})
        promise["kl"] = self._found.reference.divergence(folder)
        promise["tokens"] = self._found.unseen.size
        self.plan = replace(self.plan, calibration=self._found.entry, promise=promise)

    @property
    def name(self) -> str:
        """The plan's, once it is made."""
        return self.plan.name

    def describe(self, num_parameters: int) -> dict[str, Any]:
        """The manifest's ``precision``."""
        if self.plan.name == FULL:
            return {"name": FULL}
        rotation = {"rotation": self._rotation.describe()} if self._rotation else {}
        return self.plan.describe() | rotation | self._rewrite.report.describe(num_parameters)


class Search:
    """For the plan of one model that keeps a budget."""

    def __init__(self, found: Calibrated, declare: Declare, observer: Observer) -> None:
        self._found = found
        self._declare = declare
        self._observer = observer

    def plan(self, budget: Budget) -> Plan:
        """Raises RequestError for fewer bytes than any plan has."""
        steps = self._steps()
        if budget.max_bytes is not None:
            step = largest_within(steps, budget.max_bytes)
            return self._plan(step, {"max_bytes": budget.max_bytes})
        assert budget.max_kl is not None
        promise = {"max_kl": budget.max_kl}
        limit = MARGIN * budget.max_kl
        kept = smallest_that_keeps(thinned(steps), lambda step: self._divergence(step) <= limit)
        return self._plan(kept, promise)

    def _steps(self) -> list[Step]:
        found, observer = self._found, self._observer
        observer.message("measuring what each weight adds when it is rounded")
        windows = found.seen[-SENSITIVITY_WINDOWS:]
        options = options_of(found.model, found.feedbacks, windows)
        whole = sum(max(option.num_bytes for option in some) for some in options.values())
        return frontier(options, plan_ranges(found.model)[1] - whole)

    def _plan(self, step: Step, promise: dict[str, float | int]) -> Plan:
        return Plan(step.formats, rotation=Rotated(), promise=promise)

    def _divergence(self, step: Step) -> float:
        """Measured: the model is written as that plan says, and removed again."""
        plan = self._plan(step, {})
        candidate = Quantized(plan.fitting, found=self._found)
        with tempfile.TemporaryDirectory(dir=self._found.folder) as place:
            export_model(self._declare(), Path(place) / "candidate", candidate)
        kl = (candidate.plan.promise or {}).get("kl", 0.0)  # of float32, nothing is measured
        self._observer.message(
            f"{size_text(step.num_bytes)}: {kl:.3g} nats per token (predicted {step.kl:.3g})"
        )
        return float(kl)


def precision_of(
    precision: str,
    block_size: int | None = None,
    head: str | None = None,
    calibration: Calibration | None = None,
) -> Change | None:
    """The change to a precision by name, None for fp32; RequestError lists the known."""
    choice = choose(precision, block_size, head)
    return Quantized(choice.plan, calibration) if choice.changes else None


def within(budget: Budget, calibration: Calibration) -> Change:
    """The change to the plan that keeps ``budget``."""
    return Quantized(_no_plan, calibration, budget)


def _no_plan(model: ir.Model) -> Plan:
    raise RequestError("found a budget without calibration, expected both; leave neither out")


def planned(plan: Plan, calibration: Calibration | None = None) -> Change:
    """The change to ``plan``; on its way to a folder it raises what ``Plan.fitting`` raises."""
    return Quantized(plan.fitting, calibration)


def plan_of(folder: ModelFolder) -> Plan:
    """The plan of a model folder; that of an fp32 one names every weight that could be quantized.

    Raises ModelFolderError for a graph that we cannot have written.
    """
    precision = folder.manifest["precision"]
    if "tensors" in precision:
        return Plan.of(precision)
    return plan_for(open_decoder(folder).model, FULL)
