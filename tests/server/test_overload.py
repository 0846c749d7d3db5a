"""More than there is room for is refused before it costs anything; what is taken has its time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from http_clients import Client, text_of
from served import Served, served
from slow_model import Steps, slowed

import pocketlm
from pocketlm.export.errors import NumericsError
from pocketlm.export.folder import ModelFolder
from pocketlm.runtime.model import Model
from pocketlm.runtime.sequence import Sequence

pytestmark = pytest.mark.serve

LONG = {"prompt": "a", "max_tokens": 120, "ignore_eos": True, "temperature": 0}
SHORT = LONG | {"max_tokens": 2}
STEPS = Steps(seconds=0.003)


@pytest.fixture(scope="module")
def server(tiny_folder: ModelFolder) -> Iterator[Served]:
    opened = {"tiny": lambda: slowed(pocketlm.load(tiny_folder.path, threads=1), STEPS)}
    with served(opened, parallel=1, most_waiting=2) as running:
        assert running.post("/v1/completions", SHORT)[0] == 200
        yield running


def test_one_too_many_is_refused_unprepared_and_taken_later(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = []
    request = Model.request

    def noted(self: Model, prompt: object = "", **options: object) -> object:
        prepared.append(prompt)
        return request(self, prompt, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Model, "request", noted)
    with Client(server.port).ask(**LONG, stream=True) as first:
        first.event()
        waiting = [Client(server.port).ask(**(SHORT | {"prompt": f"{i}"})) for i in range(2)]
        while server.service.pool.served["tiny"].engine.num_held < 3:  # type: ignore[union-attr]
            pass
        with Client(server.port).ask(**(SHORT | {"prompt": "refused"})) as refused:
            assert refused.status == 429
            assert 1 <= int(refused.answer.headers["Retry-After"]) <= 5
            error = refused.whole()["error"]
            assert (error["type"], error["code"]) == ("rate_limit_error", "overloaded")
        assert first.events()[-1] == "[DONE]"
        assert [client.status for client in waiting] == [200, 200]
        for client in waiting:
            client.leave()
    assert "refused" not in prepared
    assert server.post("/v1/completions", SHORT)[0] == 200


def test_who_came_first_is_first(server: Served) -> None:
    engine = server.service.pool.served["tiny"].engine
    assert engine is not None
    with Client(server.port).ask(**LONG, stream=True) as first:
        first.event()
        second = Client(server.port).ask(**(LONG | {"max_tokens": 30}), stream=True)
        while engine.num_held < 2:
            pass
        third = Client(server.port).ask(**SHORT, stream=True)
        first.leave()
        third.event()
        steps = STEPS.count
        assert second.events()[-1] == "[DONE]"  # it was there before the third began
        assert STEPS.count <= steps + 3
        third.leave()
        second.leave()


def test_no_text_takes_longer_than_it_may(tiny_folder: ModelFolder) -> None:
    opened = {"tiny": lambda: slowed(pocketlm.load(tiny_folder.path, threads=1), STEPS)}
    with served(opened, parallel=1, max_seconds=0.1) as server:
        assert server.post("/v1/completions", SHORT)[0] == 200
        asked = LONG | {"stream": True}
        clients = [
            Client(server.port).ask(**asked),
            Client(server.port).ask(**asked, max_seconds=60),
            Client(server.port).ask(**asked, max_seconds=0),
            Client(server.port).ask(**asked, lookup=True),
        ]
        for client in clients:
            *events, last = client.events()
            assert last == "[DONE]"
            assert events[-1]["choices"][0]["finish_reason"] == "length"
            assert len(text_of(events)) < 120
            client.leave()
        body = {"input": "a", "transcript": True, "max_output_tokens": LONG["max_tokens"]}
        status, found = server.post("/v1/responses", body)
        assert (status, found["status"]) == (200, "incomplete")
        assert found["usage"]["output_tokens"] < 120


@pytest.mark.parametrize(
    ("error", "type", "code", "message"),
    [
        (NumericsError("the logits are not finite"), "server_error", "numerics", "not finite"),
        (MemoryError(), "server_error", "overloaded", "memory"),
        (RuntimeError("hush"), "server_error", None, "a bug in pocketlm"),
        (None, "server_error", "overloaded", "closed"),
    ],
    ids=["numerics", "memory", "bug", "closed"],
)
def test_an_error_in_a_stream_is_told_and_ends_it(
    tiny_folder: ModelFolder,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception | None,
    type: str,
    code: str | None,
    message: str,
) -> None:
    opened = {"tiny": lambda: slowed(pocketlm.load(tiny_folder.path, threads=1), STEPS)}
    take = Sequence.take

    def broken(self: Sequence, logits: object) -> object:
        if self.num_new == 3 and error is not None:
            raise error
        return take(self, logits)  # type: ignore[arg-type]

    monkeypatch.setattr(Sequence, "take", broken)
    with served(opened) as server, Client(server.port).ask(**LONG, stream=True) as client:
        events = [client.event()]
        engine = server.service.pool.served["tiny"].engine
        assert engine is not None
        if error is None:
            engine.model.close()
        *more, last = client.events()
        assert len(text_of([*events, *more])) >= 1
        assert (last["error"]["type"], last["error"]["code"]) == (type, code)
        assert message in last["error"]["message"] and "hush" not in last["error"]["message"]
        # The answer has ended as it should: the connection is as good as before.
        assert client.look("/health").status == 200
        assert engine.num_held == 0
