"""The scorecard sees what is wrong: a server with a bug put into it fails the figure that is there
for it, which an intact one passes. All run as quickly as they can.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import b1
import b3
import b4
import b5
import b7
import b8
import h11
import msgspec
import pytest
from figure import Conditions, Figure
from raw_http import exchange
from starlette.types import Receive, Scope

from pocketlm.runtime.server import endpoint, request_body
from pocketlm.runtime.server.connections import connection, guard
from pocketlm.runtime.server.connections.connection import Connection
from pocketlm.runtime.server.connections.guard import Guard

pytestmark = pytest.mark.serve

Patch = pytest.MonkeyPatch


def measured(name: str, out: Path) -> Figure:
    """A quick run of the figure ``name``."""
    figure: Figure = importlib.import_module(name).measure(Conditions(True, 20, out))
    return figure


@pytest.mark.parametrize("name", ["b1", "b3", "b6", "b7"])
def test_an_intact_server_passes(name: str, tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(b1, "MOST_MILLISECONDS", 5000)  # what is timed, is so elsewhere
    figure = measured(name, tmp_path)
    failed = [file.read_text() for file in tmp_path.iterdir()] if tmp_path.exists() else []
    assert figure.passed, failed


def any_host(patch: Patch) -> None:
    patch.setattr(Guard, "_check_host", lambda self, scope: None)


def any_origin(patch: Patch) -> None:
    """Told back, as by a server that is to work with every page."""

    def reflected(self: Guard, scope: Scope) -> bytes | None:
        return dict(scope["headers"]).get(b"origin")

    patch.setattr(Guard, "_foreign_origin", reflected)


def own_origins_by_prefix(patch: Patch) -> None:
    strict = Guard._foreign_origin

    def lenient(self: Guard, scope: Scope) -> bytes | None:
        headers = dict(scope["headers"])
        own = b"http://" + headers.get(b"host", b"")
        return None if headers.get(b"origin", b"").startswith(own) else strict(self, scope)

    patch.setattr(Guard, "_foreign_origin", lenient)


def any_type(patch: Patch) -> None:
    patch.setattr(Guard, "_check_type", lambda self, scope: None)


def key_for_a_prefix(patch: Patch) -> None:
    """Only what is below /v1 is closed."""
    patch.setattr(Guard, "_is_open", lambda self, scope: not scope["path"].startswith("/v1"))


def open_by_prefix(patch: Patch) -> None:
    patch.setattr(Guard, "_is_open", lambda self, scope: scope["path"].startswith("/health"))


def half_a_key(patch: Patch) -> None:
    patch.setattr("hmac.compare_digest", lambda shown, key: key.startswith(shown[:5]))


def lenient_json(patch: Patch) -> None:
    """What is wrong is found out by whoever uses it."""

    def parsed(data: bytes, kind: type[Any]) -> Any:
        return msgspec.convert(json.loads(data), kind, strict=False)

    patch.setattr(endpoint, "parsed", parsed)


def any_number_of_texts(patch: Patch) -> None:
    """As many as there can be, in place of an error."""
    strict = request_body.parsed

    def parsed(data: bytes, kind: type[Any]) -> Any:
        try:
            body = json.loads(data)
        except (ValueError, RecursionError):
            return strict(data, kind)
        if isinstance(body, dict) and type(body.get("n")) is int:
            body["n"] = 1
            return strict(json.dumps(body).encode(), kind)
        return strict(data, kind)

    patch.setattr(endpoint, "parsed", parsed)


class Plain(h11.Connection):
    """h11 as it is."""

    refusal = None
    is_sending = False

    def __init__(self) -> None:
        super().__init__(h11.SERVER, 1 << 20)


def plain_http(patch: Patch) -> None:
    patch.setattr(connection, "StrictConnection", Plain)


def plain_errors_of_http(patch: Patch) -> None:
    patch.delattr(Connection, "send_400_response")


def logged_queries(patch: Patch) -> None:
    def path_of(scope: Scope) -> str:
        return f"{scope['path']}?{scope['query_string'].decode()}"

    patch.setattr(guard, "path_of", path_of)


def printed_bodies(patch: Patch) -> None:
    strict = request_body.parsed

    def parsed(data: bytes, kind: type[Any]) -> Any:
        print(data, file=sys.stderr)
        return strict(data, kind)

    patch.setattr(endpoint, "parsed", parsed)


def deaf(patch: Patch) -> None:
    """Whoever leaves is answered all the same, as behind a middleware that hides it."""

    async def until_gone(work: Callable[[], Coroutine[Any, Any, None]], receive: Receive) -> None:
        await work()

    patch.setattr(endpoint, "_until_gone", until_gone)
    patch.setattr(Conditions, "count", lambda self, full, least=1: 2)  # each costs a second


def boundless(patch: Patch) -> None:
    """Bodies have as many bytes as they like. Only what ends by itself is tried."""
    strict = request_body.read_body

    async def read_body(receive: Receive, most: int, *arguments: Any) -> bytes:
        return await strict(receive, 10**9, *arguments)

    patch.setattr(Guard, "_check_length", lambda self, scope: None)
    patch.setattr(endpoint, "read_body", read_body)
    patch.setattr(b4, "exchange", partial(exchange, seconds=0.5))
    for others in ("_undeclared", "_compressed", "_unread", "_slow"):
        patch.setattr(b4, others, lambda server, figure, conditions: None)


def patient(patch: Patch) -> None:
    """Headers may take as long as they like."""
    patch.setattr(Connection, "_watch_head", lambda self, arriving: None)
    patch.setattr(b5, "QUICK", {"clients": 12, "every": 0.2, "alone": 0.3, "crowded": 2.5})
    patch.setattr(b5, "QUICK_SETTINGS", {"header_seconds": 0.5, "body_seconds": 0.8})


@pytest.mark.parametrize(
    ("name", "bug"),
    [
        ("b1", lenient_json),
        ("b1", any_number_of_texts),
        ("b3", plain_http),
        ("b3", plain_errors_of_http),
        ("b4", boundless),
        ("b5", patient),
        ("b6", any_host),
        ("b6", any_origin),
        ("b6", own_origins_by_prefix),
        ("b6", any_type),
        ("b7", key_for_a_prefix),
        ("b7", open_by_prefix),
        ("b7", half_a_key),
        ("b8", logged_queries),
        ("b8", printed_bodies),
        ("d1", deaf),
    ],
)
def test_a_server_with_a_bug_does_not(
    name: str, bug: Callable[[Patch], None], tmp_path: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(b3, "MOST_SECONDS", 0.3)
    monkeypatch.setattr(b7, "_the_command", lambda figure, conditions: None)
    monkeypatch.setattr(b8, "OTHERS", ["b3"])
    bug(monkeypatch)
    assert not measured(name, tmp_path).passed
