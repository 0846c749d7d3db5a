"""B4: a body is bounded in bytes and in time, before it is kept.

A body that says it is too large is refused at once; one that does not say is, after at most
64 KB more than may be; one that is compressed, or slow, too. Then the connection ends.
"""

from __future__ import annotations

import gzip
import json
import time
import zlib
from collections.abc import Iterator

from figure import Conditions, Figure
from raw_http import Exchange, exchange, is_error, post, request
from served import Served
from slow import Slow
from tiny_server import MARKER, is_golden, tiny_server

MOST_OVER = 65_536
MOST_SECONDS = 30.0
QUICK_SECONDS = 2.0  # the deadline of a body, in a quick run
PIECE = 16_384
CHUNKED = ["Content-Type: application/json", "Transfer-Encoding: chunked"]


def measure(conditions: Conditions) -> Figure:
    """``worst`` is the bytes beyond the cap that were taken before the answer."""
    figure = Figure("bytes over the cap", MOST_OVER)
    chosen = {"body_seconds": QUICK_SECONDS} if conditions.quick else {}
    with tiny_server(**chosen) as server:
        _declared(server, figure, conditions)
        _undeclared(server, figure, conditions)
        _compressed(server, figure, conditions)
        _unread(server, figure, conditions)
        _slow(server, figure, conditions)
        figure.check(is_golden(server), conditions, "golden", "another text than before")
    return figure


def _host(server: Served) -> str:
    return f"127.0.0.1:{server.port}"


def _is(status: int, found: Exchange) -> bool:
    return found.statuses == [status] and is_error(found.answers[0])


def _declared(server: Served, figure: Figure, conditions: Conditions) -> None:
    cap = server.service.settings.most_body_bytes

    def with_length(length: int, *lines: str) -> bytes:
        more = ["Content-Type: application/json", f"Content-Length: {length}", *lines]
        return request("POST", "/v1/completions", more, host=_host(server))

    for length in (cap + 1, 10 * cap, 10**12, 10**19):
        for lines in ([], ["Expect: 100-continue"]):
            found = exchange(server.port, with_length(length, *lines))
            right = _is(413, found) and found.closed and found.seconds < 5
            figure.check(right, conditions, f"declared-{length}-{len(lines)}", f"{found}")
    # The largest that may be, by many spaces, and one byte more.
    good = json.dumps({"prompt": MARKER, "max_tokens": 1}).encode()
    for size, status in ((cap, 200), (cap + 1, 413)):
        padded = post("/v1/completions", good.ljust(size), _host(server))
        found = exchange(server.port, padded, answers=1, seconds=20)
        figure.check(found.statuses == [status], conditions, f"of-{size}", f"{found.statuses}")


def _undeclared(server: Served, figure: Figure, conditions: Conditions) -> None:
    """Without a length: slowly around the cap, so that what was taken can be told; and at once."""
    cap = server.service.settings.most_body_bytes
    head = request("POST", "/v1/completions", CHUNKED, host=_host(server))
    chunk = b"%x\r\n%b\r\n" % (PIECE, b" " * PIECE)

    def endless() -> Iterator[bytes]:
        while True:
            yield chunk

    with_pauses = _paced(server, head, chunk, cap)
    taken = with_pauses.sent - len(head) - cap
    figure.worst = max(figure.worst, taken)
    right = _is(413, with_pauses) and taken <= MOST_OVER
    figure.check(right, conditions, "chunks-with-pauses", f"{with_pauses.statuses} {taken}")
    for name, pieces in (
        ("chunks", endless()),
        ("small-chunks", iter(lambda: b"1\r\n \r\n" * 5000, b"")),
        ("one-chunk", iter(lambda: b"F" * 15 + b"\r\n" + b" " * 100_000, b"")),
        ("chunk-extensions", iter(lambda: b"1;" + b"a" * 1000 + b"\r\n \r\n", b"")),
    ):
        found = exchange(server.port, _after(head, pieces), seconds=20)
        right = found.closed and all(400 <= status < 500 for status in found.statuses)
        figure.check(right and found.seconds < 10, conditions, f"endless-{name}", f"{found}")


def _paced(server: Served, head: bytes, chunk: bytes, cap: int) -> Exchange:
    """Chunks up to just below ``cap`` at once, and then with a pause after each."""

    def pieces() -> Iterator[bytes]:
        yield head + chunk * (cap // PIECE - 2)
        for _ in range(3 * MOST_OVER // PIECE):
            yield chunk

    return exchange(server.port, pieces(), answers=1, seconds=30, pause=0.3)


def _after(head: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
    yield head
    yield from pieces


def _compressed(server: Served, figure: Figure, conditions: Conditions) -> None:
    good = json.dumps({"prompt": MARKER, "max_tokens": 1}).encode()
    bomb = gzip.compress(bytes(100_000_000), 1)
    for name, body in (
        ("gzip", gzip.compress(good)),
        ("gzip", bomb),
        ("deflate", zlib.compress(good)),
        ("br", good),
        ("zstd", good),
        ("x-gzip", good),
        ("gzip, identity", good),
        ("nonsense", good),
    ):
        sent = post("/v1/completions", body, _host(server), [f"Content-Encoding: {name}"])
        found = exchange(server.port, sent, answers=1)
        figure.check(_is(415, found), conditions, f"in-{name}-{len(body)}", f"{found}")
    plain = post("/v1/completions", good, _host(server), ["Content-Encoding: identity"])
    found = exchange(server.port, plain, answers=1)
    figure.check(found.statuses == [200], conditions, "in-identity", f"{found}")


def _unread(server: Served, figure: Figure, conditions: Conditions) -> None:
    """Bodies that nobody asked for: they are not waited for."""
    lines = ["Content-Length: 1000000"]
    cases = {
        "health": (request("GET", "/health", lines, host=_host(server)), 200),
        "nothing": (request("GET", "/nothing", lines, host=_host(server)), 404),
        "type": (request("POST", "/v1/completions", lines, host=_host(server)), 415),
        "host": (request("POST", "/v1/completions", lines, host="evil.example"), 403),
    }
    for name, (sent, status) in cases.items():
        pieces = _after(sent, iter(lambda: b" " * 50, b""))
        found = exchange(server.port, pieces, seconds=10, pause=0.1)
        right = found.statuses == [status] and found.closed and found.seconds < 5
        figure.check(right, conditions, f"unread-{name}", f"{found}")


def _slow(server: Served, figure: Figure, conditions: Conditions) -> None:
    seconds = server.service.settings.body_seconds
    head = request(
        "POST",
        "/v1/completions",
        ["Content-Type: application/json", "Content-Length: 1000"],
        host=_host(server),
    )
    in_chunks = request("POST", "/v1/completions", CHUNKED, host=_host(server))
    cases: dict[str, tuple[bytes, bytes]] = {
        "never": (head, b""),
        "drip": (head, b" "),
        "drip-of-chunks": (in_chunks, b"1\r\n \r\n"),
        "drip-in-a-chunk": (in_chunks + b"FFFF\r\n", b" "),
    }
    waiting = [
        Slow(server.port, name, sent, drop, MOST_SECONDS) for name, (sent, drop) in cases.items()
    ]
    deadline = time.perf_counter() + MOST_SECONDS + 2
    while time.perf_counter() < deadline and not all(one.done for one in waiting):
        for one in waiting:
            one.go_on()
        time.sleep(0.25)
    for one in waiting:
        one.close()
        right = one.status in (None, 408) and one.done and one.seconds <= seconds + 5
        told = f"{one.name}: {one.status} after {one.seconds:.1f} s, ended {one.done}"
        figure.check(right, conditions, f"slow-{one.name}", told)
    figure.notes["slow_seconds"] = round(max(one.seconds for one in waiting), 1)
