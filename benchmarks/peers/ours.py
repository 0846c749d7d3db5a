"""pocketlm as one of those compared: an adapter as those of the peers, run in our environment.

A precision is a name of ours, or options of ``pocketlm export`` in one word, see ``variants``.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from ...export.folder import ModelFolder
from ...runtime.decode import generate
from ...runtime.request import GREEDY, Request
from ...runtime.session import Session
from ..speed.roofline import weight_bytes_per_token
from ..variants import export_variant

NAME = "pocketlm"
PACKAGE = "pocketlm"
PRECISIONS = {"fp32": "fp32", "int8": "int8", "int4": "int4"}


def convert(checkpoint: Path, out: Path, precision: str, ours: Path) -> str:
    """Exports a model folder; needs the extra "cli"."""
    options = ["--precision", precision] if precision in PRECISIONS else shlex.split(precision)
    export_variant(checkpoint, out, options)
    return ""


class Model:
    """A session with a fresh cache for every generation."""

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        self._folder = ModelFolder.open(folder)
        self._session = Session(self._folder, threads)

    def generate(self, ids: list[int], count: int) -> list[int]:
        """The runtime's own loop, end tokens included."""
        return [step.token for step in generate(self._session, Request(ids, GREEDY, count))]

    def logits(self, ids: list[int]) -> Any:
        """All rows (S, V) of one pass."""
        return self._session.all_logits(ids, self._session.new_cache())

    def bytes_per_token(self) -> int:
        """By the folder's graph."""
        return weight_bytes_per_token(self._folder)
