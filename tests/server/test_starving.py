"""What is dear for one client keeps no other waiting, and takes no more memory than it may."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
import pytest
from http_clients import Client
from hypothesis import given
from hypothesis import strategies as st
from pauses import longest_pause
from raw_http import post
from served import JSON, Served, served

from pocketlm.export.folder import ModelFolder
from pocketlm.runtime.logprobs import TopLogprobs
from pocketlm.runtime.model import Model
from pocketlm.runtime.openai_form import Each, logprobs_of, token_logprobs
from pocketlm.runtime.sequence import Step
from pocketlm.runtime.server import call, json_encoding, request_body
from pocketlm.runtime.server.api import completions, response_input, responses
from pocketlm.runtime.server.api.bodies import Completion
from pocketlm.runtime.server.api.details import token_entries
from pocketlm.runtime.server.api.terms import Terms
from pocketlm.runtime.server.endpoints import tokens
from pocketlm.runtime.server.errors import ApiError
from pocketlm.runtime.server.models.engine import Texts
from pocketlm.runtime.tokenizer import Tokenizer

pytestmark = pytest.mark.serve

ASKED = {"prompt": "a", "max_tokens": 1}
CHAT = {"messages": [{"role": "user", "content": "a"}], "transcript": True, "max_tokens": 30}
RESPONSE = {"input": "a", "transcript": True, "max_output_tokens": 3}
WITH_LOGPROBS = {"include": ["message.output_text.logprobs"], "top_logprobs": 3}
METADATA = {"a": "a" * request_body.LARGE_BYTES}


@pytest.fixture(scope="module")
def server(tiny_folder: ModelFolder) -> Iterator[Served]:
    with served({"tiny": tiny_folder}) as running:
        assert running.post("/v1/completions", ASKED)[0] == 200
        yield running


def turns_during(work: Callable[[], object]) -> int:
    """How often this thread comes to its turn while another does ``work``."""
    begun = threading.Event()

    def run() -> None:
        begun.set()
        work()

    thread = threading.Thread(target=run)
    thread.start()
    begun.wait()
    count = 0
    while thread.is_alive():
        time.sleep(1e-3)
        count += 1
    return count


@pytest.mark.parametrize("length", [3_999, 4_000])
def test_a_text_has_the_same_tokens_by_either_way(tiny_model: Model, length: int) -> None:
    text = ("Ducks, and é " * length)[:length]
    tokenizer = tiny_model.tokenizer
    (whole,) = [tokenizer._library.encode(text).ids]
    assert tokenizer.encode(text) == whole


def test_others_have_their_turn_while_a_long_text_is_tokenized(tiny_model: Model) -> None:
    tokenizer: Tokenizer = tiny_model.tokenizer
    assert turns_during(lambda: tokenizer.encode("x" * 300_000)) > 10


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=30,
    ).filter(lambda value: "inf" not in repr(value))
)
def test_json_in_turns_is_the_same(value: object) -> None:
    assert b"".join(json_encoding.parts_of(value)) == json_encoding.encoded(value)


def test_no_part_of_a_large_answer_is_large() -> None:
    top = {f"t{i}": -1.0 for i in range(100)}
    told = {"choices": [{"logprobs": {"tokens": ["a"] * 30_000, "top_logprobs": [top] * 50}}] * 3}
    parts = list(json_encoding.parts_of(told))
    assert b"".join(parts) == json_encoding.encoded(told)
    assert max(map(len, parts)) < 2 * json_encoding.PART_BYTES
    assert min(map(len, parts[:-1])) >= json_encoding.PART_BYTES


def test_no_more_of_an_answer_is_made_than_its_client_takes(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, parts_of = [], json_encoding.parts_of

    def noted(value: Any) -> Iterator[bytes]:
        for part in parts_of(value):
            made.append(len(part))
            yield part

    monkeypatch.setattr(call, "parts_of", noted)
    asked = ASKED | {"max_tokens": 120, "n": 8, "logprobs": 100, "ignore_eos": True}
    with Client(server.port, receive_bytes=4096).ask(**asked) as client:
        assert client.status == 200
        time.sleep(0.5)  # what the system takes for it is there then
        unread = sum(made)
        choices = client.whole()["choices"]
    assert [len(choice["logprobs"]["tokens"]) for choice in choices] == [120] * 8
    assert unread < sum(made) / 2


def test_no_part_of_the_last_event_of_a_response_is_large() -> None:
    entry = {"token": "a", "top_logprobs": [{"token": "a", "bytes": [97] * 3}] * 100}
    part = {"type": "output_text", "logprobs": Each(lambda _: entry, range(100))}
    whole = {"metadata": {str(i): i for i in range(10_000)}, "output": [{"content": [part]}]}
    event = {"type": "response.completed", "response": whole}
    parts = list(json_encoding._parts(event, json_encoding.PARTED))
    assert "".join(parts).encode() == json_encoding.encoded(event)
    assert max(map(len, parts)) < 10_000


@pytest.mark.parametrize("chat", [False, True])
def test_a_large_answer_is_never_there_as_a_whole(tiny_model: Model, chat: bool) -> None:
    rows = np.random.default_rng(0).random((100, 100))
    steps = [Step(i, -1.0, 0.0, top=TopLogprobs(np.arange(100), row)) for i, row in enumerate(rows)]

    def told() -> dict[str, object]:
        tokens = token_logprobs(steps, tiny_model.tokenizer)
        details = token_entries(steps, tiny_model.tokenizer)
        return {"choices": [{"logprobs": logprobs_of(tokens, chat=chat), "tokens": details}]}

    whole = json.loads(json.dumps(told(), default=list))
    tracemalloc.start()
    length = sum(map(len, json_encoding.parts_of(told())))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert json.loads(b"".join(json_encoding.parts_of(told()))) == whole
    assert length == len(json_encoding.encoded(told())) > 500_000
    assert most < 4 * json_encoding.PART_BYTES


def test_plain_texts_do_not_wait_for_forms(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    may_go_on, waiting = threading.Event(), []
    request = Model.request

    def slow(self: Model, prompt: Any = "", **options: Any) -> Any:
        if "regex" in options:
            waiting.append(prompt)
            may_go_on.wait(30)
        return request(self, prompt, **options)

    monkeypatch.setattr(Model, "request", slow)
    forms = [
        threading.Thread(target=server.post, args=("/v1/completions", ASKED | {"regex": "a"}))
        for _ in range(4)
    ]
    for form in forms:
        form.start()
    while len(waiting) < 2:
        time.sleep(1e-3)
    try:
        assert server.post("/v1/completions", ASKED)[0] == 200
        assert server.post("/tokenize", {"prompt": "a"})[0] == 200
    finally:
        may_go_on.set()
        for form in forms:
            form.join()


def test_bodies_of_all_together_are_bounded(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = server.service.held
    monkeypatch.setattr(held, "most_bytes", 300_000)
    large = json.dumps(ASKED | {"user": "u" * 200_000}).encode()
    head = "".join(f"{name}: {value}\r\n" for name, value in JSON.items())
    with socket.create_connection(("127.0.0.1", server.port)) as other:
        other.sendall(
            f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n{head}"
            f"Content-Length: {len(large)}\r\n\r\n".encode()
            + large[:-1]
        )
        while held.num_bytes < len(large) - 1:
            time.sleep(1e-3)
        answer, data = server.send("POST", "/v1/completions", large, **JSON)
        assert (answer.status, json.loads(data)["error"]["code"]) == (503, "overloaded")
        assert 1 <= int(answer.headers["Retry-After"]) <= 5
        assert server.post("/v1/completions", ASKED)[0] == 200
        other.sendall(large[-1:])
        assert other.recv(100).startswith(b"HTTP/1.1 200")
    assert server.post("/v1/completions", large)[0] == 200
    while held.num_bytes:
        time.sleep(1e-3)


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/completions", {"prompt": "a", "max_tokens": 100, "logprobs": 100}),
        ("/v1/completions", {"prompt": "a" * 120, "max_tokens": 0, "echo": True, "logprobs": 100}),
        (
            "/v1/responses",
            {
                **{"input": "a", "transcript": True, "max_output_tokens": 100},
                **{"include": ["message.output_text.logprobs"], "top_logprobs": 100},
            },
        ),
        ("/score", {"text": "a" * 120, "top": 100}),
        ("/v1/completions", {"prompt": [65] * 40_000}),
    ],
    ids=["texts", "echo", "responses", "score", "objects"],
)
def test_what_answers_and_objects_take_together_is_bounded(
    server: Served, path: str, asked: dict[str, Any]
) -> None:
    held = server.service.held
    while held.num_bytes:  # of the last request
        time.sleep(1e-3)
    with held.one() as other:
        other.grow(held.most_bytes - 10_000)
        answer, data = server.send("POST", path, json.dumps(asked).encode(), **JSON)
        error = json.loads(data)["error"]
        assert (answer.status, error["code"]) == (503, "overloaded")
        assert "expected at most" in error["message"] and "try again" in error["message"]
        assert answer.headers["Retry-After"] == "2"
        assert server.post("/v1/completions", ASKED)[0] == 200
    status, found = server.post(path, asked)
    assert status != 503, found


@pytest.mark.parametrize(
    ("path", "asked", "field"),
    [
        ("/v1/completions", {"prompt": "a", "n": 20, "max_tokens": 126}, "logprobs"),
        ("/v1/completions", {"prompt": "a", "best_of": 20, "max_tokens": 126}, "logprobs"),
        (
            "/v1/completions",
            {"prompt": "a" * 120, "n": 2, "echo": True, "max_tokens": 0},
            "logprobs",
        ),
        (
            "/v1/completions",
            {"prompt": "a" * 120, "n": 2, "echo": True, "stream": True},
            "logprobs",
        ),
        ("/v1/chat/completions", CHAT | {"logprobs": True, "n": 20}, "top_logprobs"),
        ("/v1/responses", RESPONSE | WITH_LOGPROBS | {"max_output_tokens": 120}, "top_logprobs"),
        (
            "/v1/responses",
            RESPONSE | WITH_LOGPROBS | {"max_output_tokens": 120, "stream": True},
            "top_logprobs",
        ),
        ("/score", {"text": "\N{PILE OF POO}" * 30}, "top"),
    ],
    ids=["n", "best_of", "echo", "stream", "chat", "response", "streamed-response", "score"],
)
def test_alternatives_of_an_answer_are_bounded(
    server: Served, monkeypatch: pytest.MonkeyPatch, path: str, asked: dict[str, Any], field: str
) -> None:
    monkeypatch.setattr("pocketlm.runtime.server.api.generation.MOST_ALTERNATIVES", 10_000)
    status, found = server.post(path, asked | {field: 100})
    assert (status, found["error"]["param"]) == (400, field)
    assert "alternatives in all" in found["error"]["message"]
    few = json.dumps(asked | {field: 3}).encode()
    assert server.send("POST", path, few, **JSON)[0].status == 200


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "a"}], "transcript": True, "logprobs": True},
        ),
        (
            "/v1/responses",
            {"input": "a", "transcript": True, "include": ["message.output_text.logprobs"]},
        ),
        ("/score", {"text": "a" * 120}),
    ],
)
def test_too_many_alternatives_are_told_by_the_field_that_says_how_many(
    server: Served, monkeypatch: pytest.MonkeyPatch, path: str, asked: dict[str, Any]
) -> None:
    monkeypatch.setattr("pocketlm.runtime.server.api.generation.MOST_ALTERNATIVES", 200)
    field = "top" if path == "/score" else "top_logprobs"
    status, found = server.post(path, asked | {field: 100})
    assert (status, found["error"]["param"]) == (400, field), found


def test_a_stream_that_is_told_as_it_comes_has_no_such_bound(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pocketlm.runtime.server.api.generation.MOST_ALTERNATIVES", 200)
    asked = {"prompt": "a", "max_tokens": 3, "logprobs": 100, "stream": True}
    data = json.dumps(asked).encode()
    assert server.send("POST", "/v1/completions", data, **JSON)[0].status == 200
    assert server.post("/v1/completions", asked | {"stream": False})[0] == 400


def test_a_long_conversation_is_read_beside_the_event_loop(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers = []
    chat_of = response_input.chat_of

    def noted(body: Any) -> Any:
        readers.append(threading.current_thread().name)
        return chat_of(body)

    monkeypatch.setattr(responses, "chat_of", noted)
    asked = {"input": "a", "transcript": True, "max_output_tokens": 1}
    assert server.post("/v1/responses", asked)[0] == 200
    (name,) = readers
    assert name.startswith(("preparing", "laborious"))


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is checked in one go; at most so many entries at once are few."""
    found: list[Any] = []
    convert = msgspec.convert

    def noted(value: Any, kind: Any) -> Any:
        found.append(value)
        return convert(value, kind)

    monkeypatch.setattr(msgspec, "convert", noted)
    monkeypatch.setattr(request_body, "AT_ONCE", 100)
    return found


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("banned_tokens", list(range(1001))),
        ("logit_bias", {str(i): i / 100 for i in range(1001)}),
        ("prompt", [[i] for i in range(1000)]),
        ("stop", ["a"] * 64),
    ],
)
def test_a_large_body_is_checked_in_pieces_and_the_same(
    checked: list[Any], field: str, value: Any
) -> None:
    body = request_body.parsed(json.dumps({field: value, "n": 3}).encode(), Completion)
    assert (getattr(body, field), body.n) == (value, 3)
    assert len(checked) == -(-len(value) // 100)
    assert max(len(piece[field]) for piece in checked) <= 100


def test_what_is_wrong_in_a_piece_is_named_by_its_place_in_the_whole(checked: list[Any]) -> None:
    data = json.dumps({"banned_tokens": [7] * 512 + ["x"] + [7] * 99}).encode()
    with pytest.raises(ApiError, match=r'^found banned_tokens\[512\] "x", expected an integer'):
        request_body.parsed(data, Completion)
    data = json.dumps({"logit_bias": {str(i): 1 for i in range(500)} | {"x": 1}}).encode()
    with pytest.raises(ApiError, match="expected keys: a string") as raised:
        request_body.parsed(data, Completion)
    assert raised.value.param == "logit_bias"
    with pytest.raises(ApiError, match="at most 64 entries"):
        request_body.parsed(json.dumps({"stop": ["a"] * 1000}).encode(), Completion)


@pytest.mark.parametrize(
    ("nested", "values"),
    [(request_body.MOST_NESTED, 0), (0, request_body.MOST_VALUES)],
    ids=["nested", "values"],
)
def test_keys_values_lists_and_objects_of_a_body_are_bounded(nested: int, values: int) -> None:
    some: dict[str, Any] = {"metadata": {"a": [[]] * (nested - 9) + [1] * (values - 9)}}
    assert request_body.parsed(json.dumps(some).encode(), Completion)
    some["metadata"]["a"] *= 2
    with pytest.raises(ApiError, match="too many"):
        request_body.parsed(json.dumps(some).encode(), Completion)


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/responses", RESPONSE | WITH_LOGPROBS),
        ("/v1/responses", RESPONSE | WITH_LOGPROBS | {"stream": True}),
        ("/v1/responses", RESPONSE | {"metadata": METADATA, "stream": True}),
        ("/v1/completions", ASKED | {"details": True}),
        ("/v1/completions", ASKED | {"details": True, "stream": True}),
        ("/v1/completions", ASKED | {"prompt": "a" * 60, "echo": True, "stream": True}),
        ("/v1/completions", {"prompt": "a" * 60, "echo": True, "n": 40, "max_tokens": 120}),
        ("/tokenize", {"prompt": "a"}),
        ("/detokenize", {"tokens": [5]}),
        ("/score", {"text": "a b"}),
        ("/next", {"prompt": "a", "logit_bias": {"5": 1}}),
    ],
)
def test_what_may_be_large_is_written_beside_the_event_loop(
    server: Served, monkeypatch: pytest.MonkeyPatch, path: str, asked: dict[str, Any]
) -> None:
    monkeypatch.setattr(completions, "LARGE_BYTES", 1000)
    check_is_beside_the_event_loop(server, monkeypatch, json_encoding, "_parts", path, asked)


def test_ids_are_checked_beside_the_event_loop(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"tokens": [5]}
    check_is_beside_the_event_loop(server, monkeypatch, tokens, "_check_ids", "/detokenize", asked)


def check_is_beside_the_event_loop(
    server: Served,
    monkeypatch: pytest.MonkeyPatch,
    module: ModuleType,
    name: str,
    path: str,
    asked: dict[str, Any],
) -> None:
    """That an answer calls it, in threads of its own."""
    loops, threads = [], []
    real = getattr(module, name)

    async def this_thread() -> int:
        return threading.get_ident()

    def noted(*arguments: Any) -> Any:
        threads.append(threading.get_ident())
        return real(*arguments)

    monkeypatch.setattr(module, name, noted)
    answer, _ = server.send("POST", path, json.dumps(asked).encode(), **JSON)
    assert answer.status == 200
    loop = server.server._loop
    assert loop is not None
    loops.append(asyncio.run_coroutine_threadsafe(this_thread(), loop).result(10))
    assert threads and not set(loops) & set(threads)


def test_what_a_slow_reader_has_not_taken_is_encoded_in_parts(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    batches = Texts.batches

    async def joined(self: Texts) -> AsyncIterator[Any]:
        """All at once, at the end."""
        everything = [one async for batch in batches(self) for one in batch]
        yield everything

    async def stream(self: call.Call, events: AsyncIterator[bytes]) -> None:
        async def noted() -> AsyncIterator[bytes]:
            async for event in events:
                sizes.append(len(event))
                yield event

        await streamed(self, noted())

    streamed = call.Call.stream
    monkeypatch.setattr(Texts, "batches", joined)
    monkeypatch.setattr(call.Call, "stream", stream)
    monkeypatch.setattr(completions, "PART_BYTES", 3_000)
    asked = {"prompt": "a", "max_tokens": 30, "logprobs": 20, "ignore_eos": True, "stream": True}
    answer, data = server.send("POST", "/v1/completions", json.dumps(asked).encode(), **JSON)
    assert answer.status == 200 and data.count(b"data: ") >= 20
    assert sum(sizes) == len(data) > 10_000
    assert len(sizes) >= 4 and max(sizes) < 3_000 + 2_000


def test_a_pause_is_seen(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the probe that D3 looks with."""

    def busy(*arguments: Any) -> None:
        until = time.thread_time() + 0.3
        while time.thread_time() < until:
            pass
        raise ApiError(400, "busy")

    asked = post("/v1/completions", ASKED, f"127.0.0.1:{server.port}", ["Connection: close"])
    _, head = longest_pause(server.port, asked, os.getpid())
    assert head.startswith(b"HTTP/1.1 200")
    monkeypatch.setattr(Terms, "of", busy)
    seconds, head = longest_pause(server.port, asked, os.getpid())
    assert head.startswith(b"HTTP/1.1 400") and seconds > 0.1
