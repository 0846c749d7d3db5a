"""A model folder opened by onnxruntime-genai gives the greedy tokens of our own loop."""

from __future__ import annotations

from typing import Any

import pytest
from interop_models import DEMO, MODELS, TEXT, Expected, InteropModels, check_tokens

from pocketlm.export.folder import ModelFolder
from pocketlm.quantize.precisions import PRECISIONS

pytestmark = pytest.mark.optimum


@pytest.fixture(scope="module")
def genai() -> Any:
    return pytest.importorskip("onnxruntime_genai", reason="needs: pip install onnxruntime-genai")


def continued(genai: Any, folder: ModelFolder, expected: Expected) -> list[int]:
    """The greedy tokens behind its prompt."""
    model = genai.Model(str(folder.path))
    parameters = genai.GeneratorParams(model)
    length = len(expected.prompt) + len(expected.tokens)
    parameters.set_search_options(max_length=length, do_sample=False)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(expected.prompt)
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)][len(expected.prompt) :]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", MODELS)
def test_genai_prefers_the_same_tokens(
    name: str, precision: str, genai: Any, interop_models: InteropModels
) -> None:
    folder = interop_models.folder(name, precision)
    expected = interop_models.expected(folder)
    check_tokens(continued(genai, folder, expected), expected)


def test_genai_leaves_other_graphs_alone(
    genai: Any, interop_models: InteropModels, prefill_folder: ModelFolder
) -> None:
    expected = interop_models.expected(prefill_folder)
    check_tokens(continued(genai, prefill_folder, expected), expected)


def test_genai_reads_the_demos_tokenizer(genai: Any, interop_models: InteropModels) -> None:
    folder = interop_models.folder(DEMO, "fp32")
    tokenizer = genai.Tokenizer(genai.Model(str(folder.path)))
    expected = interop_models.expected(folder)
    assert [int(token) for token in tokenizer.encode(TEXT)] == expected.prompt
    assert tokenizer.decode(expected.tokens) == expected.text
