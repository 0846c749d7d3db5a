"""pocketlm as one of those compared: an adapter as those of the peers, run in our environment.

A precision is a name of ours, or options of ``pocketlm export`` in one word, see
``exported_variants``; what follows "--" among them are options of ``pocketlm run``, such as --kv
int8.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from ...export.folder import ModelFolder
from ...runtime.decode import generate
from ...runtime.model import Model as Opened
from ...runtime.request import GREEDY, Request
from ..exported_variants import export_options, export_variant, run_options

NAME = "pocketlm"
PACKAGE = "pocketlm"
PRECISIONS = {"fp32": "fp32", "int8": "int8", "int4": "int4"}


def convert(checkpoint: Path, out: Path, precision: str, ours: Path) -> str:
    """Exports a model folder; needs the extra "cli"."""
    options = ["--precision", precision] if precision in PRECISIONS else shlex.split(precision)
    export_variant(checkpoint, out, export_options(options))
    return ""


class Model:
    """What ``pocketlm.load`` opens, with a fresh cache for every generation."""

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        given = run_options(precision)
        options: dict[str, Any] = {
            name.removeprefix("--").replace("-", "_"): value
            for name, value in zip(given[::2], given[1::2], strict=True)
        }
        self._folder = ModelFolder.open(folder)
        self._model = Opened(self._folder, threads, prefix_cache_bytes=0, **options)
        self._session = self._model.session
        self.settings = shlex.join(given) or f"KV in {self._session.kv}"

    def generate(self, ids: list[int], count: int) -> list[int]:
        """The runtime's own loop, end tokens included."""
        return [step.token for step in generate(self._session, Request(ids, GREEDY, count))]

    def generate_many(self, prompts: list[list[int]], count: int) -> list[list[int]]:
        """All rows together, end tokens included; fast rather than alike whatever the company."""
        results = self._model.generate_many(
            prompts,
            rows=len(prompts),
            reproducible=False,
            max_tokens=count,
            temperature=0,
            ignore_eos=True,
        )
        found = {result.index: list(result.token_ids) for result in results}
        return [found[row] for row in range(len(prompts))]

    def logits(self, ids: list[int]) -> Any:
        """All rows (S, V) of one pass."""
        return self._session.all_logits(ids, self._session.new_cache())

    def bytes_per_token(self) -> int:
        """By the folder's graph."""
        from ..speed.roofline import weight_bytes_per_token  # with onnx: no part of a start

        return weight_bytes_per_token(self._folder)
