"""/tokenize, /detokenize, /score and /v1/embeddings against what the model itself says."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from served import Served

import pocketlm
from pocketlm.runtime.cancellation import Cancelled
from pocketlm.runtime.tokenizer import MAX_CHARACTERS

pytestmark = pytest.mark.serve

MESSAGES = [{"role": "user", "content": "the house"}]
LONGER = "e" * (MAX_CHARACTERS + 1)  # than a tokenizer takes


def answer(server: Served, path: str, body: dict[str, Any]) -> Any:
    status, found = server.post(path, body)
    assert status == 200, found
    return found


@pytest.mark.parametrize("prompt", ["the house", "", "né — 家"])
def test_tokens_are_the_tokenizers_and_back(
    chats: Served, plain_model: pocketlm.Model, prompt: str
) -> None:
    found = answer(chats, "/tokenize", {"prompt": prompt, "texts": True})
    assert found["tokens"] == plain_model.tokenizer.encode(prompt)
    assert found["count"] == len(found["tokens"]) == len(found["texts"])
    if prompt.isascii():
        assert "".join(found["texts"]) == prompt
    back = answer(chats, "/detokenize", {"tokens": found["tokens"]})
    assert back == {"text": prompt, "prompt": prompt}


def test_the_tokenizer_is_told(chats: Served, plain_model: pocketlm.Model) -> None:
    status, found = chats.get("/tokenizer_info")
    assert status == 200
    ends = [plain_model.tokenizer.spelling(token) for token in plain_model.end_ids]
    assert found["eos_token"] in ends
    assert plain_model.chat_template is not None
    assert found["chat_template"] == plain_model.chat_template.source
    assert found["model_max_length"] == plain_model.session.shape.context_length


def test_special_tokens_are_added_and_skipped_as_asked(
    chats: Served, plain_model: pocketlm.Model
) -> None:
    for special in (True, False):
        found = answer(chats, "/tokenize", {"prompt": "a", "add_special_tokens": special})
        expected = plain_model.tokenizer.encode("a", add_special_tokens=special)
        assert found == {"tokens": expected, "count": len(expected)}
    end = min(plain_model.end_ids)
    whole = answer(chats, "/detokenize", {"tokens": [end]})
    skipped = answer(chats, "/detokenize", {"tokens": [end], "skip_special_tokens": True})
    assert whole["text"] == plain_model.tokenizer.spelling(end)
    assert skipped["text"] == plain_model.tokenizer.decode([end])


def test_tokens_of_a_conversation_are_the_templates(
    chats: Served, plain_model: pocketlm.Model
) -> None:
    found = answer(chats, "/tokenize", {"messages": MESSAGES})
    assert found["tokens"] == plain_model.chat_prompt(MESSAGES).token_ids
    script = answer(chats, "/tokenize", {"messages": MESSAGES, "transcript": True})
    expected = plain_model.chat_prompt(MESSAGES, transcript=True).token_ids
    assert script["tokens"] == expected != found["tokens"]


def test_scores_are_the_models(chats: Served, plain_model: pocketlm.Model) -> None:
    continuations = [" a", "b c", "ze"]
    found = answer(chats, "/score", {"context": "the house", "continuations": continuations})
    expected = plain_model.score("the house", continuations)
    for told, score in zip(found["scores"], expected, strict=True):
        assert told == {
            "loglikelihood": score.loglikelihood,
            "mean": score.mean,
            "is_greedy": score.is_greedy,
            "token_ids": list(score.token_ids),
            "logprobs": list(score.logprobs),
        }


def test_a_text_is_scored_token_by_token(chats: Served, plain_model: pocketlm.Model) -> None:
    found = answer(chats, "/score", {"text": "the house", "top": 2})
    expected = plain_model.logprobs("the house", top=2)
    assert [token["id"] for token in found["tokens"]] == list(expected.token_ids)
    assert [token["logprob"] for token in found["tokens"]] == expected.logprobs.tolist()
    tops = [[one["id"] for one in token["top"]] for token in found["tokens"]]
    assert tops == expected.top_ids.tolist()
    assert found["loglikelihood"] == pytest.approx(expected.logprobs.sum())


def test_scoring_ends_between_two_continuations(chats: Served) -> None:
    """What waits for its turn, or has one done, when the client leaves does no more."""
    from pocketlm.runtime.cancellation import Cancellation
    from pocketlm.runtime.server.api.bodies import Score
    from pocketlm.runtime.server.endpoints.score import _continuations

    answer(chats, "/score", {"text": "a"})  # so that it is open
    engine = chats.service.pool.served["plain"].engine
    assert engine is not None
    cancellation = Cancellation()
    cancellation.cancel()
    with pytest.raises(Cancelled):
        _continuations(engine.model, Score(context="a", continuations=["b"]), cancellation)


def test_scoring_counts_as_a_text(chats: Served) -> None:
    """While the thread of what runs alone is taken, scores wait, and are counted."""
    answer(chats, "/score", {"text": "a"})
    engine = chats.service.pool.served["plain"].engine
    assert engine is not None
    release, done = threading.Event(), list[Any]()
    engine.alone._executor.submit(release.wait)
    asking = threading.Thread(target=lambda: done.append(chats.post("/score", {"text": "a"})))
    asking.start()
    while not engine.num_held:
        time.sleep(0.01)
    assert (engine.num_held, done) == (1, [])
    release.set()
    asking.join(30)
    assert done[0][0] == 200
    while engine.num_held:
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("path", "body", "param", "message"),
    [
        ("/tokenize", {}, "prompt", "found neither prompt nor messages"),
        ("/tokenize", {"prompt": "a", "messages": MESSAGES}, "prompt", "found prompt and messages"),
        ("/tokenize", {"prompt": LONGER}, "prompt", "prompt has 2097153 characters, expected"),
        ("/tokenize", {"prompt": 1}, "prompt", "found prompt 1, expected a string"),
        (
            "/tokenize",
            {"messages": MESSAGES, "add_special_tokens": False},
            "add_special_tokens",
            "found add_special_tokens with messages",
        ),
        ("/tokenize", {"messages": MESSAGES, "model": "base"}, "messages", "no chat template"),
        ("/tokenize", {"prompt": "a", "tools": []}, "tools", "found tools with prompt"),
        ("/detokenize", {}, "tokens", "found no tokens, expected it in the body"),
        ("/detokenize", {"tokens": [-1]}, "tokens", "expected an integer, at least 0"),
        ("/detokenize", {"tokens": [1, 300]}, "tokens", "has the token id 300, expected 0 to 299"),
        ("/detokenize", {"tokens": [True]}, "tokens", "expected an integer"),
        ("/score", {}, "continuations", "found no continuations, expected them after a context"),
        ("/score", {"context": "a", "continuations": []}, "continuations", "at least 1 entries"),
        ("/score", {"context": "a", "continuations": [""]}, None, "adds no token to its context"),
        ("/score", {"continuations": [LONGER]}, "continuations", "continuations has"),
        ("/score", {"text": "a", "context": "b"}, "context", "found context with text"),
        ("/score", {"continuations": ["a"], "top": 1}, "top", "found top without text"),
        ("/score", {"text": "e" * 20_000}, "text", "(the context length)"),
        ("/next", {"prompt": "e" * 20_000}, "prompt", "(the context length)"),
        ("/v1/embeddings", {"input": "a"}, "model", "found a request for embeddings"),
        ("/v1/embeddings", {"input": [[1, 2]]}, "model", "found a request for embeddings"),
        ("/v1/embeddings", {"input": 3}, "input", "found input 3, expected a string or a list"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "x"}, "encoding_format", "one of"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    chats: Served, path: str, body: dict[str, Any], param: str | None, message: str
) -> None:
    status, found = chats.post(path, body)
    assert status == 400, found
    assert message in found["error"]["message"]
    if param is not None:
        assert found["error"]["param"] == param


def test_a_score_of_too_long_a_text_says_so(chats: Served) -> None:
    for body in ({"text": "e" * 20_000}, {"context": "e" * 20_000, "continuations": ["a"]}):
        status, found = chats.post("/score", body)
        assert (status, found["error"]["code"]) == (400, "context_length_exceeded")
