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
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from ..export.errors import RequestError
from ..export.folder import ModelFolder
from ..export.observer import Observer
from ..export.writing import Change, export_model, open_decoder
from .plan import Plan, choose, plan_for
from .precisions import FULL, Budget, Calibration
from .rewrite import Rewrite
from .rotation import Rotation

if TYPE_CHECKING:
    from .calibration import Calibrated, Declare

DREAMER = "int8"  # the precision that a model dreams in


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
        obstacle = _obstacle(self._calibration, declare)
        if obstacle is not None and self._calibration.most_seconds is not None:
            observer.message(f"not calibrated: {obstacle}")
            yield
            return
        if declare is None:
            raise RequestError(f"cannot be calibrated: {obstacle}")
        from .calibration import calibrated
        from .search import search

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
                divergence = partial(_divergence, found, declare)
                self._plan_of = search(found, self._budget, divergence, observer).fitting
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


def _obstacle(calibration: Calibration, declare: Declare | None) -> str | None:
    """Why a model is not calibrated, None where it is."""
    if declare is None:
        return (
            "found a traced graph, expected one that pocketlm declares; leave calibration out (in "
            "a command: --calibrate none)"
        )
    from .calibration import forecast, forecast_text

    found = forecast(declare().model, calibration.tokens)
    if calibration.most_seconds is None or found.seconds <= calibration.most_seconds:
        return None
    return f"it would take {forecast_text(found)}; to do it all the same, say: --calibrate dream"


def _divergence(found: Calibrated, declare: Declare, plan: Plan) -> float:
    """Measured: the model is written as ``plan`` says, and removed again."""
    candidate = Quantized(plan.fitting, found=found)
    with tempfile.TemporaryDirectory(dir=found.folder) as place:
        export_model(declare(), Path(place) / "candidate", candidate)
    return float((candidate.plan.promise or {}).get("kl", 0.0))  # of float32 none is measured


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
