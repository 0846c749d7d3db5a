"""/v1/completions: the engine's texts in OpenAI's form.

Each is compared with what ``Model`` says of the same prompt and options.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import msgspec
import numpy as np
import pytest
from served import Served, served

import pocketlm
from pocketlm.export.folder import ModelFolder
from pocketlm.runtime.server.api.bodies import Completion
from pocketlm.runtime.server.models.alone import Alone, AloneJob

pytestmark = pytest.mark.serve

PATH = "/v1/completions"
SAMPLED: dict[str, Any] = {"max_tokens": 8, "seed": 3, "temperature": 1.0}


@pytest.fixture(scope="module")
def server(tiny_folder: ModelFolder) -> Iterator[Served]:
    opened = {
        name: partial(pocketlm.load, tiny_folder.path, threads=1) for name in ("tiny", "twin")
    }
    opened["demo"] = partial(pocketlm.load, precision="int8", provider="cpu", threads=1)
    with served(opened, parallel=4, most_waiting=8) as running:
        yield running


def answer(server: Served, body: dict[str, Any]) -> dict[str, Any]:
    status, found = server.post(PATH, body)
    assert status == 200, found
    assert isinstance(found, dict)
    return found


def texts(server: Served, body: dict[str, Any]) -> list[str]:
    return [choice["text"] for choice in answer(server, body)["choices"]]


@pytest.mark.parametrize("prompt", ["the house", "", [5, 6, 7], [], None])
def test_a_completion_is_the_engines_text(
    server: Served, tiny_model: pocketlm.Model, prompt: Any
) -> None:
    found = answer(server, {"prompt": prompt, **SAMPLED})
    expected = tiny_model.submit(prompt or "", **SAMPLED).result()
    (choice,) = found["choices"]
    assert (choice["text"], choice["finish_reason"]) == (expected.text, "length")
    assert (found["object"], found["model"]) == ("text_completion", "tiny")
    assert found["usage"]["completion_tokens"] == 8
    assert found["usage"]["prompt_tokens"] == expected.timings.prompt_tokens


@pytest.mark.parametrize("prompts", [["a", "the house"], [[5, 6], [7]], ["a", [5, 6]]])
def test_every_prompt_has_its_choices(
    server: Served, tiny_model: pocketlm.Model, prompts: list[Any]
) -> None:
    found = answer(server, {"prompt": prompts, "n": 2, **SAMPLED})
    expected = [tiny_model.completions(prompt, 2, **SAMPLED) for prompt in prompts]
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in found["choices"]] == [
        result.text for group in expected for result in group
    ]
    counts = [group[0].timings.prompt_tokens for group in expected]
    assert found["usage"]["prompt_tokens"] == sum(counts)
    assert found["usage"]["completion_tokens"] == 4 * 8
    assert found["usage"]["total_tokens"] == sum(counts) + 32


def test_the_best_are_those_with_the_highest_mean_logprob(
    server: Served, tiny_model: pocketlm.Model
) -> None:
    found = answer(server, {"prompt": "a", "best_of": 5, "n": 2, **SAMPLED})
    every = tiny_model.completions("a", 5, logprobs=True, **SAMPLED)
    ranked = sorted(every, key=lambda one: -np.mean(one.logprobs or [0]))
    assert [choice["text"] for choice in found["choices"]] == [one.text for one in ranked[:2]]
    assert all(choice["logprobs"] is None for choice in found["choices"])
    assert found["usage"]["completion_tokens"] == 5 * 8


def test_an_echo_begins_with_the_prompt(server: Served, tiny_model: pocketlm.Model) -> None:
    plain = texts(server, {"prompt": ["a", [5, 6]], **SAMPLED})
    echoed = texts(server, {"prompt": ["a", [5, 6]], "echo": True, **SAMPLED})
    assert echoed == ["a" + plain[0], tiny_model.tokenizer.decode([5, 6]) + plain[1]]


@pytest.mark.parametrize("max_tokens", [0, 2])
def test_an_echo_with_logprobs_has_those_of_the_prompt(
    server: Served, tiny_model: pocketlm.Model, max_tokens: int
) -> None:
    prompts = ["the house", "e"]
    asked = {"echo": True, "logprobs": 3, "temperature": 0, "max_tokens": max_tokens}
    found = answer(server, {"prompt": prompts, **asked})
    for prompt, choice in zip(prompts, found["choices"], strict=True):
        ids = tiny_model.tokenizer.encode(prompt)
        told = choice["logprobs"]
        assert len(told["tokens"]) == len(ids) + max_tokens
        assert (told["token_logprobs"][0], told["top_logprobs"][0]) == (None, None)
        assert "".join(told["tokens"][: len(ids)]) == prompt
        for place in range(1, len(ids)):
            context, word = (
                tiny_model.tokenizer.decode(ids[a:b]) for a, b in [(0, place), (place, place + 1)]
            )
            (score,) = tiny_model.score(context, [word])
            assert told["token_logprobs"][place] == pytest.approx(score.loglikelihood, abs=1e-4)
            assert len(told["top_logprobs"][place]) in (3, 4)  # the token itself is among them
            assert told["tokens"][place] in told["top_logprobs"][place]
        starts = [len("".join(told["tokens"][:i])) for i in range(len(ids))]
        assert told["text_offset"][: len(ids)] == starts
    assert found["usage"]["completion_tokens"] == 2 * max_tokens


def test_a_token_within_a_character_begins_where_that_does(server: Served) -> None:
    text = "a\U0001f600b\uc548 c"
    asked = {"prompt": text, "model": "demo", "echo": True, "logprobs": 0, "max_tokens": 0}
    (choice,) = answer(server, asked)["choices"]
    told = choice["logprobs"]
    for token, offset in zip(told["tokens"], told["text_offset"], strict=True):
        if "\ufffd" not in token:
            assert text[offset : offset + len(token)] == token
    assert told["tokens"].count("\ufffd") > 1
    parts = [chunk["choices"][0]["logprobs"] for chunk in server.stream(PATH, asked)]
    streamed = [offset for part in parts if part for offset in part["text_offset"]]
    assert streamed == told["text_offset"]


def test_logprobs_are_the_engines(server: Served, tiny_model: pocketlm.Model) -> None:
    (choice,) = answer(server, {"prompt": "a", "logprobs": 2, **SAMPLED})["choices"]
    expected = tiny_model.submit("a", logprobs=2, **SAMPLED).result()
    assert choice["logprobs"]["token_logprobs"] == expected.logprobs
    spell = tiny_model.tokenizer.token_bytes
    steps = zip(
        expected.token_ids, expected.logprobs or (), expected.top_logprobs or (), strict=True
    )
    for told, (token, logprob, top) in zip(choice["logprobs"]["top_logprobs"], steps, strict=True):
        every: dict[str, float] = {}  # of those that are spelled alike the likeliest
        for other, value in [*top, (token, logprob)]:
            every.setdefault(spell(other).decode("utf-8", "replace"), value)
        assert told == every


def test_a_form_that_is_complete_has_the_logprob_of_its_last_token(server: Served) -> None:
    pytest.importorskip("llguidance", reason="the extra 'grammar' is not installed")
    body = {"prompt": "a", "regex": "the house", "max_tokens": 30, "logprobs": 0}
    found = answer(server, body)["choices"][0]
    assert (found["text"], found["finish_reason"]) == ("the house", "stop")
    assert "".join(found["logprobs"]["tokens"]) == "the house"
    streamed = [event["choices"][0] for event in server.stream(PATH, body)]
    told = [one["logprobs"]["tokens"] for one in streamed if one["logprobs"]]
    assert "".join(token for tokens in told for token in tokens) == "the house"


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "the house", **SAMPLED},
        {"prompt": ["a", "the house"], "n": 2, **SAMPLED, "logprobs": 2},
        {"prompt": "a", "echo": True, "logprobs": 1, **SAMPLED},
        {"prompt": "a", "echo": True, "logprobs": 1, "max_tokens": 0},
        {"prompt": "the house", "stop": "e", "temperature": 0, "max_tokens": 40},
        {"prompt": "the house", "lookup": True, "temperature": 0, "max_tokens": 20},
        {"prompt": "a", "draft": "twin", "n": 2, "temperature": 0, "max_tokens": 20},
        {"prompt": "a", "details": True, "logprobs": 1, "echo": True, **SAMPLED},
    ],
)
def test_what_is_streamed_is_the_whole(server: Served, body: dict[str, Any]) -> None:
    whole = answer(server, body)
    chunks = server.stream(PATH, body)
    for index, choice in enumerate(whole["choices"]):
        parts = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        assert "".join(part["text"] for part in parts) == choice["text"]
        assert [p["finish_reason"] for p in parts if p["finish_reason"]] == [
            choice["finish_reason"]
        ]
        for name in choice["logprobs"] or ():
            told = [value for part in parts for value in (part["logprobs"] or {}).get(name, ())]
            assert told == choice["logprobs"][name], name
        if "tokens" in choice:
            assert [token for part in parts for token in part["tokens"]] == choice["tokens"]


def test_usage_is_told_last_where_it_is_asked_for(server: Served) -> None:
    body = {"prompt": "a", **SAMPLED}
    plain = server.stream(PATH, body)
    assert not any("usage" in event for event in plain)
    *chunks, last = server.stream(PATH, {**body, "stream_options": {"include_usage": True}})
    assert [chunk["usage"] for chunk in chunks] == [None] * len(plain)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 8


def test_what_was_computed_before_is_told_as_cached(server: Served) -> None:
    body = {"prompt": "ought to be new here", "max_tokens": 1}
    counts = [answer(server, body)["usage"] for _ in range(2)]
    assert [count["prompt_tokens_details"]["cached_tokens"] for count in counts] == [
        0,
        counts[0]["prompt_tokens"],
    ]


def test_details_tell_tokens_ends_and_the_model(server: Served, tiny_model: pocketlm.Model) -> None:
    body = {"prompt": "the house", "details": True, "logprobs": 2, **SAMPLED}
    found = answer(server, body)
    expected = tiny_model.submit("the house", logprobs=2, **SAMPLED).result()
    tokens, details = found["choices"][0]["tokens"], found["details"]
    assert [token["id"] for token in tokens] == expected.token_ids
    assert [token["logprob"] for token in tokens] == expected.logprobs
    tops = [tuple((one["id"], one["logprob"]) for one in token["top"]) for token in tokens]
    assert tops == expected.top_logprobs
    assert "".join(token["text"] for token in tokens) == expected.text
    assert details["prompt_token_ids"] == tiny_model.tokenizer.encode("the house")
    (told,) = details["choices"]
    assert (told["finish_reason"], told["timings"]["new_tokens"]) == ("length", 8)
    assert details["model"]["context_length"] == 160
    assert details["model"]["end_ids"] == sorted(tiny_model.end_ids)
    last = server.stream(PATH, body)[-1]
    assert (last["choices"], last["details"]["model"]["precision"]) == ([], "fp32")
    without = answer(server, {"prompt": "a", "details": True, "max_tokens": 1})
    assert without["choices"][0]["tokens"][0]["logprob"] is None


@pytest.mark.parametrize("option", [{"lookup": True}, {"draft": "twin"}, {"reproducible": True}])
def test_what_runs_alone_is_the_models_text(
    server: Served, tiny_model: pocketlm.Model, option: dict[str, Any]
) -> None:
    body = {"prompt": "the house", "max_tokens": 24, "temperature": 0, "logprobs": 1, **option}
    found = answer(server, body | {"details": True})
    of_model = {"draft": tiny_model} if "draft" in option else option
    expected = tiny_model.generate(
        "the house", max_tokens=24, temperature=0, logprobs=1, **of_model
    )
    assert found["choices"][0]["text"] == expected.text
    # How many guesses are computed at once, and so the last bits, goes by the time they take.
    exactness = 0 if "reproducible" in option else 1e-4
    told = found["choices"][0]["logprobs"]["token_logprobs"]
    assert told == pytest.approx(expected.logprobs, abs=exactness)
    if "draft" in option:
        assert found["details"]["choices"][0]["timings"]["guessed_tokens"] > 0


def test_beams_are_the_models(server: Served, tiny_model: pocketlm.Model) -> None:
    body = {"prompt": "the house", "beams": 3, "n": 2, "max_tokens": 6, "length_penalty": 0.5}
    found = answer(server, body)
    expected = tiny_model.beams("the house", 3, max_tokens=6, length_penalty=0.5)
    assert [choice["text"] for choice in found["choices"]] == [beam.text for beam in expected[:2]]


def test_every_option_of_the_engine_can_be_asked_for() -> None:
    """But those that name files or objects of the server's own process."""
    fields = {field.name: field for field in msgspec.structs.fields(Completion)}
    for function in (pocketlm.Model.stream, pocketlm.Model.beams):
        options = inspect.signature(function).parameters
        missing = set(options) - set(fields) - {"self", "cancellation", "cache", "prompt_cache"}
        assert missing == set()
        assert all(fields[name].default in (None, "") for name in set(options) & set(fields))


def test_a_text_that_waits_alone_ends_at_once_when_it_is_cancelled(
    tiny_model: pocketlm.Model,
) -> None:
    told: list[Any] = []
    alone, release = Alone(lambda: None, None), threading.Event()
    request = tiny_model.request("a", max_tokens=3)
    jobs = []
    for _ in range(2):
        stream = tiny_model.stream("a", max_tokens=3)
        jobs.append(AloneJob(request, stream, tiny_model.tokenizer, told.append))
    alone._executor.submit(release.wait)
    for job in jobs:
        alone.run(job)
    jobs[0].cancel()
    assert (jobs[0].done, jobs[0].finish_reason, jobs[1].done) == (True, "cancelled", False)
    release.set()
    assert jobs[1].result(timeout=30).finish_reason == "length"
    assert told.count(None) == 2


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"nonsense": 1}, "nonsense", "found the field 'nonsense', expected one that is known"),
    ({"messages": []}, "messages", "found messages in the body, expected prompt here"),
    ({"max_tokens": "8"}, "max_tokens", 'found max_tokens "8", expected an integer; correct it'),
    ({"max_tokens": True}, "max_tokens", "found max_tokens true, expected an integer"),
    ({"max_tokens": -1}, "max_tokens", "found max_tokens -1, expected an integer, at least 0"),
    ({"max_tokens": 10**12}, "max_tokens", "expected an integer, at most 1000000000"),
    ({"n": 0}, "n", "found n 0, expected an integer, at least 1"),
    ({"n": 13}, "n", "the request asks for 13 texts, expected at most 12"),
    ({"prompt": ["a"] * 7, "n": 2}, "prompt", "the request asks for 14 texts, expected at most"),
    ({"n": 2, "best_of": 13}, "best_of", "the request asks for 13 texts, expected at most 12"),
    ({"beams": 13}, "beams", "the request asks for 13 texts, expected at most 12"),
    ({"best_of": 1, "n": 2}, "best_of", "best_of is 1, expected at least n, which is 2"),
    ({"best_of": 2, "stream": True}, "best_of", "found best_of with stream, expected one"),
    ({"stream_options": {}}, "stream_options", "found stream_options without stream"),
    ({"stream_options": {"x": 1}, "stream": True}, "stream_options.x", "found the field"),
    ({"suffix": "a"}, "suffix", "found suffix in the body, expected none"),
    ({"prompt": 3}, "prompt", "found prompt 3, expected a string or a list"),
    ({"prompt": [1, "a"]}, "prompt", "prompt has token ids beside prompts"),
    ({"prompt": [True]}, "prompt", "found prompt[0] true, expected"),
    ({"prompt": [300]}, "prompt", "prompt has the token id 300, expected 0 to 299"),
    ({"prompt": [-1]}, "prompt", "found prompt[0] -1, expected an integer, at least 0"),
    ({"logprobs": 101}, "logprobs", "found logprobs 101, expected an integer, at most 100"),
    ({"temperature": -1}, "temperature", "expected a number, at least 0"),
    ({"top_p": 0}, "top_p", "found top_p 0, expected a number, more than 0"),
    ({"stop": ["a", ""]}, "stop", 'found stop[1] "", expected a string of at least 1 characters'),
    ({"stop": ["a"] * 65}, "stop", "expected a list of at most 64 entries"),
    ({"logit_bias": {"a": 1}}, "logit_bias", "expected keys: a string that matches"),
    ({"logit_bias": {"1": 1e3}}, "logit_bias", "expected a number, at most 100"),
    ({"logit_bias": {"300": 1}}, "logit_bias", "token id 300 is in logit_bias, expected 0 to 299"),
    ({"banned_tokens": [300]}, "banned_tokens", "token id 300 is in banned_tokens, expected"),
    ({"regex": "a", "choices": ["a"]}, "regex", "found regex and choices, expected one of them"),
    ({"seed": 2**60}, "seed", "expected an integer, at most 9007199254740991"),
    ({"context": "x"}, "context", 'found context "x", expected one of error, stop, slide'),
    ({"draft": "x"}, "draft", "found no model 'x', expected one of: tiny, twin, demo"),
    (
        {"draft": "demo"},
        "draft",
        "draft is demo: found other tokens than those of tiny, expected the same",
    ),
    ({"beams": 2, "n": 3}, "beams", "beams is 2, expected at least n, which is 3"),
    ({"beams": 2, "top_k": 3}, "top_k", "found top_k with beams, expected none"),
    ({"beams": 2, "stream": True}, "stream", "found stream with beams, expected none"),
    ({"length_penalty": 1}, "length_penalty", "found length_penalty without beams"),
    ({"model": ""}, "model", "found no model '', expected one of: tiny, twin, demo"),
    ({"model": "x"}, "model", "found no model 'x', expected one of: tiny, twin, demo"),
]


@pytest.mark.parametrize(("body", "param", "message"), WRONG)
def test_a_wrong_field_is_named(
    server: Served, body: dict[str, Any], param: str, message: str
) -> None:
    status, found = server.post(PATH, {"prompt": "a", **body})
    assert status == (404 if "found no model" in message else 400)
    assert message in found["error"]["message"]
    assert found["error"]["param"] == param
    assert found["error"]["type"] == "invalid_request_error"


def test_two_ways_to_guess_are_refused(server: Served) -> None:
    status, found = server.post(PATH, {"prompt": "a", "lookup": True, "draft": "twin"})
    assert status == 400
    assert "found lookup and draft, expected one of them" in found["error"]["message"]
    assert found["error"]["param"] == "lookup"


@pytest.mark.parametrize("body", [b'{"temperature": 1e999}', b'{"seed": NaN}', b"[]", b"{", b""])
def test_what_is_no_strict_json_is_refused(server: Served, body: bytes) -> None:
    status, found = server.post(PATH, body)
    assert (status, found["error"]["code"]) == (400, "invalid_json")


def test_a_prompt_longer_than_the_context_says_so(server: Served) -> None:
    for prompt in ([5] * 161, "e" * 3000):
        status, found = server.post(PATH, {"prompt": prompt, "max_tokens": 1})
        assert (status, found["error"]["code"]) == (400, "context_length_exceeded")
        assert found["error"]["param"] == "prompt"
