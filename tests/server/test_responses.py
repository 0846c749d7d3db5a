"""/v1/responses: the same answers as of chats, as items and as the events that tell of them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from http.client import IncompleteRead
from typing import Any

import pytest
from chat_models import CAT, NOW, WEATHER
from chat_requests import ASKED, answered
from served import Served

from pocketlm.export.errors import NumericsError
from pocketlm.runtime.server import call, json_encoding
from pocketlm.runtime.server.models.engine import Texts

pytestmark = pytest.mark.serve

PATH = "/v1/responses"
INPUT = ASKED[0]["content"]
OPTIONS = {"max_output_tokens": 12, "seed": 3, "temperature": 1.0}
TOOLS = [{"type": "function", **tool["function"]} for tool in (WEATHER, NOW)]
NAMED = {"type": "function", "name": "now"}
IMAGE = {"type": "input_image", "image_url": "x"}


def responded(server: Served, **body: Any) -> Any:
    status, found = server.post(PATH, {"input": INPUT, **OPTIONS, **body})
    assert status == 200, found
    return found


def streamed(server: Served, **body: Any) -> list[Any]:
    """The data of its events, whose names are their types and whose numbers count up."""
    sent = json.dumps({"input": INPUT, **OPTIONS, **body, "stream": True}).encode()
    answer, data = server.send("POST", PATH, sent, **{"Content-Type": "application/json"})
    assert answer.status == 200, data
    told = []
    for number, event in enumerate(data.decode().strip().split("\n\n")):
        name, found = event.split("\n")
        told.append(json.loads(found.removeprefix("data: ")))
        assert name == f"event: {told[-1]['type']}"
        assert told[-1]["sequence_number"] == number
    return told


def test_a_response_says_what_a_chat_does(chats: Served) -> None:
    found = responded(chats)
    chat = answered(chats)
    (item,) = found["output"]
    assert item["type"] == "message" and item["role"] == "assistant"
    (part,) = item["content"]
    assert part["text"] == chat["choices"][0]["message"]["content"]
    assert found["status"] == item["status"] == "incomplete"
    assert found["incomplete_details"] == {"reason": "max_output_tokens"}
    usage = chat["usage"]
    assert found["usage"]["input_tokens"] == usage["prompt_tokens"]
    assert found["usage"]["output_tokens"] == usage["completion_tokens"]
    assert found["model"] == "plain" and found["store"] is False


def test_a_text_that_ends_is_complete(chats: Served) -> None:
    form = {"format": {"type": "json_schema", "name": "cat", "schema": CAT, "strict": True}}
    found = responded(chats, text=form, max_output_tokens=60)
    assert found["status"] == "completed" and found["incomplete_details"] is None
    assert json.loads(found["output"][0]["content"][0]["text"])["kind"] in ("cat", "dog")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"model": "hermes", "tools": TOOLS},
        {"model": "hermes", "tools": TOOLS, "tool_choice": "required", "max_output_tokens": 120},
        {
            "tools": TOOLS,
            "tool_choice": {"type": "function", "name": "now"},
            "max_output_tokens": 90,
        },
        {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
    ],
    ids=["words", "no call", "calls", "a call", "logprobs"],
)
def test_a_stream_ends_with_what_the_whole_is(body: dict[str, Any], chats: Served) -> None:
    whole = responded(chats, **body)
    told = streamed(chats, **body)
    assert [event["type"] for event in told[:2]] == ["response.created", "response.in_progress"]
    last = told[-1]
    assert last["type"] == f"response.{whole['status']}"
    assert plain(last["response"]["output"]) == plain(whole["output"])
    check_items(told[2:-1], last["response"]["output"])


def plain(output: list[Any]) -> list[Any]:
    """Without the ids, which are those of one request."""
    return [{k: v for k, v in item.items() if k not in ("id", "call_id")} for item in output]


def check_items(told: list[Any], output: list[Any]) -> None:
    """Every item begins, grows and ends, one after the other, and is what grew."""
    for index, item in enumerate(output):
        mine = [event for event in told if event["output_index"] == index]
        kinds = [event["type"].removeprefix("response.") for event in mine]
        assert kinds[0] == "output_item.added" and kinds[-1] == "output_item.done"
        assert mine[-1]["item"] == item
        assert mine[0]["item"]["status"] == "in_progress"
        grown = "".join(event["delta"] for event in mine if event["type"].endswith(".delta"))
        if item["type"] == "function_call":
            assert set(kinds[1:-2]) == {"function_call_arguments.delta"}
            assert kinds[-2] == "function_call_arguments.done"
            assert mine[-2]["arguments"] == item["arguments"] == grown
        else:
            assert kinds[1] == "content_part.added"
            assert kinds[-3:-1] == ["output_text.done", "content_part.done"]
            (part,) = item["content"]
            assert mine[-3]["text"] == part["text"] == grown
            logprobs = [event["logprobs"] for event in mine if event["type"].endswith("text.delta")]
            assert sum(logprobs, []) == part["logprobs"]
    assert [event["output_index"] for event in told] == sorted(
        event["output_index"] for event in told
    )


def test_logprobs_are_told_where_they_are_wanted(chats: Served) -> None:
    found = responded(chats, include=["message.output_text.logprobs"], top_logprobs=2)
    logprobs = found["output"][0]["content"][0]["logprobs"]
    assert len(logprobs) == 12 and len(logprobs[0]["top_logprobs"]) == 2
    assert responded(chats)["output"][0]["content"][0]["logprobs"] == []


def test_a_conversation_of_items_is_one_of_messages(chats: Served) -> None:
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "Why?"}]},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "So", "annotations": []}],
        },
        {"type": "function_call", "call_id": "a", "name": "now", "arguments": "{}"},
        {"type": "function_call", "call_id": "b", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": "noon"},
        {"type": "function_call_output", "call_id": "b", "output": "22"},
    ]
    calls = [
        {"id": "a", "type": "function", "function": {"name": "now", "arguments": "{}"}},
        {"id": "b", "type": "function", "function": {"name": "weather", "arguments": "{}"}},
    ]
    messages = [
        {"role": "system", "content": "Be brief"},
        *ASKED,
        {"role": "assistant", "content": "So", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "a", "content": "noon"},
        {"role": "tool", "tool_call_id": "b", "content": "22"},
    ]
    for model in ("plain", "hermes"):
        found = responded(chats, model=model, input=items, instructions="Be brief")
        chat = answered(chats, model=model, messages=messages)
        text = chat["choices"][0]["message"]["content"]
        assert found["output"][0]["content"][0]["text"] == text


def test_what_was_answered_may_be_sent_back(chats: Served) -> None:
    choice = {"tool_choice": "required", "max_output_tokens": 120, "parallel_tool_calls": False}
    first = responded(chats, model="hermes", tools=TOOLS, **choice)
    (call,) = first["output"]
    returned = {"type": "function_call_output", "call_id": call["call_id"], "output": "22"}
    items = [{"role": "user", "content": INPUT}, call, returned]
    assert responded(chats, model="hermes", input=items)["usage"]["output_tokens"] == 12


@pytest.mark.parametrize(
    "body, param",
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": ["file_search_call.results"]}, "include[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
        (
            {"tools": [{"type": "function", "name": "a", "parameters": {"type": "array"}}]},
            "tools[0].parameters",
        ),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "x"}}, "tool_choice"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0]",
        ),
        ({"input": [{"content": "a"}]}, "input[0].role"),
        ({"input": [{"type": "function_call", "name": "now"}]}, "input[0].call_id"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"messages": ASKED}, "messages"),
        ({"model": "base"}, "input"),
        ({"model": "nobody"}, "model"),
    ],
)
def test_what_is_not_to_be_had_is_named(body: Any, param: str, chats: Served) -> None:
    status, found = chats.post(PATH, {"input": INPUT, **body})
    assert status == (404 if body.get("model") == "nobody" else 400)
    assert found["error"]["param"] == param, found
    assert "messages[" not in found["error"]["message"]


def test_too_long_an_input_is_named(chats: Served) -> None:
    for name, path in {"input": "/v1/responses", "messages": "/v1/chat/completions"}.items():
        for text in ("e" * 10_000, "e" * 200_000):  # too many tokens; too many characters
            status, found = chats.post(path, {name: [{"role": "user", "content": text}]})
            error = found["error"]
            assert (status, error["code"]) == (400, "context_length_exceeded")
            assert error["param"] == name


def test_store_is_taken_and_nothing_kept(chats: Served) -> None:
    found = responded(chats, store=True)
    assert found["store"] is False
    status, _ = chats.get(f"{PATH}/{found['id']}")
    assert status == 404


def test_a_stream_that_fails_ends_with_an_event_of_its_error(
    chats: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def batches(texts: Texts, streams: bool = True) -> AsyncIterator[Any]:
        raise NumericsError("the logits are not finite")
        yield

    monkeypatch.setattr(Texts, "batches", batches)
    *begun, last = streamed(chats)
    assert [event["type"] for event in begun] == ["response.created", "response.in_progress"]
    assert last["type"] == "error" and last["code"] == "numerics"
    assert "not finite" in last["message"]


def test_an_event_that_cannot_be_written_to_its_end_cuts_the_stream_off(
    chats: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came after it would be read as the rest of it."""
    parts_of = json_encoding.parts_of

    def broken(value: Any) -> Iterator[bytes]:
        (whole,) = parts_of(value)
        if b"response.completed" in whole or b"response.incomplete" in whole:
            yield whole[:100]
            raise MemoryError
        yield whole

    monkeypatch.setattr(call, "parts_of", broken)
    asked = {"include": ["message.output_text.logprobs"], "top_logprobs": 1, "stream": True}
    sent = json.dumps({"input": INPUT, **OPTIONS, **asked}).encode()
    with pytest.raises(IncompleteRead) as cut:
        chats.send("POST", PATH, sent, **{"Content-Type": "application/json"})
    *_, last = cut.value.partial.decode().split("\n\n")
    assert last.startswith("event: response.") and last.count("\n") == 1
