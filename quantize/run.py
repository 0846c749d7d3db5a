"""What quantizes on the way from a checkpoint or fp32 folder to a model folder.

export_model(open_checkpoint("gpt2"), "out", precision_of("int4"))
export_model(ModelFolder.open("fp32-folder"), "out", precision_of("int4"))     # the same bytes
export_model(open_checkpoint("gpt2"), "out", planned(Plan.read("plan.json")))
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from ..export.folder import ModelFolder
from ..export.manifest import PrecisionEntry, RotationEntry
from ..export.writing import Change, open_decoder
from .plan import Plan, choose, plan_for
from .precisions import FULL
from .rewrite import Rewrite
from .rotation import Rotation


class Quantized:
    """A ``Change`` that gives a graph the formats of a plan, which may be made for the graph."""

    def __init__(self, plan_of: Callable[[ir.Model], Plan]) -> None:
        self._plan_of = plan_of

    def apply(self, model: ir.Model) -> None:
        """Runs the passes; what the last reports fills up when the weights are written."""
        self.plan = self._plan_of(model)
        self._rotation = rotate(self.plan, model)
        self._rewrite = Rewrite(self.plan)
        self._rewrite.apply(model)

    @property
    def name(self) -> str:
        """The plan's, once it is made."""
        return self.plan.name

    def describe(self, num_parameters: int) -> PrecisionEntry:
        """The manifest's ``precision``."""
        if self.plan.name == FULL:
            return PrecisionEntry(name=FULL)
        return self.plan.describe(self._rotation, self._rewrite.report.describe(num_parameters))


def rotate(plan: Plan, model: ir.Model) -> RotationEntry | None:
    """Rotates the weights of ``model`` as the plan says; what that did, None if it says nothing."""
    if plan.rotation is None:
        return None
    outcome = Rotation(plan.rotation.seed, plan.rotation.parts).apply(model)
    return RotationEntry(
        seed=plan.rotation.seed, parts=tuple(outcome.changed), skipped=outcome.skipped
    )


def precision_of(
    precision: str, block_size: int | None = None, head: str | None = None
) -> Change | None:
    """The change to a precision by name, None for fp32; RequestError lists the known."""
    choice = choose(precision, block_size, head)
    return Quantized(choice.plan) if choice.changes else None


def planned(plan: Plan) -> Change:
    """The change to ``plan``; on its way to a folder it raises what ``Plan.fitting`` raises."""
    return Quantized(plan.fitting)


def plan_of(folder: ModelFolder) -> Plan:
    """The plan of a model folder; that of an fp32 one names every weight that could be quantized.

    Raises ModelFolderError for a graph that we cannot have written.
    """
    precision = folder.manifest.precision
    if precision.report is None:
        return plan_for(open_decoder(folder).model, FULL)
    return Plan.of(precision, precision.report)
