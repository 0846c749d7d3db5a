"""Calls of functions over HTTP: held to the form of the model, whole and streamed alike."""

from __future__ import annotations

import json
from typing import Any

import pytest
from chat_models import CAT, NOW, WEATHER
from chat_requests import ASKED, PATH, SETTINGS, answered
from served import Served

pytestmark = pytest.mark.serve

TOOLS = [WEATHER, NOW]
# Told of functions in our words, by the template, and in our words as the template tells nothing.
MODELS = ["plain", "hermes", "deaf"]
ENOUGH = {"max_tokens": 120, "tools": TOOLS}


def valid(call: Any) -> bool:
    """Whether it is one of a function of ``TOOLS``."""
    name, arguments = call["function"]["name"], json.loads(call["function"]["arguments"])
    if name == "now":
        return bool(arguments == {})
    return name == "weather" and arguments["city"] in ("Paris", "Seoul") and len(arguments) == 2


@pytest.mark.parametrize("model", MODELS)
def test_a_call_that_is_required_is_made(model: str, chats: Served) -> None:
    for seed in range(3):
        body = {**ENOUGH, "tool_choice": "required", "parallel_tool_calls": False, "seed": seed}
        (choice,) = answered(chats, model=model, **body)["choices"]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] is None
        (call,) = choice["message"]["tool_calls"]
        assert valid(call) and call["type"] == "function" and call["id"]


@pytest.mark.parametrize("model", MODELS)
def test_the_function_that_is_named_is_called(model: str, chats: Served) -> None:
    choice = {"type": "function", "function": {"name": "now"}}
    found = answered(chats, model=model, tool_choice=choice, **ENOUGH)
    (call,) = found["choices"][0]["message"]["tool_calls"]
    assert call["function"] == {"name": "now", "arguments": "{}"}


@pytest.mark.parametrize("model", MODELS)
def test_a_model_that_calls_nothing_says_what_it_says(model: str, chats: Served) -> None:
    """With random weights it begins no call of its own accord."""
    (choice,) = answered(chats, model=model, **{**ENOUGH, "max_tokens": 8})["choices"]
    assert choice["message"]["content"] and "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "length"
    told = chats.stream(
        PATH, {"model": model, "messages": ASKED, **SETTINGS, **ENOUGH, "max_tokens": 8}
    )
    deltas = [chunk["choices"][0]["delta"] for chunk in told]
    assert "".join(delta.get("content") or "" for delta in deltas) == choice["message"]["content"]


@pytest.mark.parametrize("model", MODELS)
def test_a_stream_makes_the_calls_that_the_whole_does(model: str, chats: Served) -> None:
    body = {"model": model, "tool_choice": "required", **ENOUGH}
    (choice,) = answered(chats, **body)["choices"]
    told = chats.stream(PATH, {"messages": ASKED, **SETTINGS, **body})
    calls: list[Any] = []
    for chunk in told:
        for part in chunk["choices"][0]["delta"].get("tool_calls", ()):
            if "id" in part:  # the name first
                assert part["index"] == len(calls) and part["function"]["arguments"] == ""
                calls.append(part["function"])
            else:
                calls[part["index"]]["arguments"] += part["function"]["arguments"]
    assert calls == [call["function"] for call in choice["message"]["tool_calls"]]
    assert told[0]["choices"][0]["delta"] == {"role": "assistant", "content": None}
    assert told[-1]["choices"][0]["finish_reason"] == choice["finish_reason"]


def test_only_one_call_where_no_more_are_wanted(chats: Served) -> None:
    body = {"model": "hermes", "tool_choice": "required", "parallel_tool_calls": False}
    for seed in range(4):
        found = answered(chats, **body, **{**ENOUGH, "seed": seed})
        assert len(found["choices"][0]["message"]["tool_calls"]) == 1


def test_a_call_that_is_cut_ends_for_its_length(chats: Served) -> None:
    found = answered(chats, tool_choice="required", **{**ENOUGH, "max_tokens": 30})
    (choice,) = found["choices"]
    assert choice["finish_reason"] == "length"


def test_a_call_that_a_stop_string_cuts_is_none_to_answer(chats: Served) -> None:
    found = answered(chats, tool_choice="required", **{**ENOUGH, "stop": ['"arguments"']})
    assert found["choices"][0]["finish_reason"] == "stop"


def test_nothing_is_called_where_that_is_asked_for(chats: Served) -> None:
    plainly, told_none = answered(chats), answered(chats, tools=TOOLS, tool_choice="none")
    assert told_none["choices"][0]["message"] == plainly["choices"][0]["message"]


@pytest.mark.parametrize("model", MODELS)
def test_a_conversation_goes_on_after_a_call(model: str, chats: Served) -> None:
    message = answered(chats, model=model, tool_choice="required", **ENOUGH)["choices"][0][
        "message"
    ]
    returned = [
        {"role": "tool", "tool_call_id": call["id"], "content": "22"}
        for call in message["tool_calls"]
    ]
    messages = [*ASKED, message, *returned]
    for tools in (TOOLS, None):
        found = answered(chats, model=model, messages=messages, tools=tools)
        assert found["usage"]["completion_tokens"] == 12


def test_words_may_have_a_form_beside_calls(chats: Served) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "cat", "schema": CAT}}
    body = {"model": "hermes", "response_format": form, **ENOUGH}
    (choice,) = answered(chats, **body)["choices"]
    assert json.loads(choice["message"]["content"])["kind"] in ("cat", "dog")
    status, found = chats.post(PATH, {"messages": ASKED, **body, "model": "plain"})
    assert status == 400 and found["error"]["param"] == "response_format"


def with_schema(schema: Any) -> list[Any]:
    return [NOW, {"type": "function", "function": {"name": "f", "parameters": schema}}]


# Those that a server must not be hurt by, of CVE-2025-48942 to 48944 and beyond.
NASTY: dict[str, Any] = {
    "no regex": {"properties": {"a": {"type": "string", "pattern": "(["}}},
    "look-around": {"properties": {"a": {"type": "string", "pattern": "(?=a)b"}}},
    "no type": {"properties": {"a": {"type": "something"}}},
    "a type that is none": {"properties": {"a": {"type": 5}}},
    "nothing satisfies it": {"properties": {"a": False}, "required": ["a"]},
    "refers to itself": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
    "refers outside": {"$ref": "http://127.0.0.1/x.json"},
    "thousands of properties": {"properties": {f"p{i}": {} for i in range(20_000)}},
    "all of many": {
        "allOf": [
            {"anyOf": [{"properties": {f"{k}{i}": {"type": "null"}}} for k in "ab"]}
            for i in range(16)
        ]
    },
}


@pytest.mark.parametrize("name", NASTY)
def test_a_schema_that_cannot_be_is_named_and_harms_nobody(name: str, chats: Served) -> None:
    status, found = chats.post(PATH, {"messages": ASKED, "tools": with_schema(NASTY[name])})
    assert status == 400, found
    assert found["error"]["param"].startswith("tools[1].function.parameters"), found
    assert "tools[1]" in found["error"]["message"]
    assert answered(chats)["usage"]["completion_tokens"] == 12


@pytest.mark.parametrize(
    "pattern", ["((a{1,100}){1,100}){1,100}", "(.*a){1,200}", "(.|\\n)*[aeiou](.|\\n){40}x"]
)
def test_a_regex_that_grows_ends_by_its_limits(pattern: str, chats: Served) -> None:
    schema = {"properties": {"a": {"type": "string", "pattern": pattern}}, "required": ["a"]}
    body = {"tools": with_schema(schema), "tool_choice": "required", **SETTINGS, "max_tokens": 60}
    status, _ = chats.post(PATH, {"messages": ASKED, **body})
    assert status in (200, 400)
    assert answered(chats)["usage"]["completion_tokens"] == 12


@pytest.mark.parametrize("path", ["/v1/completions", PATH])
def test_a_grammar_that_ends_a_process_ends_none_of_ours(path: str, chats: Served) -> None:
    rules = "\n".join(f'a{index}: "x" a{index + 1} "y"' for index in range(20_000))
    body = {"prompt": "a"} if path != PATH else {"messages": ASKED}
    status, found = chats.post(path, {**body, "grammar": f'start: a0\n{rules}\na20000: "z"'})
    assert status == 400 and found["error"]["param"] == "grammar"
    assert answered(chats)["usage"]["completion_tokens"] == 12


@pytest.mark.parametrize(
    "body, param",
    [
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": with_schema({"type": "string"})}, "tools[1].function.parameters"),
        ({"tools": [NOW, NOW]}, "tools[1].function.name"),
        ({"tools": [NOW] * 129}, "tools"),
        ({"tools": "now"}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "perhaps"}, "tool_choice"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "tool_choice",
        ),
        ({"tools": TOOLS, "regex": "a"}, "regex"),
        ({"tools": TOOLS, "parallel_tool_calls": 3}, "parallel_tool_calls"),
        ({"functions": [{"name": "f"}]}, "functions"),
    ],
)
def test_what_is_wrong_with_tools_is_named(body: Any, param: str, chats: Served) -> None:
    status, found = chats.post(PATH, {"messages": ASKED, **body})
    assert status == 400 and found["error"]["param"] == param, found
