"""B3: HTTP as no honest client writes it is refused, once, and nothing hides in it.

Each case is bytes on a socket. What is refused has one answer of 4xx, or none, and its connection
ends within five seconds; a second request inside of it is never seen. What is harmless has one
answer of 4xx; what is fine, as many of 200 as it asks for.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from figure import Conditions, Figure
from raw_http import Exchange, exchange, is_error, post, request
from served import Served
from tiny_server import MARKER, is_golden, tiny_server

from pocketlm.export.memory import peak_rss_bytes

MOST_SECONDS = 5.0
BEYOND_SECONDS = 0.1  # without another answer: none comes
MOST_GROWTH_MB = 64
SMUGGLED = "/smuggled"


@dataclass(frozen=True)
class Case:
    """``sent`` by its name, and ``is_right`` of what came back; ``to_head``: for a HEAD request."""

    name: str
    sent: bytes
    is_right: Callable[[Exchange], bool]
    answers: int | None = None
    to_head: bool = False


def refused(found: Exchange) -> bool:
    """Ended, with one error or none."""
    return (
        found.closed
        and len(found.answers) <= 1
        and all(400 <= answer.status < 500 and is_error(answer) for answer in found.answers)
    )


def harmless(found: Exchange) -> bool:
    """One error."""
    return len(found.answers) == 1 and (
        400 <= found.answers[0].status < 500
        and (is_error(found.answers[0]) or not found.answers[0].body)
    )


def fine(count: int) -> Callable[[Exchange], bool]:
    """As many good answers."""
    return lambda found: found.statuses == [200] * count


def cases(host: str) -> list[Case]:
    """All of them, for a server that is called ``host``."""
    return [*_refused(host), *_harmless(host), *_fine(host)]


def _refused(host: str) -> list[Case]:
    hidden = request("GET", SMUGGLED, host=host)

    def posted(*lines: str, body: bytes = b"0\r\n\r\n", version: str = "HTTP/1.1") -> bytes:
        kind = "Content-Type: application/json"
        return request(
            "POST", "/v1/completions", [kind, *lines], body + hidden, host=host, version=version
        )

    def got(*lines: str) -> bytes:
        return request("GET", "/health", lines, host=host)

    chunked = "Transfer-Encoding: chunked"
    good = got()
    heads = {
        "length-and-chunks": posted("Content-Length: 4", chunked),
        "chunks-and-length": posted(chunked, "Content-Length: 4"),
        "two-lengths": posted("Content-Length: 5", "Content-Length: 6"),
        "two-equal-lengths": posted("Content-Length: 5", "Content-Length: 5"),
        "list-of-lengths": posted("Content-Length: 5, 5"),
        "list-of-other-lengths": posted("Content-Length: 5, 6"),
        "negative-length": posted("Content-Length: -1"),
        "plus-length": posted("Content-Length: +5"),
        "hex-length": posted("Content-Length: 0x5"),
        "exponent-length": posted("Content-Length: 1e1"),
        "empty-length": posted("Content-Length:"),
        "spaced-length": posted("Content-Length: 5 5"),
        "long-length": posted(f"Content-Length: {'9' * 25}"),
        "huge-length": posted(f"Content-Length: {2**63}"),
        "length-before-colon": posted("Content-Length : 5"),
        "two-chunked": posted(chunked, chunked),
        "chunked-twice": posted("Transfer-Encoding: chunked, chunked"),
        "identity": posted("Transfer-Encoding: identity"),
        "gzip-chunked": posted("Transfer-Encoding: gzip, chunked"),
        "xchunked": posted("Transfer-Encoding: xchunked"),
        "chunked-before-colon": posted("Transfer-Encoding : chunked"),
        "chunked-after-tab": posted("Transfer-Encoding: \x0bchunked"),
        "chunked-folded": posted("Transfer-Encoding:\r\n chunked"),
        "chunked-in-1.0": posted(chunked, version="HTTP/1.0"),
    }
    chunks = {
        "chunk-without-size": b"\r\n{}\r\n0\r\n\r\n",
        "chunk-of-letters": b"zz\r\n{}\r\n0\r\n\r\n",
        "chunk-negative": b"-2\r\n{}\r\n0\r\n\r\n",
        "chunk-with-prefix": b"0x2\r\n{}\r\n0\r\n\r\n",
        "chunk-of-21-digits": b"F" * 21 + b"\r\n{}\r\n0\r\n\r\n",
        "chunk-without-end": b"2\r\n{}xx0\r\n\r\n",
        "chunk-bare-line-feed": b"2\n{}\n0\n\n",
        "chunk-long-extension": b"2;" + b"a" * 100_000,
        "chunk-folded-trailer": b"2\r\n{}\r\n0\r\n x: y\r\n\r\n",
    }
    lines = {
        "bare-line-feeds": good.replace(b"\r\n", b"\n"),
        "one-bare-line-feed": f"GET /health HTTP/1.1\r\nHost: {host}\nX: y\r\n\r\n".encode(),
        "bare-carriage-return": got("X: a\rb"),
        "carriage-return-smuggles": got(f"X: a\rGET {SMUGGLED} HTTP/1.1"),
        "nul-in-value": got("X: a\0b"),
        "nul-in-name": got("X\0: a"),
        "space-in-name": got("X Y: a"),
        "no-colon": got("nonsense"),
        "no-name": got(": a"),
        "folded": got("X: a\r\n b"),
        "space-first": b" " + good,
        "large-header": got(f"X: {MARKER}{'a' * 1_000_000}"),
        "many-headers": got(*[f"X{n}: a" for n in range(10_000)]),
        "200-headers": got(*[f"X{n}: a" for n in range(200)]),
        "large-target": request("GET", "/" + "a" * 1_000_000, host=host),
        "large-method": request("A" * 1_000_000, "/health", host=host),
        "http-0.9": b"GET /health\r\n\r\n",
        "http-1.2": request("GET", "/health", host=host, version="HTTP/1.2"),
        "http-2.0": request("GET", "/health", host=host, version="HTTP/2.0"),
        "http-9.9": request("GET", "/health", host=host, version="HTTP/9.9"),
        "http-2-preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
        "lower-case-http": request("GET", "/health", host=host, version="http/1.1"),
        "no-host": request("GET", "/health"),
        "two-hosts": got("Host: evil.example"),
        "two-equal-hosts": got(f"Host: {host}"),
        "two-spaces": request("GET", " /health", host=host),
        "tab": request("GET\t/health", "HTTP/1.1", host=host).replace(b" HTTP/1.1", b"\tHTTP", 1),
        "fourth-word": request("GET", "/health", host=host, version="HTTP/1.1 x"),
        "no-target": f"GET HTTP/1.1\r\nHost: {host}\r\n\r\n".encode(),
        "bytes-in-target": request("GET", "/h\xe9alth", host=host),
        "escape-in-target": request("GET", "/\x1b[31m", host=host),
        "method-with-colon": request("GE:T", "/health", host=host),
        "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        "noise": random.Random(1).randbytes(4096),
    }
    return [
        *(Case(name, sent, refused) for name, sent in heads.items()),
        *(Case(name, posted(chunked, body=body), refused) for name, body in chunks.items()),
        *(Case(name, sent + hidden, refused) for name, sent in lines.items()),
        Case("bad-after-good", good + b"GET\r\n\r\n" + hidden, _good_then_refused),
    ]


def _good_then_refused(found: Exchange) -> bool:
    return found.closed and found.statuses == [200, 400]


def _harmless(host: str) -> list[Case]:
    targets = [
        *("//health", "/health/", "/health/../v1/models", "/health%2f", "/health;x", "/HEALTH"),
        *("/%2e%2e/%2e%2e/etc/passwd", "/../../etc/passwd", "/health%00", "/v1/models/%00"),
        *("/v1/models/..%2f..%2fetc", "/v1/models/%0d%0aX:%20y", "/%ff%fe", "/v1/models/%F0%9F"),
        *("http://evil.example/health", "https://127.0.0.1/health", "//evil.example/health"),
        *("file:///etc/passwd", "*", "health", "?", "/#/health", "/v1/models/http://evil.example"),
    ]
    methods = ["TRACE", "PUT", "DELETE", "PATCH", "get", "A" * 30_000, "POST"]
    return [
        *(
            Case(f"target-{place}", request("GET", target, host=host), harmless, 1)
            for place, target in enumerate(targets)
        ),
        *(
            Case(f"method-{place}", request(method, "/health", host=host), harmless, 1)
            for place, method in enumerate(methods)
        ),
        Case("connect", request("CONNECT", "evil.example:443", host=host), harmless, 1),
        Case("options-all", request("OPTIONS", "*", host=host), harmless, 1),
        Case("old-without-host", request("GET", "/health", version="HTTP/1.0"), harmless, 1),
        Case("host-of-two", request("GET", "/health", host=f"{host}, evil"), harmless, 1),
        Case(
            "range-of-files",
            request("GET", "/etc/passwd", ["Range: bytes=0-,0-,0-"], host=host),
            harmless,
            1,
        ),
    ]


def _fine(host: str) -> list[Case]:
    def got(*lines: str, method: str = "GET", body: bytes = b"", version: str = "1.1") -> bytes:
        return request(method, "/health", lines, body, host=host, version=f"HTTP/{version}")

    hidden = request("GET", SMUGGLED, host=host)
    asked = {"prompt": "a", "max_tokens": 1}
    whole = post("/v1/completions", asked, host)
    data = whole.partition(b"\r\n\r\n")[2]
    lines = ["Content-Type: application/json", "Transfer-Encoding: chunked"]
    in_chunks = b"%x;x=y\r\n%b\r\n0\r\nX: y\r\n\r\n" % (len(data), data)
    chunked = request("POST", "/v1/completions", lines, in_chunks, host=host)
    expecting = whole.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n", 1)
    return [
        Case("one", got(), fine(1), 1),
        Case("old", got(version="1.0"), _once_and_closed),
        Case("head", got(method="HEAD"), fine(1), 1, to_head=True),
        Case("pipelined", got() * 2, fine(2), 2),
        Case("pipelined-50", got() * 50, fine(50), 50),
        Case("pipelined-posts", whole * 3, fine(3), 3),
        Case("body-of-get", got(f"Content-Length: {len(hidden)}", body=hidden), fine(1), 1),
        Case("in-chunks", chunked, _once_and_closed),
        Case("in-chunks-and-more", chunked + hidden, _once_and_closed),
        Case("expecting", expecting, lambda found: found.statuses == [100, 200], 1),
        Case("web-socket", got("Connection: Upgrade", "Upgrade: websocket"), fine(1), 1),
        Case("h2c", got("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c"), fine(1), 1),
        Case("close", got("Connection: close"), _once_and_closed),
        Case("query", request("GET", f"/health?key={MARKER}", host=host), fine(1), 1),
        Case("cookies", got(f"Cookie: {MARKER}"), fine(1), 1),
    ]


def _once_and_closed(found: Exchange) -> bool:
    return found.closed and found.statuses == [200]


def measure(conditions: Conditions) -> Figure:
    """All of them, quick or not: they take three seconds."""
    figure = Figure("s", MOST_SECONDS)
    with tiny_server() as server:
        host = f"127.0.0.1:{server.port}"
        before = _rss_bytes()
        Path("/proc/self/clear_refs").write_text("5")  # or a peak of before would hide a new one
        for case in cases(host):
            _try(case, server, figure, conditions)
        growth = (peak_rss_bytes() - before) / 1e6
        figure.check(growth <= MOST_GROWTH_MB, conditions, "memory", f"grew by {growth:.0f} MB")
        figure.check(is_golden(server), conditions, "golden", "another text than before")
        paths = [str(event.get("path")) for event in server.events]
        smuggled = [path for path in paths if SMUGGLED in path]
        figure.check(not smuggled, conditions, "smuggled", f"{smuggled} in the log")
    figure.notes["growth_mb"] = round(growth, 1)
    return figure


def _rss_bytes() -> int:
    """What this process, and the server in it, takes of memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _try(case: Case, server: Served, figure: Figure, conditions: Conditions) -> None:
    found = exchange(
        server.port,
        case.sent,
        answers=case.answers,
        seconds=MOST_SECONDS,
        beyond=0.0 if case.is_right in (refused, harmless) else BEYOND_SECONDS,
        to_head=case.to_head,
    )
    figure.worst = max(figure.worst, found.seconds)
    told = f"{case.name}: {found.statuses}, closed {found.closed}, {case.sent[:300]!r}{os.linesep}"
    figure.check(case.is_right(found), conditions, case.name, told)
