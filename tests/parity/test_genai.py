"""A model folder opened by onnxruntime-genai gives the greedy tokens of our own loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import pocketlm
from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.writing import export_model
from pocketlm.models.local import demo_checkpoint
from pocketlm.quantize.precisions import PRECISIONS
from pocketlm.quantize.run import precision_of

pytestmark = pytest.mark.optimum

NEW_TOKENS = 32
TEXT = "It was a dark and stormy night"


@pytest.fixture(scope="module")
def genai() -> Any:
    return pytest.importorskip("onnxruntime_genai", reason="needs: pip install onnxruntime-genai")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_genai_prefers_the_same_tokens(precision: str, genai: Any, tmp_path: Path) -> None:
    folder = export_model(
        open_checkpoint(demo_checkpoint()), tmp_path / precision, precision_of(precision)
    )
    ours = pocketlm.Model(folder, threads=1)
    prompt = ours.tokenizer.encode(TEXT)
    expected = ours.generate(prompt, max_tokens=NEW_TOKENS, temperature=0, ignore_eos=True)

    model = genai.Model(str(folder.path))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(prompt) + NEW_TOKENS, do_sample=False)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(list(prompt))
    while not generator.is_done():
        generator.generate_next_token()
    found = [int(token) for token in generator.get_sequence(0)][len(prompt) :]
    assert found == expected.token_ids[: len(found)]
    # It may have stopped at an end token, which our loop was told to ignore.
    assert len(found) == NEW_TOKENS or found[-1] in ours.end_ids
