"""What a request takes of memory goes when it has been answered."""

from __future__ import annotations

import gc
import json
import threading
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from http_clients import Client
from served import JSON, Served, served

import pocketlm
from pocketlm.export.folder import ModelFolder
from pocketlm.runtime.server import held_bytes

pytestmark = pytest.mark.serve

SIZE = 300_000  # bytes of a body that is large
ASKED: dict[str, Any] = {"prompt": "a", "max_tokens": 1}
FILLED = ASKED | {"user": "u" * SIZE}
LONG = "a" * SIZE
CHATS, RESPONSES = "/v1/chat/completions", "/v1/responses"
CHAT = {"messages": [{"role": "user", "content": "a"}], "transcript": True, "max_tokens": 1}
BODIES: dict[str, tuple[str, Any, int]] = {
    "answered": ("/v1/completions", FILLED, 200),
    "streamed": ("/v1/completions", FILLED | {"stream": True}, 200),
    "no-json": ("/v1/completions", b"[" * SIZE, 400),
    "unknown-field": ("/v1/completions", FILLED | {"other": 1}, 400),
    "wrong-type": ("/v1/completions", FILLED | {"n": LONG}, 400),
    "unknown-model": ("/v1/completions", FILLED | {"model": "other"}, 404),
    "contradiction": ("/v1/completions", FILLED | {"best_of": 2, "n": 3}, 400),
    "too-long": ("/v1/completions", {"prompt": LONG}, 400),
    "too-many-ids": ("/v1/completions", {"prompt": [65] * SIZE}, 400),
    "too-many-texts": ("/v1/completions", FILLED | {"n": 100}, 400),
    "wrong-token": ("/v1/completions", FILLED | {"logit_bias": {"1000000": 1}}, 400),
    "wrong-form": ("/v1/completions", FILLED | {"regex": "("}, 400),
    "wrong-beams": ("/v1/completions", FILLED | {"beams": 2, "n": 3}, 400),
    "too-long-chat": (CHATS, {"messages": [{"role": "user", "content": LONG}]}, 400),
    "too-long-input": (RESPONSES, {"input": LONG, "transcript": True}, 400),
    "no-such-token": ("/detokenize", {"tokens": [65] * (SIZE // 2) + [10**6]}, 400),
    "score": ("/score", {"context": LONG, "continuations": ["a"]}, 400),
    "next": ("/next", {"prompt": LONG}, 400),
    "compare": ("/compare", {"models": ["tiny"], "text": LONG}, 400),
}


@pytest.fixture(scope="module")
def server(tiny_folder: ModelFolder) -> Iterator[Served]:
    with served({"tiny": lambda: pocketlm.load(tiny_folder.path, threads=1)}) as running:
        assert running.post("/v1/completions", ASKED)[0] == 200
        yield running


@pytest.fixture
def traced() -> Iterator[None]:
    """Memory is counted, and cycles of objects are not collected."""
    gc.collect()
    gc.disable()
    tracemalloc.start()
    yield
    tracemalloc.stop()
    gc.enable()


def held_after(server: Served) -> int:
    """Bytes that Python holds, once every request has ended."""
    while server.service.held.num_bytes:
        time.sleep(1e-3)
    server.send("GET", "/health")  # what the last request left in passing goes
    return tracemalloc.get_traced_memory()[0]


def falls_below(server: Served, most: int) -> bool:
    """Whether it does in a moment: a thread may still be about to let go."""
    deadline = time.monotonic() + 5
    while not (fell := held_after(server) < most) and time.monotonic() < deadline:
        time.sleep(0.01)
    return fell


@pytest.mark.parametrize("name", BODIES)
def test_nothing_of_a_body_is_held_after_its_answer(
    server: Served, traced: None, name: str
) -> None:
    path, body, expected = BODIES[name]
    data = body if isinstance(body, bytes) else json.dumps(body).encode()

    def ask() -> None:
        answer, _ = server.send("POST", path, data, **JSON)
        assert answer.status == expected

    ask()
    before = held_after(server)
    for _ in range(3):
        ask()
    assert falls_below(server, before + SIZE // 2)


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/completions", ASKED | {"n": 2}),
        ("/v1/completions", ASKED | {"stream": True}),
        ("/v1/completions", ASKED | {"lookup": True}),
        ("/v1/completions", ASKED | {"beams": 2}),
        ("/v1/completions", ASKED | {"regex": "a"}),
        ("/v1/completions", {"prompt": "ab", "max_tokens": 0, "echo": True, "logprobs": 1}),
        (CHATS, CHAT),
        (CHATS, CHAT | {"stream": True}),
        (RESPONSES, {"input": "a", "transcript": True}),
        (RESPONSES, {"input": "a", "transcript": True, "stream": True}),
        ("/score", {"text": "ab", "top": 1}),
        ("/next", {"prompt": "a"}),
        ("/compare", {"models": ["tiny"], "text": "ab"}),
        ("/tokenize", {"prompt": "a"}),
        ("/detokenize", {"tokens": [65]}),
    ],
)
def test_nothing_of_ours_holds_itself(
    server: Served, traced: None, path: str, asked: dict[str, Any]
) -> None:
    data = json.dumps(asked).encode()
    gc.collect()
    assert server.send("POST", path, data, **JSON)[0].status == 200
    held_after(server)
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    gc.set_debug(0)
    found, gc.garbage[:] = [type(one) for one in gc.garbage], []
    assert [kind for kind in found if kind.__module__.startswith("pocketlm")] == []


def test_once_it_is_quiet_after_something_large_memory_is_given_back(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    monkeypatch.setattr(held_bytes, "QUIET_SECONDS", 0.1)
    monkeypatch.setattr(held_bytes, "give_back", lambda: threads.append(threading.current_thread()))
    assert server.post("/v1/completions", ASKED)[0] == 200
    time.sleep(0.3)
    assert threads == []
    for _ in range(3):
        assert server.post("/v1/completions", FILLED)[0] == 200
    deadline = time.monotonic() + 5
    while not threads and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    assert 1 <= len(threads) <= 3
    assert all(thread.name != "MainThread" for thread in threads)


def test_memory_is_given_back_once_small_requests_leave_it_quiet(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those end without a word: together they may take as much as a large one."""
    given_back = threading.Event()
    monkeypatch.setattr(held_bytes, "QUIET_SECONDS", 0.1)
    monkeypatch.setattr(held_bytes, "give_back", given_back.set)
    held = server.service.held
    with held.one() as one, held.one() as other:
        for small in (one, other):
            small.grow(held_bytes.SMALL_BYTES - 1)
        assert server.post("/v1/completions", FILLED)[0] == 200
        assert not given_back.wait(0.3)
    assert given_back.wait(5)


def test_nor_after_a_client_who_left(server: Served, traced: None) -> None:
    def leave() -> None:
        client = Client(server.port).ask(**(FILLED | {"max_tokens": 100, "stream": True}))
        client.event()
        client.leave()

    leave()
    before = held_after(server)
    for _ in range(3):
        leave()
    assert falls_below(server, before + SIZE // 2)
