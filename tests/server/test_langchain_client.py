"""LangChain's ChatOpenAI with nothing but another address."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import pytest
from chat_models import CAT, WEATHER
from chat_requests import answered
from served import Served

pytest.importorskip("langchain_openai")
pytestmark = pytest.mark.clients


def model(chats: Served, **options: Any) -> Any:
    from langchain_openai import ChatOpenAI

    given: dict[str, Any] = {"model": "plain", "max_tokens": 12, "seed": 3, "temperature": 1.0}
    given |= {"base_url": f"{chats.url}/v1", "api_key": "any", "max_retries": 0}
    return ChatOpenAI(**given | options)


def text_of(chats: Served) -> str:
    text = answered(chats)["choices"][0]["message"]["content"]
    assert isinstance(text, str)
    return text


def test_it_asks_in_every_way(chats: Served) -> None:
    chat, text = model(chats), text_of(chats)
    found = chat.invoke("Why?")
    assert found.content == text
    assert found.usage_metadata["output_tokens"] == 12
    assert found.response_metadata["finish_reason"] == "length"
    assert "".join(piece.content for piece in chat.stream("Why?")) == text
    assert [answer.content for answer in chat.batch(["Why?", "Why?"])] == [text, text]

    async def ask() -> Any:
        found = await chat.ainvoke("Why?")
        await chat.root_async_client.close()
        return found.content

    assert asyncio.run(ask()) == text


def test_so_it_does_by_responses(chats: Served) -> None:
    chat = model(chats, use_responses_api=True, seed=None, extra_body={"seed": 3})
    assert chat.invoke("Why?").text == text_of(chats)
    assert "".join(piece.text for piece in chat.stream("Why?")) == text_of(chats)


@pytest.mark.parametrize("name", ["plain", "hermes"])
def test_it_binds_tools(name: str, chats: Served) -> None:
    from langchain_core.messages import HumanMessage, ToolMessage

    chat = model(chats, model=name, max_tokens=120)
    bound = chat.bind_tools([WEATHER], tool_choice="weather", parallel_tool_calls=False)
    found = bound.invoke("Weather?")
    (call,) = found.tool_calls
    assert call["name"] == "weather" and call["args"]["city"] in ("Paris", "Seoul")
    gathered = None
    for piece in bound.stream("Weather?"):
        gathered = piece if gathered is None else gathered + piece
    assert gathered is not None and gathered.tool_calls[0]["args"] == call["args"]
    returned = ToolMessage("22", tool_call_id=call["id"])
    again = model(chats, model=name).invoke([HumanMessage("Weather?"), found, returned])
    assert again.usage_metadata["output_tokens"] == 12


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_it_gets_what_has_a_structure(method: Literal["json_schema"], chats: Served) -> None:
    schema = {"title": "cat", "description": "A pet", **CAT}
    chat = model(chats, max_tokens=120).with_structured_output(schema, method=method)
    assert chat.invoke("Which pet?")["kind"] in ("cat", "dog")
