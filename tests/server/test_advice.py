"""What an error says to do can be done there: it names no field that its endpoint refuses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from chat_models import base_model, chat_model
from served import Served, served

import pocketlm
from pocketlm.runtime.server.app import ENDPOINTS

pytestmark = pytest.mark.serve

LONG = "word " * 3000  # more tokens than the context of 2,048
LONGER = LONG * 10  # more characters than any text that fits
# Of each endpoint that reads a text, the field that has it.
READ: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "{}"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "{}"}]},
    "/v1/responses": {"input": "{}"},
    "/score": {"text": "{}"},
    "/next": {"prompt": "{}"},
    "/compare": {"text": "{}", "models": ["chats"]},
}
BODIES = {endpoint.path: endpoint.body for endpoint in ENDPOINTS if endpoint.body is not None}
FIELDS = {name for body in BODIES.values() for name in body.__struct_fields__}
# Those that are no word of a sentence.
SPELLED = {name for name in FIELDS if "_" in name}
WRONG: list[Any] = [-1, "x", ["x"], {"x": 1}, [10**6]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("advice")
    path = chat_model(base_model(folder), folder / "chats").path
    with served({"chats": partial(pocketlm.load, path, threads=1)}) as running:
        yield running


def reading(path: str, text: str) -> dict[str, Any]:
    """A body in which that endpoint reads ``text``."""

    def put(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: put(part) for name, part in value.items()}
        if isinstance(value, list):
            return [put(part) for part in value]
        return text if value == "{}" else value

    found: dict[str, Any] = put(READ[path])
    return found


def test_all_that_read_a_text_are_asked() -> None:
    others = {"/v1/embeddings", "/tokenize", "/detokenize"}  # these bound no text by the context
    assert set(BODIES) == set(READ) | others


@pytest.mark.parametrize("path", READ)
@pytest.mark.parametrize("text", [LONG, LONGER], ids=["tokens", "characters"])
def test_a_text_that_is_too_long_may_slide_where_its_error_says_so(
    server: Served, path: str, text: str
) -> None:
    body = reading(path, text)
    message = refused_as_too_long(server, path, body)
    assert "shorten" in message
    slid, _ = server.post(path, {**body, "context": "slide", "max_tokens": 1})
    assert ("slide" in message) == (slid == 200), message
    if path == "/v1/completions":
        assert 'or set context to "slide"' in message


@pytest.mark.parametrize("others", [{"beams": 2}, {"echo": True, "logprobs": 0, "max_tokens": 0}])
def test_so_it_is_where_other_fields_leave_no_room_for_that(
    server: Served, others: dict[str, Any]
) -> None:
    body = {"prompt": LONG, "max_tokens": 1, **others}
    assert "slide" not in refused_as_too_long(server, "/v1/completions", body)
    assert server.post("/v1/completions", {**body, "context": "slide"})[0] == 400


@pytest.mark.parametrize("path", READ)
def test_no_error_names_a_field_that_its_endpoint_has_not(server: Served, path: str) -> None:
    known = set(BODIES[path].__struct_fields__)
    few: dict[str, Any] = {name: 1 for name in ("max_tokens", "max_output_tokens") if name in known}
    messages = set()
    for name in sorted(known - {"stream"}):
        for value in WRONG:
            status, found = server.post(path, {**few, **reading(path, "a"), name: value})
            if status != 200:
                messages.add(found["error"]["message"])
    assert len(messages) > len(known)  # mostly something is wrong
    strange = {
        (word, message)
        for message in messages
        for word in set(re.findall(r"[a-z]+(?:_[a-z]+)+", message)) & SPELLED - known
    }
    assert strange == set()


def refused_as_too_long(server: Served, path: str, body: dict[str, Any]) -> str:
    """What it is told."""
    status, found = server.post(path, body)
    assert (status, found["error"]["code"]) == (400, "context_length_exceeded"), found
    message: str = found["error"]["message"]
    return message
