"""lm-evaluation-harness's local-completions, which asks a server, against the model's own scores.

The harness sends token ids, which /tokenize gives it, and reads the logprobs of an echo.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from served import Served, served

import pocketlm
from pocketlm.export.folder import ModelFolder

pytestmark = pytest.mark.lm_eval

PAIRS = [
    ("the house", " and a"),
    ("the house ", "by the road"),
    ("", "the house"),
    ("a" * 60, "the"),
    ("né — 家", " é"),
]


@pytest.fixture(scope="module")
def server(tiny_folder: ModelFolder) -> Iterator[Served]:
    opened = {"tiny": tiny_folder}
    with served(opened, api_key="sesame") as running:
        yield running


@pytest.fixture(params=[1, 3], ids=["one at a time", "three at a time"])
def client(server: Served, request: pytest.FixtureRequest) -> Any:
    completions = pytest.importorskip("lm_eval.models.openai_completions")
    pytest.importorskip("tenacity", reason="lm-eval[api] is not installed")
    return completions.LocalCompletionsAPI(
        base_url=f"{server.url}/v1/completions",
        model="tiny",
        auth_token="sesame",
        header={"Authorization": "Bearer sesame"},
        max_length=161,
        batch_size=request.param,
        max_retries=1,
    )


def asked(*arguments: Any) -> Any:
    return SimpleNamespace(args=arguments)


def test_its_loglikelihoods_are_the_models(client: Any, tiny_model: pocketlm.Model) -> None:
    assert client.tokenizer_backend == "remote"  # found by itself
    found = client.loglikelihood([asked(*pair) for pair in PAIRS], disable_tqdm=True)
    for (context, continuation), (loglikelihood, is_greedy) in zip(PAIRS, found, strict=True):
        (score,) = tiny_model.score(context, [continuation])
        # The one feeds context and continuation in other chunks than the other.
        assert loglikelihood == pytest.approx(score.loglikelihood, abs=1e-4)
        assert is_greedy == score.is_greedy


def test_its_texts_are_the_models(client: Any, tiny_model: pocketlm.Model) -> None:
    options = {"until": ["e"], "max_gen_toks": 12, "do_sample": False}
    prompts = ["the house", "a"]
    found = client.generate_until([asked(p, dict(options)) for p in prompts], disable_tqdm=True)
    eos = tiny_model.tokenizer.spelling(min(tiny_model.end_ids))
    expected = [
        tiny_model.generate(prompt, temperature=0, max_tokens=12, stop=["e", str(eos)]).text
        for prompt in prompts
    ]
    assert found == expected
