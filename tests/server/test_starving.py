"""What is dear for one client keeps no other waiting, and takes no more memory than it may."""

from __future__ import annotations

import json
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from http_clients import Client
from hypothesis import given
from hypothesis import strategies as st
from served import JSON, Served, served

import pocketlm
from pocketlm.export.folder import ModelFolder
from pocketlm.runtime.logprobs import TopLogprobs
from pocketlm.runtime.model import Model
from pocketlm.runtime.openai_form import logprobs_of, token_logprobs
from pocketlm.runtime.sequence import Step
from pocketlm.runtime.server import call
from pocketlm.runtime.server.api import responding, response_input
from pocketlm.runtime.server.api.details import tokens_told
from pocketlm.runtime.tokenizer import Tokenizer

pytestmark = pytest.mark.serve

ASKED = {"prompt": "a", "max_tokens": 1}


@pytest.fixture(scope="module")
def server(tiny_folder: ModelFolder) -> Iterator[Served]:
    with served({"tiny": lambda: pocketlm.load(tiny_folder.path, threads=1)}) as running:
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
    assert b"".join(call.parts_of(value)) == call.encoded(value)


def test_no_part_of_a_large_answer_is_large() -> None:
    top = {f"t{i}": -1.0 for i in range(100)}
    told = {"choices": [{"logprobs": {"tokens": ["a"] * 30_000, "top_logprobs": [top] * 50}}] * 3}
    parts = list(call.parts_of(told))
    assert b"".join(parts) == call.encoded(told)
    assert max(map(len, parts)) < 2 * call.PART_BYTES
    assert min(map(len, parts[:-1])) >= call.PART_BYTES


def test_no_more_of_an_answer_is_made_than_its_client_takes(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, parts_of = [], call.parts_of

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


@pytest.mark.parametrize("chat", [False, True])
def test_a_large_answer_is_never_there_as_a_whole(tiny_model: Model, chat: bool) -> None:
    rows = np.random.default_rng(0).random((100, 100))
    steps = [Step(i, -1.0, 0.0, top=TopLogprobs(np.arange(100), row)) for i, row in enumerate(rows)]

    def told() -> dict[str, object]:
        tokens = token_logprobs(steps, tiny_model.tokenizer)
        details = tokens_told(steps, tiny_model.tokenizer)
        return {"choices": [{"logprobs": logprobs_of(tokens, chat=chat), "tokens": details}]}

    whole = json.loads(json.dumps(told(), default=list))
    tracemalloc.start()
    length = sum(map(len, call.parts_of(told())))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert json.loads(b"".join(call.parts_of(told()))) == whole
    assert length == len(call.encoded(told())) > 500_000
    assert most < 4 * call.PART_BYTES


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
    ("path", "asked"),
    [
        ("/v1/completions", {"prompt": "a", "n": 40, "max_tokens": 126, "logprobs": 100}),
        ("/v1/completions", {"prompt": "a", "best_of": 40, "max_tokens": 126, "logprobs": 100}),
        (
            "/v1/completions",
            {"prompt": "a" * 120, "n": 2, "echo": True, "max_tokens": 0, "logprobs": 100},
        ),
        (
            "/v1/completions",
            {"prompt": "a" * 120, "n": 2, "echo": True, "stream": True, "logprobs": 100},
        ),
    ],
    ids=["n", "best_of", "echo", "stream"],
)
def test_alternatives_of_an_answer_are_bounded(
    server: Served, monkeypatch: pytest.MonkeyPatch, path: str, asked: dict[str, Any]
) -> None:
    monkeypatch.setattr("pocketlm.runtime.server.api.asking.MOST_ALTERNATIVES", 20_000)
    status, found = server.post(path, asked)
    assert (status, found["error"]["param"]) == (400, "logprobs")
    assert "alternatives in all" in found["error"]["message"]
    assert server.post(path, asked | {"logprobs": 3, "n": 1, "stream": False})[0] == 200


def test_a_stream_that_is_told_as_it_comes_has_no_such_bound(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pocketlm.runtime.server.api.asking.MOST_ALTERNATIVES", 200)
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

    monkeypatch.setattr(responding, "chat_of", noted)
    asked = {"input": "a", "transcript": True, "max_output_tokens": 1}
    assert server.post("/v1/responses", asked)[0] == 200
    (name,) = readers
    assert name.startswith(("preparing", "laborious"))
