"""Who is told what happens while a model is made: its plan, how far it is, and other news.

    export_model(checkpoint, "out", observer=Observer(plan=print))

Standard library only: whoever loads a model may give one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .later import later
from .quantities import ByteProgress

if TYPE_CHECKING:
    from .plan import ExportPlan
else:
    ExportPlan = later("pocketlm.export.plan.ExportPlan")


def _nothing(*_: object) -> None:
    pass


def _undrawn(repository: str, num_bytes: int) -> AbstractContextManager[ByteProgress]:
    return nullcontext(_nothing)


@dataclass(frozen=True)
class Observer:
    """Callbacks, each of which may be left out.

    plan       called once before anything is written, with what will be
    progress   with the bytes of the weights written so far, and those in all
    message    with a line that a person should read
    download   with a repository and the bytes to fetch; returns a context with the progress
               callback of the download
    """

    plan: Callable[[ExportPlan], object] = _nothing
    progress: ByteProgress = _nothing
    message: Callable[[str], object] = _nothing
    download: Callable[[str, int], AbstractContextManager[ByteProgress]] = _undrawn


SILENT = Observer()
