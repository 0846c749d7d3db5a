"""B7: without the key nothing is there but what says so, and nobody can connect from elsewhere.

Every route of the application is tried with every method, beside what is often left open, and with
paths that look like open ones; then the command itself: where it listens, and where it will not.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from figure import Conditions, Figure, NotRun
from raw_http import exchange, request
from served import Served
from tiny_server import MARKER, is_golden, steps, tiny_folder, tiny_server

from pocketlm.runtime.server.app import make_app

KEY = f"sk-{MARKER}"
# What may be open at most: whether the server is there, and the files of the page.
OPEN = re.compile(r"/(health|page/[\w.-]+|[\w.-]+\.(css|js|svg|html|ico))?")
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "X"]
EXTRAS = [
    *("/docs", "/redoc", "/openapi.json", "/metrics", "/admin", "/v1", "/v1/", "/v1/files", "/api"),
    *("/debug", "/debug/pprof", "/server-status", "/.env", "/.git/config", "/robots.txt", "/tags"),
    *("/v1/engines", "/api/generate", "/api/tags", "/slots", "/props", "/v2/health/ready", "/ping"),
    *("/static/", "/static/../v1/models", "/favicon.ico/x", "/shutdown", "/reload", "/version"),
]
TRICKS = [
    *("//health", "/health/", "/health/x", "/health%2f", "/health%2e", "/health%00", "/health;x"),
    *("/health/../v1/models", "/health/..%2fv1/models", "/health%2f..%2fv1%2fmodels", "/HEALTH"),
    *("/./health", "/x/../health", "/health?/../v1/models#", "/v1/models/../health", "/health%20"),
    *("http://127.0.0.1/v1/models", "/v1/models?path=/health", "/v1//models", "/v1/models%2f"),
    *("/%2e/v1/models", "/v1/%6dodels", "/v1/models#/health", "/page/../v1/models", "/page/%2e%2e"),
    *("/health%0d%0aAuthorization:%20x", "*", "/", "?", "/healthz", "/v1/models/health", "/page/"),
]
WRONG = [
    "",
    "Authorization: ",
    "Authorization: Bearer",
    "Authorization: Bearer ",
    "Authorization: Bearer null",
    f"Authorization: Bearer {KEY[:-1]}",
    f"Authorization: Bearer {KEY}x",
    f"Authorization: Bearer {KEY} {KEY}",
    f"Authorization: Bearer {KEY},{KEY}",
    f"Authorization: Bearer {KEY.upper()}",
    f"Authorization: Bearer {KEY}\xe9",
    f"Authorization: Basic {KEY}",
    f"Authorization: {KEY}",
    f"Authorization: Bearer{KEY}",
    f"Authorization: Bearer\xa0{KEY}",
    f"Authorization: Bearer {KEY}\r\nAuthorization: Bearer {KEY}",
    f"X-Api-Key: {KEY}",
    f"Cookie: key={KEY}",
]
RIGHT = [f"Bearer {KEY}", f"bearer {KEY}", f"BEARER {KEY}", f"Bearer  {KEY} "]
JSON = "Content-Type: application/json"
# The statuses of what is answered: of what is closed, open, or not for this server at all.
Statuses = Sequence[list[int]]
SHUT: Statuses = ([401], [400], [])
OPENED: Statuses = ([200],)
FOREIGN: Statuses = ([403],)
PUBLIC = ["0.0.0.0", "::", "0", "", "192.168.0.1", "lab.example", "::ffff:0.0.0.0"]


def measure(conditions: Conditions) -> Figure:
    """``worst`` is how many were answered without the key, that should not be."""
    figure = Figure("requests let in", 0)
    with tiny_server(api_key=KEY) as server:
        before = steps(server)
        for name, sent, expected in _without_key(server):
            statuses = exchange(server.port, sent, answers=1, to_head=True).statuses
            right = statuses in expected
            figure.worst += not right and expected is SHUT
            figure.check(right, conditions, name, f"{sent[:300]!r}: {statuses}")
        figure.check(steps(server) == before, conditions, "steps", "the model took a step")
        _with_key(server, figure, conditions)
        headers = {"Authorization": f"Bearer {KEY}"}
        figure.check(is_golden(server, headers), conditions, "golden", "another text than before")
    _the_command(figure, conditions)
    return figure


def _without_key(server: Served) -> Iterator[tuple[str, bytes, Statuses]]:
    """(name, request, how it may be answered)."""
    host = f"127.0.0.1:{server.port}"
    routes = make_app(server.service).routes
    for route, is_open in routes:
        path = str(route.path)  # type: ignore[attr-defined]
        for method in METHODS:
            may = is_open and method in ("GET", "HEAD") and OPEN.fullmatch(path) is not None
            sent = request(method, path.replace("{name:path}", "tiny"), [JSON], host=host)
            yield f"{method}-{path.replace('/', '-')}", sent, OPENED if may else SHUT
    known = {str(route.path) for route, is_open in routes if is_open}  # type: ignore[attr-defined]
    for place, path in enumerate([*EXTRAS, *TRICKS]):
        plain = path.partition("?")[0]
        may = plain in known and OPEN.fullmatch(plain) is not None
        for method in ("GET", "POST"):
            sent = request(method, path, [JSON], host=host)
            yield f"{method}-path-{place}", sent, OPENED if may and method == "GET" else SHUT
    for place, wrong in enumerate(WRONG):
        lines = [wrong] if wrong else []
        yield f"key-{place}", request("GET", "/v1/models", lines, host=host), SHUT
    yield "key-in-query", request("GET", f"/v1/models?api_key={KEY}", host=host), SHUT
    yield "key-in-user", request("GET", "/v1/models", host=f"{KEY}@{host}"), FOREIGN
    yield "bad-host", request("GET", "/v1/models", host="evil.example/health?"), FOREIGN


def _with_key(server: Served, figure: Figure, conditions: Conditions) -> None:
    host = f"127.0.0.1:{server.port}"
    for place, right in enumerate(RIGHT):
        lines = [f"Authorization: {right}"]
        found = exchange(server.port, request("GET", "/v1/models", lines, host=host), answers=1)
        figure.check(found.statuses == [200], conditions, f"right-key-{place}", f"{found}")
    found = exchange(server.port, request("GET", "/health", host=host), answers=1)
    figure.check(found.statuses == [200], conditions, "health", f"{found}")
    answer = found.answers[0]
    figure.check(answer.json == {"status": "ok"}, conditions, "health-tells", f"{answer.body!r}")


def _the_command(figure: Figure, conditions: Conditions) -> None:
    if not Path("/proc/net/tcp").exists():
        raise NotRun("/proc/net/tcp tells which sockets listen, and is not here")
    process = _serve("--port", "0")
    try:
        assert process.stderr is not None
        url = json.loads(process.stderr.readline())["url"]
        found = listening(process.pid)
        right = len(found) == 1 and found[0].startswith("127.0.0.1:")
        figure.check(right, conditions, "loopback", f"{url} listens on {found}")
    finally:
        process.terminate()
        process.communicate(timeout=30)
    for place, host in enumerate(PUBLIC[:2] if conditions.quick else PUBLIC):
        process = _serve("--port", "0", "--host", host)
        try:
            _, told = process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            _, told = process.communicate()
        right = process.returncode == 2 and told.count("\n") == 1 and "Traceback" not in told
        figure.check(right, conditions, f"public-{place}", f"{host!r}: {told}")


def _serve(*options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pocketlm", "serve", str(tiny_folder().path), *options]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "LC_ALL": "C"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def listening(pid: int) -> Sequence[str]:
    """The addresses that a process listens on: "127.0.0.1:8080"; others as the system has them."""
    links = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            links.append(os.readlink(entry))
    own = {link.removeprefix("socket:[").removesuffix("]") for link in links if "socket" in link}
    found = []
    for table in ("tcp", "tcp6"):
        lines = Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
        for fields in (line.split() for line in lines):
            if fields[3] == "0A" and fields[9] in own:  # it listens
                found.append(_address(fields[1]))
    return found


def _address(text: str) -> str:
    """Of "0100007F:1F90"."""
    address, _, port = text.partition(":")
    if len(address) != 8:
        return f"[{address}]:{int(port, 16)}"
    parts = reversed(bytes.fromhex(address))
    return f"{'.'.join(map(str, parts))}:{int(port, 16)}"
