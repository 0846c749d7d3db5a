"""/next: the distribution of the next token, beside that of a softmax written out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from served import Served, served

import pocketlm
from pocketlm.export.folder import ModelFolder
from pocketlm.runtime.cancellation import Cancellation, Cancelled
from pocketlm.runtime.next_token import next_logits
from pocketlm.runtime.sampling import SamplingOptions, process_logits

pytestmark = pytest.mark.serve

PROMPT = "a bc a bc"
SHAPED: list[dict[str, Any]] = [
    {"temperature": 0.7},
    {"top_k": 3},
    {"top_p": 0.4},
    {"min_p": 0.3},
    {"typical_p": 0.3},
    {"repetition_penalty": 1.7},
    {"frequency_penalty": 1.5, "presence_penalty": -0.5, "generated": 3},
    {"temperature": 1.4, "top_k": 9, "top_p": 0.8, "min_p": 0.05},
    {"logit_bias": {"5": 4}, "banned_tokens": [7]},
]


@pytest.fixture(scope="module")
def server(tiny_folder: ModelFolder) -> Iterator[Served]:
    with served({"tiny": tiny_folder}) as running:
        yield running


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """In the order of the formula."""
    powers = np.exp(logits.astype(np.float64) - float(logits.max()))
    found: NDArray[np.float64] = powers / powers.sum()
    return found


def slow_twin(model: pocketlm.Model, asked: dict[str, Any]) -> tuple[list[int], Any, Any]:
    """The prompt's ids, and all V probabilities before and after the options."""
    ids = model.tokenizer.encode(PROMPT)
    logits = model.session.step(ids, model.session.new_cache())
    own = {"temperature": 1.0, "top_p": 1.0, **asked}
    num_prompt = len(ids) - own.pop("generated", 0)
    if "logit_bias" in own:
        own["logit_bias"] = {int(key): value for key, value in own["logit_bias"].items()}
    left = process_logits(logits, ids, SamplingOptions(**own), num_prompt, model.end_ids)
    return ids, softmax(logits), softmax(left)


@pytest.mark.parametrize("asked", SHAPED, ids=lambda asked: "-".join(asked))
def test_next_is_the_softmax_before_and_after_the_options(
    server: Served, tiny_model: pocketlm.Model, asked: dict[str, Any]
) -> None:
    ids, own, left = slow_twin(tiny_model, asked)
    body = {"prompt": PROMPT, "top": 10, "temperature": 1, "top_p": 1, **asked}
    status, found = server.post("/next", body)
    assert status == 200
    assert found["prompt_token_ids"] == ids
    shown = [token["id"] for token in found["tokens"]]
    assert shown == np.argsort(-own, kind="stable")[:10].tolist()
    # Probabilities of float32 logits; the server's prompt may be cut and summed otherwise.
    assert [token["probability"] for token in found["tokens"]] == pytest.approx(own[shown], 1e-4)
    assert [token["left"] for token in found["tokens"]] == pytest.approx(left[shown], 1e-4, 1e-9)
    others = np.setdiff1d(np.arange(own.size), shown)
    assert found["others"]["count"] == others.size
    assert found["others"]["probability"] == pytest.approx(own[others].sum(), 1e-4)
    assert found["others"]["left"] == pytest.approx(left[others].sum(), 1e-4, 1e-9)
    assert found["num_left"] == int((left > 0).sum())


def test_greedy_leaves_one_token(server: Served, tiny_model: pocketlm.Model) -> None:
    _, own, _ = slow_twin(tiny_model, {})
    status, found = server.post("/next", {"prompt": PROMPT, "top": 2, "temperature": 0})
    assert status == 200
    assert [token["left"] for token in found["tokens"]] == [1, 0]
    assert found["tokens"][0]["id"] == int(own.argmax())
    assert found["num_left"] == 1


def test_the_answer_says_which_options_are_the_models_own(server: Served) -> None:
    status, found = server.post("/next", {"prompt": PROMPT})
    assert status == 200
    assert (found["options"]["temperature"], found["options"]["top_p"]) == (0.8, 0.95)
    assert len(found["tokens"]) == 20


def test_ids_are_the_same_as_their_text(server: Served, tiny_model: pocketlm.Model) -> None:
    ids = tiny_model.tokenizer.encode(PROMPT)
    by_ids, by_text = (server.post("/next", {"prompt": prompt})[1] for prompt in (ids, PROMPT))
    assert by_ids == by_text


@pytest.mark.parametrize(
    "body, told",
    [
        ({"top": 101}, "found top 101, expected"),
        ({"top": -1}, "found top -1, expected"),
        ({"generated": 99}, "generated is 99, expected 0 to"),
        ({"top_p": 2}, "top_p"),
        ({"prompt": [100000]}, "token id 100000"),
        ({"banned_tokens": list(range(300))}, "no token is left"),
        ({"model": "other"}, "found no model 'other', expected one of: tiny"),
        ({"stop": "x"}, "stop"),
    ],
)
def test_what_cannot_be_is_refused_by_name(server: Served, body: Any, told: str) -> None:
    status, found = server.post("/next", {"prompt": PROMPT, **body})
    assert status in (400, 404)
    assert told in found["error"]["message"]


def test_it_ends_when_it_is_cancelled(tiny_model: pocketlm.Model) -> None:
    cancellation = Cancellation()
    cancellation.cancel()
    request = tiny_model.request(PROMPT, max_tokens=1)
    with pytest.raises(Cancelled):
        next_logits(tiny_model.session, request, cancellation=cancellation)


def test_what_was_computed_of_a_prompt_is_not_computed_again(
    tiny_folder: ModelFolder,
) -> None:
    with pocketlm.load(tiny_folder.path, threads=1) as model:
        request = model.request(PROMPT, max_tokens=1)
        first = next_logits(model.session, request, model.prefix_cache)
        before = model.session.run_seconds
        again = next_logits(model.session, request, model.prefix_cache)
        assert model.session.run_seconds == before
        assert np.array_equal(first, again)
