"""With which of a folder's graphs a model is measured."""

from __future__ import annotations

from dataclasses import dataclass

from ..export.folder import ModelFolder
from ..runtime.kv import FP32
from ..runtime.prefill_choice import NONE
from ..runtime.session import Session


@dataclass(frozen=True)
class Variant:
    """Options of ``Session``; without any, the first graph alone."""

    kv: str = FP32
    prefill: str = NONE

    def open(self, folder: ModelFolder, threads: int) -> Session:
        """The session; raises what ``Session`` raises."""
        return Session(folder, threads, kv=self.kv, prefill=self.prefill)


PLAIN = Variant()
