"""/v1/chat/completions: the engine's answers in OpenAI's form, whole and as they come."""

from __future__ import annotations

import json
from typing import Any

import pytest
from chat_models import CAT
from chat_requests import ASKED, PATH, SETTINGS, answered
from served import Served

import pocketlm

pytestmark = pytest.mark.serve


def expected(model: pocketlm.Model, messages: Any, **options: Any) -> pocketlm.Result:
    prompt = model.chat_prompt(messages)
    return model.submit(prompt, **{**SETTINGS, **options}).result()


def test_an_answer_is_the_engines(chats: Served, plain_model: pocketlm.Model) -> None:
    found = answered(chats)
    result = expected(plain_model, ASKED)
    (choice,) = found["choices"]
    assert choice["message"] == {"role": "assistant", "content": result.text, "refusal": None}
    assert choice["finish_reason"] == "length"
    assert found["object"] == "chat.completion" and found["model"] == "plain"
    assert found["usage"]["prompt_tokens"] == result.timings.prompt_tokens
    assert found["usage"]["completion_tokens"] == 12


def test_a_stream_says_what_the_whole_does(chats: Served) -> None:
    body = {"messages": ASKED, **SETTINGS, "n": 2, "logprobs": True, "top_logprobs": 2}
    whole = answered(chats, n=2, logprobs=True, top_logprobs=2)
    told = chats.stream(PATH, {**body, "stream_options": {"include_usage": True}})
    *chunks, last = told
    assert last["choices"] == [] and last["usage"]["total_tokens"] == whole["usage"]["total_tokens"]
    assert all(chunk["usage"] is None for chunk in chunks)
    for index, choice in enumerate(whole["choices"]):
        mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        texts = [chunk["delta"].get("content", "") for chunk in mine]
        assert "".join(texts) == choice["message"]["content"]
        assert [c["finish_reason"] for c in mine if c["finish_reason"]] == ["length"]
        logprobs = [c["logprobs"]["content"] for c in mine if c["logprobs"]]
        assert sum(logprobs, []) == choice["logprobs"]["content"]
        assert len(choice["logprobs"]["content"][0]["top_logprobs"]) == 2


def test_seeds_count_up_from_the_first(chats: Served, plain_model: pocketlm.Model) -> None:
    first, second = answered(chats, n=2)["choices"]
    assert first["message"]["content"] == expected(plain_model, ASKED).text
    assert second["message"]["content"] == expected(plain_model, ASKED, seed=4).text


def test_a_stop_string_ends_it(chats: Served) -> None:
    text = answered(chats)["choices"][0]["message"]["content"]
    (choice,) = answered(chats, stop=[text[4:6]])["choices"]
    assert choice["message"]["content"] == text[: text.index(text[4:6])]
    assert choice["finish_reason"] == "stop"


def test_either_name_bounds_it(chats: Served) -> None:
    assert (
        answered(chats, max_tokens=None, max_completion_tokens=3)["usage"]["completion_tokens"] == 3
    )


@pytest.mark.parametrize(
    "sent, same",
    [
        (
            [{"role": "developer", "content": "Be"}, *ASKED],
            [{"role": "system", "content": "Be"}, *ASKED],
        ),
        (
            [
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "Wh"}, {"type": "text", "text": "y?"}],
                }
            ],
            ASKED,
        ),
        (
            [*ASKED, {"role": "assistant", "content": "So", "refusal": None, "annotations": []}],
            [*ASKED, {"role": "assistant", "content": "So"}],
        ),
    ],
    ids=["developer", "parts", "what a client sends back"],
)
def test_messages_mean_the_same(
    sent: Any, same: Any, chats: Served, plain_model: pocketlm.Model
) -> None:
    found = answered(chats, messages=sent)
    assert found["choices"][0]["message"]["content"] == expected(plain_model, same).text


def test_a_base_model_answers_by_a_script(chats: Served, plain_model: pocketlm.Model) -> None:
    prompt = plain_model.chat_prompt(ASKED, transcript=True)
    found = answered(chats, model="base", transcript=True)
    assert (
        found["choices"][0]["message"]["content"]
        == plain_model.submit(prompt, **SETTINGS).result().text
    )


@pytest.mark.parametrize("kind", ["json_schema", "json_object"])
def test_an_answer_has_the_form_that_is_asked_for(kind: str, chats: Served) -> None:
    form: dict[str, Any] = {"type": kind}
    if kind == "json_schema":
        form["json_schema"] = {"name": "cat", "schema": CAT, "strict": True}
    choice = answered(chats, response_format=form, max_tokens=60, stop=["}"])["choices"][0]
    text = choice["message"]["content"]
    assert text.startswith("{")
    if kind == "json_schema":
        assert json.loads(text + "}")["kind"] in ("cat", "dog")


def part(kind: str, **more: Any) -> list[Any]:
    return [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": kind, **more}]}]


WRONG: list[tuple[str, dict[str, Any], str, str]] = [
    (
        "image",
        {"messages": part("image_url", image_url={"url": "x"})},
        "messages[0].content[1]",
        "image_url",
    ),
    (
        "two bounds",
        {"max_tokens": 3, "max_completion_tokens": 4},
        "max_tokens",
        "found max_tokens and max_completion_tokens, expected one of them",
    ),
    ("audio", {"messages": part("input_audio")}, "messages[0].content[1]", "input_audio"),
    ("file", {"messages": part("file")}, "messages[0].content[1]", "file"),
    ("no text", {"messages": part("text")}, "messages[0].content[1]", "text"),
    ("no role", {"messages": [{"content": "a"}]}, "messages[0]", "role and content"),
    ("no content", {"messages": [{"role": "user"}]}, "messages[0]", "content"),
    ("a number", {"messages": [{"role": "user", "content": 5}]}, "messages[0]", "content"),
    ("odd role", {"messages": [{"role": "a b", "content": "a"}]}, "messages[0]", "a word"),
    (
        "odd field",
        {"messages": [{"role": "user", "content": "a", "x": 1}]},
        "messages[0]",
        "fields",
    ),
    ("none", {"messages": []}, "messages", "add the user"),
    ("a text", {"messages": "a"}, "messages", "a list"),
    (
        "old calls",
        {"messages": [{"role": "user", "content": "a", "function_call": {}}]},
        "messages[0].function_call",
        "tool_calls",
    ),
    (
        "calls",
        {"messages": [{"role": "assistant", "tool_calls": [5]}]},
        "messages[0].tool_calls[0]",
        "function",
    ),
    ("template", {"chat_template": "{{ x }}"}, "chat_template", "leave it out"),
    ("variable", {"chat_template_kwargs": {"zzz": 1}}, "chat_template_kwargs", "zzz"),
    (
        "our variable",
        {"chat_template_kwargs": {"messages": []}},
        "chat_template_kwargs",
        "messages",
    ),
    (
        "a token",
        {"chat_template_kwargs": {"eos_token": "x"}},
        "chat_template_kwargs.eos_token",
        "eos_token",
    ),
    ("base", {"model": "base"}, "messages", "/v1/completions"),
    (
        "script of tools",
        {
            "model": "base",
            "transcript": True,
            "tools": [{"type": "function", "function": {"name": "f"}}],
        },
        "tools",
        "leave one out",
    ),
    ("form", {"response_format": {"type": "xml"}}, "response_format.type", "json_schema"),
    (
        "two forms",
        {"response_format": {"type": "json_object"}, "json_schema": {}},
        "response_format",
        "leave one out",
    ),
    (
        "schema",
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"type": "nonsense"}},
            }
        },
        "response_format.json_schema",
        "llguidance",
    ),
    ("top", {"top_logprobs": 3}, "top_logprobs", "add logprobs"),
    ("prompt", {"prompt": "a"}, "prompt", "messages here"),
    ("speech", {"modalities": ["audio"]}, "modalities", "text"),
]


@pytest.mark.parametrize(
    "body, param, says", [case[1:] for case in WRONG], ids=[case[0] for case in WRONG]
)
def test_what_is_wrong_is_named(body: Any, param: str, says: str, chats: Served) -> None:
    status, found = chats.post(PATH, {"messages": ASKED, **body})
    assert status == 400
    error = found["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param, error
    assert says in error["message"]


def test_messages_speak_to_clients(chats: Served, chat_folders: Any) -> None:
    """Of no command line, no Python, and no place on the server's disk."""
    for _, body, _, _ in WRONG:
        _, found = chats.post(PATH, {"messages": ASKED, **body})
        message = found["error"]["message"]
        assert "--" not in message and "Python" not in message
        assert str(chat_folders["plain"].path) not in message
