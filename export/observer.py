"""Who is told what happens while a model is made: its plan, how far it is, and other news.

    export_model(checkpoint, "out", observer=Observer(plan=print))

Standard library only: whoever loads a model may give one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
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


def to_stderr(message: str) -> None:
    """One line there: what a user should know although nothing failed."""
    with suppress(OSError):  # a full or closed stderr takes nothing from the work
        print(f"pocketlm: {message}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Observer:
    """Callbacks, each of which may be left out.

    plan       called once before anything is written, with what will be
    progress   with the bytes of the weights written so far, and those in all
    message    with a line that a person should read
    download   with a repository and the bytes to fetch; returns a context with the progress
               callback of the download
    note       with a line that a person should know although nothing failed, as that another
               process is making the model; on stderr unless given
    """

    plan: Callable[[ExportPlan], object] = _nothing
    progress: ByteProgress = _nothing
    message: Callable[[str], object] = _nothing
    download: Callable[[str, int], AbstractContextManager[ByteProgress]] = _undrawn
    note: Callable[[str], None] = to_stderr


SILENT = Observer()
