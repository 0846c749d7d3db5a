"""/v1/completions: the engine's texts in OpenAI's form."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from served import Served, served

import pocketlm
from pocketlm.export.folder import ModelFolder

pytestmark = pytest.mark.serve


@pytest.fixture(scope="module")
def server(tiny_folder: ModelFolder) -> Iterator[Served]:
    with served({"tiny": lambda: pocketlm.load(tiny_folder.path, threads=1)}) as running:
        yield running


def test_a_completion_is_the_engines_text(server: Served, tiny_model: pocketlm.Model) -> None:
    asked = {"prompt": "a", "max_tokens": 8, "seed": 3, "temperature": 1}
    status, found = server.post("/v1/completions", asked)
    expected = tiny_model.submit("a", max_tokens=8, seed=3, temperature=1).result()
    assert status == 200
    assert found["choices"][0]["text"] == expected.text
    assert found["usage"]["completion_tokens"] == 8


def test_an_unknown_field_is_named(server: Served) -> None:
    status, found = server.post("/v1/completions", {"prompt": "a", "nonsense": 1})
    assert status == 400
    assert found["error"]["param"] == "nonsense"
