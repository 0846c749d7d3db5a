"""B6: no web page reaches the server that was not asked to: by Host, Origin and Content-Type.

What is foreign has 403 or 415, no CORS header, nothing of what it sent in its answer, and not one
step of the model; what is ours, or allowed by the operator, is answered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from figure import Conditions, Figure
from raw_http import Answer, exchange, request
from served import Served
from tiny_server import MARKER, is_golden, steps, tiny_server

BODY = b'{"prompt": "a", "max_tokens": 1}'
JSON = "Content-Type: application/json"
APP = "https://app.example"
ALLOWED = {"hosts": ("lab.example", "named.example:9000", "[fe80::1]"), "origins": (APP,)}


@dataclass(frozen=True)
class Case:
    """A request by its head; ``cors`` is the origin that its answer should allow."""

    name: str
    status: int
    method: str
    host: str
    lines: Sequence[str] = (JSON,)
    cors: str | None = None
    target: str = "/v1/completions"


def cases(port: int) -> Iterator[Case]:
    """All, for a server with ``ALLOWED`` at ``port`` of 127.0.0.1."""
    own = f"127.0.0.1:{port}"
    yield from _hosts(port)
    yield from _origins(port, own)
    yield from _pages(own)
    yield from _types(own)


def _hosts(port: int) -> Iterator[Case]:
    ours = [
        *(f"127.0.0.1:{port}", f"localhost:{port}", f"LocalHost:{port}", f"[::1]:{port}"),
        *("lab.example", "LAB.example:8080", "named.example:9000", "[fe80::1]:80"),
    ]
    foreign = [
        *("", "127.0.0.1", "localhost", "[::1]", f"127.0.0.1:{port + 1}", f"localhost:{port + 1}"),
        *(f"evil.example:{port}", "evil.example", f"{MARKER}.example:{port}", f"10.0.0.1:{port}"),
        *(f"0.0.0.0:{port}", f"[::]:{port}", f"0:{port}", f"127.1:{port}", f"127.0.0.2:{port}"),
        *(f"2130706433:{port}", f"0x7f000001:{port}", f"0177.0.0.1:{port}", f"127.0.1:{port}"),
        *(f"[::ffff:127.0.0.1]:{port}", f"[0:0:0:0:0:0:0:1]:{port}", f"::1:{port}"),
        *(f"localhost.:{port}", f"127.0.0.1.:{port}", f"localhost.evil.example:{port}"),
        *(f"127.0.0.1.nip.io:{port}", f"evil.example@localhost:{port}", f"localhost:{port}@evil"),
        *(f"localhost:{port}:{port}", f"localhost:0{port}", f"localhost:+{port}", "localhost:"),
        *(f"localhost:{port}/", f"localhost:{port}#", f"localhost:{port}, evil", f"/:{port}"),
        *(f"http://localhost:{port}", f"xn--lcalhost-n2a:{port}", f"loc\xe4lhost:{port}", "*"),
        *("evil.lab.example", "lab.example.", "lab.example@evil", "xlab.example", "lab.example:x"),
        *("named.example", "named.example:9001", "169.254.169.254", f"host.docker.internal:{port}"),
    ]
    for place, host in enumerate(ours):
        yield Case(f"own-host-{place}", 200, "POST", host)
    for place, host in enumerate(foreign):
        yield Case(f"host-{place}", 403, "POST", host)
    yield Case("host-of-get", 403, "GET", f"evil.example:{port}", (), target="/health")
    yield Case("host-of-preflight", 403, "OPTIONS", "evil.example", (f"Origin: {APP}",))


def _origins(port: int, own: str) -> Iterator[Case]:
    foreign = [
        *("null", "", "*", "http://evil.example", f"https://{MARKER}.example", "file://"),
        *(f"http://127.0.0.1:{port + 1}", "http://127.0.0.1", f"https://{own}", f"HTTP://{own}"),
        *(f"http://localhost:{port}", f"http://[::1]:{port}", f"http://0.0.0.0:{port}", own),
        *(f"http://{own}.evil.example", f"http://{own}/", f"http://evil@{own}", f"//{own}"),
        *(f"http://{own} http://evil.example", f"http://{own}, null", "chrome-extension://abc"),
        *("http://app.example", "https://app.example:444", "https://app.example.evil.example"),
        *("https://app.example.", "https://xapp.example", "https://x.app.example", f"{APP}/"),
    ]
    preflight = ["Access-Control-Request-Method: POST", "Access-Control-Request-Headers: x"]
    for place, origin in enumerate(foreign):
        line = f"Origin: {origin}"
        yield Case(f"origin-{place}", 403, "POST", own, (JSON, line))
        yield Case(f"preflight-{place}", 403, "OPTIONS", own, (line, *preflight))
    yield Case("origin-of-get", 403, "GET", own, ("Origin: http://evil.example",), target="/health")
    yield Case("two-origins", 403, "POST", own, (JSON, f"Origin: http://{own}", "Origin: null"))
    yield Case("own-origin", 200, "POST", own, (JSON, f"Origin: http://{own}"))
    local = f"localhost:{port}"
    yield Case("own-origin-by-name", 200, "POST", local, (JSON, f"Origin: http://{local}"))
    yield Case("allowed-origin", 200, "POST", own, (JSON, f"Origin: {APP}"), cors=APP)
    yield Case("allowed-preflight", 204, "OPTIONS", own, (f"Origin: {APP}", *preflight), cors=APP)
    yield Case(
        "allowed-error", 404, "GET", own, (f"Origin: {APP}",), cors=APP, target="/v1/models/x"
    )


def _pages(own: str) -> Iterator[Case]:
    """Of what sends no Origin, but says where it is from."""
    for site in ("cross-site", "same-site", "nonsense", ""):
        line = f"Sec-Fetch-Site: {site}"
        yield Case(f"post-{site}", 403, "POST", own, (JSON, line))
        yield Case(f"image-{site}", 403, "GET", own, (line,), target="/health")
    site = "Sec-Fetch-Site: cross-site"
    navigating = "Sec-Fetch-Mode: navigate"
    yield Case("form", 403, "POST", own, (JSON, site, navigating))
    yield Case("link", 200, "GET", own, (site, navigating), target="/health")
    for site in ("same-origin", "none"):
        yield Case(f"post-{site}", 200, "POST", own, (JSON, f"Sec-Fetch-Site: {site}"))


def _types(own: str) -> Iterator[Case]:
    foreign = [
        *("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"),
        *("", "application/jsonp", "text/json", "application/ld+json", "json", "image/png", "*/*"),
        *("application/json, text/plain", "text/plain; application/json", "application/json/x"),
        *("application/csp-report", "text/plain;application/json", "application", MARKER),
    ]
    for place, kind in enumerate(foreign):
        yield Case(f"type-{place}", 415, "POST", own, (f"Content-Type: {kind}",))
    yield Case("no-type", 415, "POST", own, ())
    yield Case("two-types", 415, "POST", own, ("Content-Type: text/plain", JSON))
    for place, kind in enumerate(("application/json; charset=utf-8", "Application/JSON")):
        yield Case(f"own-type-{place}", 200, "POST", own, (f"Content-Type: {kind}",))


def measure(conditions: Conditions) -> Figure:
    """All of them, quick or not: they take a second.

    ``worst`` is what the model computed for what is foreign.
    """
    figure = Figure("s of computing for foreign requests", 0.0)
    with tiny_server(**ALLOWED) as server:
        everything = list(cases(server.port))
        foreign = [case for case in everything if case.status in (403, 415)]
        good = [case for case in everything if case not in foreign]
        before = steps(server)
        for case in foreign:
            _try(case, server, figure, conditions)
        figure.worst = steps(server) - before
        for case in good:
            _try(case, server, figure, conditions)
        figure.check(steps(server) > before, conditions, "steps", "good ones took no step")
        figure.check(is_golden(server), conditions, "golden", "another text than before")
    return figure


def _try(case: Case, server: Served, figure: Figure, conditions: Conditions) -> None:
    body = BODY if case.method == "POST" else b""
    lines = [*case.lines, f"Content-Length: {len(body)}"] if body else case.lines
    sent = request(case.method, case.target, lines, body, host=case.host)
    answers = exchange(server.port, sent, answers=1).answers
    right = len(answers) == 1 and _is_right(case, answers[0])
    figure.check(right, conditions, case.name, f"{sent!r}: {answers}")


def _is_right(case: Case, answer: Answer) -> bool:
    allowed = answer.values("access-control-allow-origin")
    cors = [name for name, _ in answer.headers if name.startswith("access-control-")]
    told = " ".join(value for _, value in answer.headers).encode("latin-1") + answer.body
    return (
        answer.status == case.status
        and allowed == ([] if case.cors is None else [case.cors])
        and (case.cors is not None or not cors)
        and "access-control-allow-credentials" not in cors
        and MARKER.encode() not in told
        and answer.values("x-content-type-options") == ["nosniff"]
        and answer.values("location") == []
    )
