"""The log: a line of JSON for each thing, with what an operator needs and nothing of a request."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest
from raw_http import exchange, post, request
from served import Served, served

from pocketlm.export.errors import ModelFolderError
from pocketlm.export.folder import ModelFolder
from pocketlm.runtime.model import Model
from pocketlm.runtime.server.call import Call
from pocketlm.runtime.server.log import Log, places, quiet_others

pytestmark = pytest.mark.serve

SECRET = "hush\x1b[31m\r\n"


def refused() -> Model:
    raise ModelFolderError("/srv-models/out: found nothing, expected a model folder")


def broken() -> Model:
    raise ValueError(SECRET)


@pytest.fixture(scope="module")
def server(tiny_folder: ModelFolder) -> Iterator[Served]:
    opened = {"tiny": tiny_folder}
    with served({**opened, "refused": refused, "broken": broken}) as running:
        yield running


def lines_of(server: Served, request_id: str) -> list[dict[str, Any]]:
    """What was written of the request that called itself so; its last line is after its answer."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        found = [event for event in server.events if event.get("id") == request_id]
        if found and found[-1]["event"] == "request":
            return found
        time.sleep(0.01)
    raise AssertionError(f"no line of {request_id} in {server.events}")


def test_a_request_is_a_line_with_its_path_as_it_was_sent(server: Served) -> None:
    headers = {"X-Request-ID": "mine", "X-Other": "hush"}
    server.send("GET", "/a%20b%0d%0a%1b?key=hush", None, **headers)
    (event,) = lines_of(server, "mine")
    assert set(event) == {"time", "event", "id", "status", "method", "path", "seconds"}
    assert event["path"] == "/a%20b%0d%0a%1b" and event["id"] == "mine"
    assert event["status"] == 404
    assert "hush" not in server.written.getvalue()


def test_a_long_path_is_cut(server: Served) -> None:
    server.send("GET", "/" + "a" * 5000, None, **{"X-Request-ID": "long"})
    assert len(lines_of(server, "long")[-1]["path"]) == 200


def test_a_bug_is_told_by_its_kind_and_place_alone(server: Served) -> None:
    asked = {"model": "broken", "prompt": SECRET}
    status, found = server.post("/v1/completions", asked, **{"X-Request-ID": "bug"})
    told, line = lines_of(server, "bug")
    assert status == line["status"] == 500 and found["error"]["type"] == "server_error"
    assert "bug in pocketlm" in found["error"]["message"]
    assert told["event"] == "error" and told["kind"] == "ValueError" and told["id"] == line["id"]
    assert told["at"][-1].startswith("test_log.py:") and len(told["at"]) > 1
    assert "hush" not in server.written.getvalue() + json.dumps(found)


def test_a_bug_in_the_middle_of_an_answer_cuts_it_and_is_told_once(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def write(call: Call, data: bytes, more: bool = True) -> None:
        raise ValueError(SECRET)

    monkeypatch.setattr(Call, "_write", write)
    asked = request("GET", "/health", ["X-Request-ID: cut"], host=f"127.0.0.1:{server.port}")
    found = exchange(server.port, asked)
    told, line = lines_of(server, "cut")
    assert found.closed and not found.answers
    assert told["event"] == "error" and told["kind"] == "ValueError" and line["status"] == 200


def test_why_a_model_cannot_be_opened_is_for_the_operator(server: Served) -> None:
    answer, data = server.send(
        "POST",
        "/v1/completions",
        b'{"model": "refused", "prompt": "a"}',
        **{"Content-Type": "application/json"},
    )
    error = json.loads(data)["error"]
    assert answer.status == 503 and error["code"] == "model_unavailable"
    assert "/srv-models" not in error["message"] and "refused" in error["message"]
    assert answer.headers["x-should-retry"] == "false"
    event = [event for event in server.events if event["event"] == "error"][-1]
    assert event["note"] == str(pytest.raises(ModelFolderError, refused).value)
    assert event["kind"] == "ModelFolderError"


def test_a_request_without_an_answer_has_the_status_0(server: Served) -> None:
    host, gone = f"127.0.0.1:{server.port}", ["X-Request-ID: gone"]
    whole = post("/v1/completions", {"prompt": "a"}, host, gone)
    exchange(server.port, whole[:-1], seconds=0.5)
    (line,) = lines_of(server, "gone")
    assert line["status"] == 0 and line["path"] == "/v1/completions"


def test_quiet_leaves_out_what_went_well() -> None:
    stream = StringIO()
    log = Log(stream, quiet=True, clock=lambda: 1.0)
    log.request("a", 200)
    log.request("b", 404)
    log.event("listening")
    events = [json.loads(line)["event"] for line in stream.getvalue().splitlines()]
    assert events == ["request", "listening"]


def test_a_log_that_nobody_reads_is_no_reason_to_fail() -> None:
    stream = StringIO()
    stream.close()
    Log(stream).event("listening")


def test_what_the_event_loop_has_to_say_is_a_line_too() -> None:
    stream = StringIO()
    log = Log(stream)

    async def failing() -> None:
        asyncio.get_running_loop().set_exception_handler(log.from_loop)
        asyncio.get_running_loop().call_soon(broken)
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_exception_handler({"message": SECRET})

    asyncio.run(failing())
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["kind"] for line in lines] == ["ValueError", "loop"]
    assert "hush" not in stream.getvalue()


def test_uvicorn_and_asyncio_print_nothing(caplog: pytest.LogCaptureFixture) -> None:
    quiet_others()
    for name in ("uvicorn.error", "uvicorn.asgi", "asyncio"):
        logging.getLogger(name).critical(SECRET)
    assert not caplog.records


def test_places_are_those_of_the_innermost_calls() -> None:
    def deep(levels: int) -> Any:
        return deep(levels - 1) if levels else broken()

    with pytest.raises(ValueError) as caught:
        deep(20)
    found = places(caught.value)
    assert len(found) == 8 and all(place.startswith("test_log.py:") for place in found)
