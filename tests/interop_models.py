"""What other runtimes open: three models in all precisions, and what ours makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

import pocketlm
from pocketlm.benchmarks.real_weights import real_checkpoint
from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.folder import ModelFolder
from pocketlm.export.writing import export_model
from pocketlm.models.local import demo_checkpoint
from pocketlm.quantize.run import precision_of

TEXT = "It was a dark and stormy night"
NEW_TOKENS = 32
DEMO, STORIES, SMOLLM2 = "demo", "stories260K", "SmolLM2"
# SmolLM2 is fetched from the package index, 98 MB.
MODELS = [DEMO, STORIES, pytest.param(SMOLLM2, marks=pytest.mark.real_weights)]


@dataclass(frozen=True)
class Expected:
    """What our own loop makes of ``TEXT``."""

    prompt: list[int]
    tokens: list[int]  # greedy, beyond an end too
    text: str
    end_ids: frozenset[int]


class InteropModels:
    """Exports each model once in each precision, into ``root``."""

    def __init__(self, root: Path, request: pytest.FixtureRequest) -> None:
        self._root = root
        self._request = request

    def folder(self, model: str, precision: str) -> ModelFolder:
        """The folder as export wrote it."""
        out = self._root / f"{model}-{precision}"
        if out.is_dir():
            return ModelFolder.open(out)
        return export_model(open_checkpoint(self._source(model)), out, precision_of(precision))

    def expected(self, folder: ModelFolder) -> Expected:
        """What our own loop makes of it."""
        ours = pocketlm.Model(folder, threads=1)
        prompt = ours.tokenizer.encode(TEXT)
        made = ours.generate(prompt, max_tokens=NEW_TOKENS, temperature=0, ignore_eos=True)
        return Expected(prompt, made.token_ids, made.text, frozenset(ours.end_ids))

    def _source(self, model: str) -> Path:
        if model == SMOLLM2:
            return real_checkpoint()
        if model == STORIES:
            data: Path = self._request.getfixturevalue("test_data")
            return data / "models" / "stories260K_hf"
        return demo_checkpoint()


def check_tokens(found: list[int], expected: Expected) -> None:
    """The same tokens, unless it stopped at an end that our loop was told to ignore."""
    assert found == expected.tokens[: len(found)]
    assert len(found) == len(expected.tokens) or found[-1] in expected.end_ids
