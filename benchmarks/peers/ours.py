"""pocketlm as one of those compared: an adapter as those of the peers, run in our environment."""

from __future__ import annotations

from pathlib import Path

from ...export.folder import ModelFolder
from ...runtime.generate import generate_tokens
from ...runtime.sampling import SamplingOptions, make_sampler
from ...runtime.session import Session

NAME = "pocketlm"
PACKAGE = "pocketlm"
PRECISIONS = {"fp32": "fp32", "int8": "int8", "int4": "int4"}


def convert(checkpoint: Path, out: Path, precision: str, ours: Path) -> str:
    """Exports a model folder; needs the extra "export"."""
    from ...export.checkpoint import open_checkpoint
    from ...export.writing import export_model
    from ...quantize.run import precision_of

    export_model(open_checkpoint(checkpoint), out, precision_of(precision), force=True)
    return ""


class Model:
    """A session with a fresh cache for every generation."""

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        self._session = Session(ModelFolder.open(folder), threads)
        self._sampler = make_sampler(SamplingOptions(temperature=0))

    def generate(self, ids: list[int], count: int) -> list[int]:
        """The runtime's own loop, end tokens included."""
        return [step.token for step in generate_tokens(self._session, ids, self._sampler, count)]
