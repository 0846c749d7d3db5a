"""Quantize, the one verb of this folder: a checkpoint or fp32 model folder becomes quantized.

export_checkpoint(open_checkpoint("gpt2"), "out", "int4")
quantize_model(ModelFolder.open("fp32-folder"), "out", "int4")        # the same bytes
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from os import PathLike
from pathlib import Path

import onnx_ir as ir

from ..export.checkpoint import Checkpoint
from ..export.errors import RequestError
from ..export.folder import ModelFolder
from ..export.manifest import PrecisionEntry
from ..export.plan import ExportPlan, open_headers
from ..export.publishing import target_of
from ..export.quantities import ByteProgress
from ..export.via_optimum import export_via_optimum
from ..export.writing import Precision, export_model, open_decoder, plan_export, write_folder
from .precisions import FULL
from .report import Report
from .rewrite import Rewrite
from .select import Choice, choose


class Quantized:
    """A ``Precision`` that rewrites the graph to a choice of formats."""

    def __init__(self, choice: Choice) -> None:
        self.choice = choice
        self.report = Report()

    def apply(self, model: ir.Model, num_parameters: int) -> None:
        """Runs the pass; the report fills up when the weights are written."""
        self.report.num_parameters = num_parameters
        Rewrite(model, self.choice, self.report).run()

    def describe(self) -> PrecisionEntry:
        """The manifest's ``precision``."""
        return PrecisionEntry(**asdict(self.choice), report=self.report.describe())


def precision_of(
    precision: str, block_size: int | None = None, head: str | None = None
) -> Precision | None:
    """The graph change for a precision by name, None for fp32; RequestError lists the known."""
    choice = choose(precision, block_size, head)
    return Quantized(choice) if choice is not None else None


def export_checkpoint(
    checkpoint: Checkpoint,
    out: str | PathLike[str],
    precision: str = FULL,
    *,
    block_size: int | None = None,
    head: str | None = None,
    force: bool = False,
    on_plan: Callable[[ExportPlan], None] | None = None,
    progress: ByteProgress | None = None,
) -> ModelFolder:
    """``export_model`` in a precision chosen by name, in one pass over the checkpoint."""
    change = precision_of(precision, block_size, head)
    return export_model(checkpoint, out, change, force=force, on_plan=on_plan, progress=progress)


def export_traced(
    path: str | Path,
    out: str | PathLike[str],
    precision: str = FULL,
    *,
    block_size: int | None = None,
    head: str | None = None,
    tokenizer: str | Path | None = None,
    origin: dict[str, str] | None = None,
    rewrite: bool = True,
    force: bool = False,
    on_plan: Callable[[ExportPlan], None] | None = None,
    progress: ByteProgress | None = None,
) -> ModelFolder:
    """``export_via_optimum`` in a precision chosen by name."""
    return export_via_optimum(
        path,
        out,
        precision_of(precision, block_size, head),
        tokenizer=tokenizer,
        origin=origin,
        rewrite=rewrite,
        force=force,
        on_plan=on_plan,
        progress=progress,
    )


def plan_checkpoint(
    path: str | Path,
    out: str | PathLike[str],
    precision: str = FULL,
    *,
    block_size: int | None = None,
    head: str | None = None,
    tokenizer: str | Path | None = None,
    timed: bool = True,
) -> ExportPlan:
    """What ``export_checkpoint`` of the checkpoint at ``path`` would do; reads headers only.

    A folder with nothing but a config.json will do. ``timed`` is as for ``plan_export``. Raises
    what the export would raise for them.
    """
    change = precision_of(precision, block_size, head)
    return plan_export(open_headers(path, tokenizer), out, change, timed=timed)


def quantize_model(
    folder: ModelFolder,
    out: str | PathLike[str],
    precision: str,
    *,
    block_size: int | None = None,
    head: str | None = None,
    force: bool = False,
    on_plan: Callable[[ExportPlan], None] | None = None,
    progress: ByteProgress | None = None,
) -> ModelFolder:
    """Writes an fp32 model folder again at ``out`` in ``precision``; the source stays as it is.

    Raises RequestError for a folder that is quantized already, or an unknown precision.
    """
    found = folder.manifest.precision.name
    if found != FULL:
        raise RequestError(
            f"{folder.path}: found a model in {found}, expected fp32; quantizing twice loses more "
            "than once - export the checkpoint in the precision you want"
        )
    change = precision_of(precision, block_size, head)
    target = target_of(out, force)
    folder.verify()
    return write_folder(
        open_decoder(folder), target, change, force=force, on_plan=on_plan, progress=progress
    )
