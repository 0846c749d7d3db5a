"""What a connection may be: how long, how large, how many, and what is told of what it may not."""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPConnection
from typing import Any

import pytest
from raw_http import exchange, is_error, parse, post, request
from served import Served, served

from pocketlm.export.folder import ModelFolder
from pocketlm.runtime.server.connections.open_files import OTHERS, most_connections
from pocketlm.runtime.server.connections.strict_http import MOST_CHUNKS, MOST_HEADERS

pytestmark = pytest.mark.serve

QUICK: dict[str, Any] = {"header_seconds": 0.4, "body_seconds": 0.4}


@pytest.fixture(scope="module")
def server(tiny_folder: ModelFolder) -> Iterator[Served]:
    with served({"tiny": tiny_folder}) as running:
        yield running


@pytest.fixture(scope="module")
def hasty(tiny_folder: ModelFolder) -> Iterator[Served]:
    """With short deadlines, and room for few."""
    models = {"tiny": tiny_folder}
    with served(models, **QUICK, most_connections=4, most_body_bytes=100_000) as running:
        yield running


def host(server: Served) -> str:
    return f"127.0.0.1:{server.port}"


def test_headers_have_a_deadline_from_their_first_byte(hasty: Served) -> None:
    found = exchange(hasty.port, b"GET /health HTTP/1.1\r\nHo", seconds=5)
    assert found.closed and not found.answers


def test_a_deadline_holds_however_many_bytes_drip(hasty: Served) -> None:
    drip = b"GET /health HTTP/1.1\r\nX: " + b"a" * 100
    found = exchange(hasty.port, (drip[n : n + 1] for n in range(len(drip))), pause=0.05)
    assert found.closed and found.sent < 30


def test_headers_of_a_later_request_have_a_deadline_too(hasty: Served) -> None:
    good = request("GET", "/health", host=host(hasty))
    found = exchange(hasty.port, good + b"GET /hea", seconds=5, answers=2)
    drip = exchange(hasty.port, [good, b"G", b"E"], seconds=5, answers=2, pause=0.1)
    assert found.statuses == drip.statuses == [200]
    assert drip.closed


def test_a_connection_that_waits_between_requests_is_kept(hasty: Served) -> None:
    good = request("GET", "/health", host=host(hasty))
    with socket.create_connection(("127.0.0.1", hasty.port), timeout=5) as connection:
        assert _ask(connection, good) == 200
        time.sleep(2 * QUICK["header_seconds"])
        assert _ask(connection, good) == 200


def test_a_slow_body_is_told_so_and_ended(hasty: Served) -> None:
    whole = post("/v1/completions", {"prompt": "a"}, host(hasty))
    found = exchange(hasty.port, whole[:-3], seconds=5)
    assert found.statuses == [408] and is_error(found.answers[0]) and found.closed


def test_one_connection_too_many_ends_the_one_that_is_idle_for_longest(hasty: Served) -> None:
    good = request("GET", "/health", host=host(hasty))
    with ExitStack() as stack:
        place = ("127.0.0.1", hasty.port)
        several = [stack.enter_context(socket.create_connection(place, 5)) for _ in range(4)]
        for connection in several:
            assert _ask(connection, good) == 200
        assert exchange(hasty.port, good, answers=1).statuses == [200]
        assert _is_ended(several[0])
        assert _ask(several[3], good) == 200


def _ask(connection: socket.socket, sent: bytes) -> int:
    """The status of what is answered."""
    connection.sendall(sent)
    got = b""
    while not (answers := parse(got)):
        got += connection.recv(4096)
    return answers[0].status


def _is_ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(10) == b""
    except ConnectionResetError:
        return True


def test_one_too_many_is_told_so_where_all_are_busy(hasty: Served) -> None:
    """Bodies that do not come keep them so."""
    whole = post("/v1/completions", {"prompt": "a"}, host(hasty))
    with ExitStack() as stack:
        place = ("127.0.0.1", hasty.port)
        for _ in range(4):
            connection = stack.enter_context(socket.create_connection(place, 5))
            connection.sendall(whole[:-3])
        time.sleep(0.1)
        found = exchange(hasty.port, request("GET", "/health", host=host(hasty)))
    assert found.statuses == [503] and is_error(found.answers[0])
    assert found.answers[0].values("retry-after") == ["2"]


def test_what_is_no_http_is_told_so_as_all_errors_are(server: Served) -> None:
    found = exchange(server.port, b"nonsense\r\n\r\n")
    (answer,) = found.answers
    assert answer.status == 400 and is_error(answer) and found.closed
    assert answer.values("connection") == ["close"]
    assert answer.values("x-content-type-options") == ["nosniff"]


@pytest.mark.parametrize("count", [MOST_HEADERS - 1, MOST_HEADERS + 1])
def test_headers_are_counted(server: Served, count: int) -> None:
    lines = [f"X{n}: a" for n in range(count - 1)]  # and a Host
    found = exchange(server.port, request("GET", "/health", lines, host=host(server)), answers=1)
    assert found.statuses == ([200] if count < MOST_HEADERS else [431])


@pytest.mark.parametrize("length", [32_000, 33_000])
def test_headers_are_weighed_even_when_they_come_at_once(server: Served, length: int) -> None:
    lines = [f"X: {'a' * length}"]
    found = exchange(server.port, request("GET", "/health", lines, host=host(server)), answers=1)
    assert found.statuses == ([200] if length < 32_768 else [431])


def test_a_line_feed_alone_ends_no_line_of_headers(server: Served) -> None:
    good = request("GET", "/health", ["X: a"], host=host(server))
    assert exchange(server.port, good, answers=1).statuses == [200]
    found = exchange(server.port, good.replace(b"\r\nX", b"\nX"))
    assert found.statuses == [400] and found.closed


def test_a_body_says_its_length_once(server: Served) -> None:
    twice = post("/v1/completions", {"prompt": "a"}, host(server), ["Transfer-Encoding: chunked"])
    found = exchange(server.port, twice)
    assert found.statuses == [400] and "twice" in found.answers[0].json["error"]["message"]


def test_a_body_of_too_many_chunks_is_refused(server: Served) -> None:
    lines = ["Content-Type: application/json", "Transfer-Encoding: chunked"]
    chunks = b"1\r\n \r\n" * (MOST_CHUNKS + 1)
    found = exchange(
        server.port, request("POST", "/v1/completions", lines, chunks, host=host(server))
    )
    assert found.statuses == [413] and is_error(found.answers[0]) and found.closed


def test_a_bad_chunk_is_the_end_and_what_hides_after_it_is_not_answered(server: Served) -> None:
    lines = ["Content-Type: application/json", "Transfer-Encoding: chunked"]
    hidden = request("GET", "/hidden", host=host(server))
    sent = request("POST", "/v1/completions", lines, b"zz\r\n\r\n" + hidden, host=host(server))
    found = exchange(server.port, sent)
    assert found.statuses == [400] and found.closed
    assert not any(event.get("path") == "/hidden" for event in server.events)


def test_nothing_is_taken_after_a_body_in_chunks(server: Served) -> None:
    lines = ["Content-Type: application/json", "Transfer-Encoding: chunked"]
    body = b'17\r\n{"prompt": "a", "n": 1}\r\n0\r\n\r\n'
    sent = request("POST", "/v1/completions", lines, body, host=host(server))
    found = exchange(server.port, sent + request("GET", "/hidden", host=host(server)))
    assert found.statuses == [200] and found.closed
    assert found.answers[0].values("connection") == ["close"]


def test_a_client_that_sends_too_much_still_reads_why(hasty: Served) -> None:
    """All of it is sent before an answer is looked at, as http.client does."""
    connection = HTTPConnection("127.0.0.1", hasty.port, timeout=10)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/completions", b" " * 8_000_000, headers)
    answer = connection.getresponse()
    assert answer.status == 413 and b"8,000,000" in answer.read()
    connection.close()


def test_what_is_too_large_is_not_asked_for(hasty: Served) -> None:
    lines = ["Content-Type: application/json", "Content-Length: 100001", "Expect: 100-continue"]
    found = exchange(hasty.port, request("POST", "/v1/completions", lines, host=host(hasty)))
    assert found.statuses == [413] and found.closed


def test_what_is_not_too_large_is_asked_for(hasty: Served) -> None:
    whole = post("/v1/completions", {"prompt": "a", "max_tokens": 1}, host(hasty))
    expecting = whole.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n", 1)
    assert exchange(hasty.port, expecting, answers=1).statuses == [100, 200]


def test_a_body_that_nobody_reads_keeps_no_connection(hasty: Served) -> None:
    lines = ["Content-Length: 90000"]
    sent = request("GET", "/health", lines, host=host(hasty))
    found = exchange(hasty.port, sent, seconds=5)
    assert found.statuses == [200] and found.closed


def test_an_upgrade_is_declined_without_a_word(
    server: Served, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"]
    found = exchange(server.port, request("GET", "/health", lines, host=host(server)), answers=1)
    assert found.statuses == [200]
    assert capfd.readouterr() == ("", "")


def test_requests_in_a_row_are_answered_in_order(server: Served) -> None:
    targets = [*("/health", "/nothing", "/v1/models", "/health")] * 5
    sent = b"".join(request("GET", target, host=host(server)) for target in targets)
    found = exchange(server.port, sent, answers=20)
    assert found.statuses == [200, 404, 200, 200] * 5


def test_a_server_ends_while_clients_are_slow(tiny_folder: ModelFolder) -> None:
    models = {"tiny": tiny_folder}
    with ExitStack() as stack:
        with served(models, grace_seconds=1) as server:
            place = ("127.0.0.1", server.port)
            whole = post("/v1/completions", {"prompt": "a"}, host(server))
            for sent in (b"", b"GET /hea", b"nonsense\r\n\r\n", whole[:-3]):
                stack.enter_context(socket.create_connection(place, 5)).sendall(sent)
            time.sleep(0.1)
        started = time.perf_counter()
    assert time.perf_counter() - started < 10


def test_connections_leave_files_for_all_else(
    hasty: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (OTHERS + 2, OTHERS + 2))
    first, *others = [socket.create_connection(("127.0.0.1", hasty.port)) for _ in range(3)]
    first.settimeout(5)
    assert first.recv(1) == b""  # the one that was idle for longest
    assert hasty.get("/health")[0] == 200
    for one in (first, *others):
        one.close()


def test_of_many_connections_at_once_all_are_ended_but_a_few(hasty: Served) -> None:
    many = [socket.create_connection(("127.0.0.1", hasty.port)) for _ in range(100)]
    assert hasty.get("/health")[0] == 200
    assert len(hasty.server.server_state.connections) <= 4
    for one in many:
        one.close()


@pytest.mark.parametrize("limit", [256, OTHERS, 0, resource.RLIM_INFINITY])
def test_there_is_always_room_for_a_connection(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    unlimited = limit == resource.RLIM_INFINITY
    assert most_connections(512) == (512 if unlimited else max(1, limit - OTHERS))
