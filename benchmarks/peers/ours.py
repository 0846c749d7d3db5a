"""pocketlm as one of those compared: an adapter as those of the peers, run in our environment.

Its model also judges the others: which of their tokens fp32 finds the best.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...export.folder import ModelFolder
from ...runtime.generate import generate_tokens
from ...runtime.sampling import SamplingOptions, make_sampler
from ...runtime.session import Session

NAME = "pocketlm"
PACKAGE = "pocketlm"
PRECISIONS = {"fp32": "fp32", "int8": "int8", "int4": "int4"}

# Logits this close are one: checkpoints made by ``shapes`` have many equal rows, whose logits
# differ by rounding (1e-5) while the best and the next one are about 0.1 apart.
TIE = 1e-3


def convert(checkpoint: Path, out: Path, precision: str, ours: Path) -> str:
    """Exports a model folder; needs the extra "export"."""
    from ...export.checkpoint import open_checkpoint
    from ...quantize.run import export_checkpoint

    export_checkpoint(open_checkpoint(checkpoint), out, precision, force=True)
    return ""


class Model:
    """A session with a fresh cache for every generation."""

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        self._session = Session(ModelFolder.open(folder), threads)
        self._sampler = make_sampler(SamplingOptions(temperature=0))

    def generate(self, ids: list[int], count: int) -> list[int]:
        """The runtime's own loop, end tokens included."""
        return [step.token for step in generate_tokens(self._session, ids, self._sampler, count)]

    def judge(self, ids: list[int], tokens: list[int]) -> dict[str, int]:
        """How many of ``tokens``, each after ``ids`` and the ones before it, have the top logit."""
        text = [*ids, *tokens]
        logits = self._session.all_logits(text[:-1], self._session.new_cache())[len(ids) - 1 :]
        chosen = logits[np.arange(len(tokens)), tokens]
        return {"agreed": int((chosen >= logits.max(axis=-1) - TIE).sum())}
