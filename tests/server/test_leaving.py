"""Whoever leaves, or reads nothing, takes nothing from the others for long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from http.client import IncompleteRead

import pytest
from http_clients import Client
from served import Served, served
from slow_model import Steps, slowed

import pocketlm
from pocketlm.export.folder import ModelFolder
from pocketlm.runtime.model import Model
from pocketlm.runtime.server.models.engine import Engine

pytestmark = pytest.mark.serve

STEPS = Steps(seconds=0.003, prompt_seconds=0.02)
LONG = {"prompt": "a", "max_tokens": 120, "ignore_eos": True, "temperature": 0}
MOST_STEPS = 2


@pytest.fixture(scope="module")
def server(tiny_folder: ModelFolder) -> Iterator[Served]:
    opened = {"tiny": lambda: slowed(pocketlm.load(tiny_folder.path, threads=1), STEPS)}
    with served(opened, parallel=1, most_waiting=8, stall_seconds=0.3) as running:
        assert running.post("/v1/completions", {"prompt": "a", "max_tokens": 1})[0] == 200
        yield running


def engine_of(server: Served) -> Engine:
    engine = server.service.pool.served["tiny"].engine
    assert engine is not None
    return engine


def until(happened: Callable[[], bool]) -> None:
    """Fails where it does not."""
    deadline = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < deadline, "it has not happened"
        time.sleep(0.001)


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
@pytest.mark.parametrize("place", ["stream", "plain", "prompt"])
def test_a_text_that_nobody_waits_for_ends(server: Served, place: str, reset: bool) -> None:
    engine = engine_of(server)
    prompt = "long " * 20 + str(reset) if place == "prompt" else "a"
    client = Client(server.port).ask(**(LONG | {"prompt": prompt, "stream": place == "stream"}))
    if place == "stream":
        client.event()
    until(lambda: engine.num_held == 1)
    client.leave(reset)
    before = STEPS.count
    until(lambda: engine.num_held == 0)
    assert STEPS.count - before <= MOST_STEPS
    assert server.get("/health")[0] == 200


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
def test_who_leaves_the_queue_is_never_computed(server: Served, reset: bool) -> None:
    engine = engine_of(server)
    with Client(server.port).ask(**LONG, stream=True) as first:
        first.event()
        second = Client(server.port).ask(**(LONG | {"prompt": "never"}))
        until(lambda: engine.num_held == 2)
        second.leave(reset)
        until(lambda: engine.num_held == 1)
        assert first.events()[-1] == "[DONE]"
    assert engine.num_held == 0


@pytest.mark.parametrize("stream", [True, False])
def test_who_reads_nothing_is_cut_off(server: Served, stream: bool) -> None:
    asked = LONG | {"logprobs": 100, "n": 4, "stream": stream}  # a megabyte and a half
    client = Client(server.port, receive_bytes=4096).ask(**asked)
    connections = server.server.server_state.connections
    until(lambda: len(connections) > 0)
    until(lambda: not connections and engine_of(server).num_held == 0)
    with client, pytest.raises(IncompleteRead):
        client.answer.read()


def test_who_leaves_while_the_model_opens_keeps_no_place(tiny_folder: ModelFolder) -> None:
    may_open = threading.Event()

    def opened() -> pocketlm.Model:
        may_open.wait(20)
        return pocketlm.load(tiny_folder.path, threads=1)

    with served({"tiny": opened}, parallel=1, most_waiting=1) as server:
        one = server.service.pool.served["tiny"]
        leaving = [Client(server.port).ask(**LONG) for _ in range(2)]
        until(lambda: one.num_users == 2)
        with Client(server.port).ask(**LONG) as refused:
            assert refused.status == 429
        for client in leaving:
            client.leave()
        until(lambda: one.num_users == 0)
        may_open.set()
        assert server.post("/v1/completions", {"prompt": "a", "max_tokens": 1})[0] == 200


def test_who_leaves_while_the_request_is_prepared_keeps_no_place(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go_on, prepared = threading.Event(), []
    request = Model.request

    def slow(self: Model, prompt: object = "", **options: object) -> object:
        prepared.append(prompt)
        may_go_on.wait(20)
        return request(self, prompt, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Model, "request", slow)
    engine = engine_of(server)
    leaving = [Client(server.port).ask(**(LONG | {"prompt": str(place)})) for place in range(6)]
    until(lambda: engine.num_held == 6 and len(prepared) == 2)  # by two threads
    for client in leaving:
        client.leave()
    until(lambda: engine.num_held == 0)
    steps = STEPS.count
    may_go_on.set()
    assert server.post("/v1/completions", {"prompt": "a", "max_tokens": 1})[0] == 200
    assert prepared == [*prepared[:2], "a"]  # of the others nothing ever was
    assert STEPS.count <= steps + 2
