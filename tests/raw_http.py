"""HTTP by hand: bytes over a socket, whatever they are, and the answers that came, counted."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Answer:
    """One response; interim ones, with a status of 1xx, are responses of their own."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def values(self, name: str) -> list[str]:
        """Of the headers called ``name``, in lower case."""
        return [value for key, value in self.headers if key == name]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Exchange:
    """What came back for what was sent.

    sent        bytes of it that the system took
    closed      whether the server ended the connection in time
    seconds     until the last answer was whole; where the connection was ended, until then
    """

    answers: list[Answer] = field(default_factory=list)
    sent: int = 0
    closed: bool = False
    seconds: float = 0.0

    @property
    def final(self) -> list[Answer]:
        """The answers without interim ones."""
        return [answer for answer in self.answers if answer.status >= 200]

    @property
    def statuses(self) -> list[int]:
        return [answer.status for answer in self.answers]


def exchange(
    port: int,
    sent: bytes | Iterable[bytes],
    *,
    answers: int | None = None,
    seconds: float = 5.0,
    pause: float = 0.0,
    beyond: float = 0.0,
    to_head: bool = False,
) -> Exchange:
    """Sends what is ``sent`` to ``port`` of 127.0.0.1, with a ``pause`` after each piece.

    Ends when there are as many ``answers`` as asked for, and none came ``beyond`` them for as many
    seconds; when the server closes; or after ``seconds`` in all. ``to_head``: answers have no body.
    """
    found, got = Exchange(), bytearray()
    started = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:

        def enough() -> bool:
            found.answers = parse(bytes(got), to_head=to_head)
            return answers is not None and len(found.final) >= answers

        def read(wait: float) -> bool:
            """Whether there may be more."""
            connection.settimeout(max(wait, 1e-3))
            try:
                data = connection.recv(1 << 16)
            except TimeoutError:
                return True
            except OSError:
                data = b""
            got.extend(data)
            found.closed = not data
            return bool(data)

        for piece in [sent] if isinstance(sent, bytes) else sent:
            if time.perf_counter() - started > seconds:
                break
            try:
                connection.settimeout(seconds)
                connection.sendall(piece)
                found.sent += len(piece)
            except OSError:
                break
            if pause and (not read(pause) or enough()):
                break
        while not found.closed and not enough():
            left = seconds - (time.perf_counter() - started)
            if left <= 0 or not read(left):
                break
        enough()
        found.seconds = time.perf_counter() - started
        if beyond and not found.closed and read(beyond):
            enough()
    return found


def parse(data: bytes, *, to_head: bool = False) -> list[Answer]:
    """The whole responses at the beginning of ``data``; one without a length ends with it."""
    found: list[Answer] = []
    while data:
        head, blank, rest = data.partition(b"\r\n\r\n")
        if not blank:
            break
        first, *lines = head.decode("latin-1").split("\r\n")
        status = int(first.split(" ")[1])
        headers = [
            (name.lower(), value.strip())
            for name, _, value in (line.partition(":") for line in lines)
        ]
        body = _body(status, dict(headers), rest, to_head)
        if body is None:
            break
        content, data = body
        found.append(Answer(status, headers, content))
    return found


def _body(
    status: int, headers: dict[str, str], rest: bytes, to_head: bool
) -> tuple[bytes, bytes] | None:
    """(body, what follows), None while it is not all there."""
    if to_head or status < 200 or status in (204, 304):
        return b"", rest
    if headers.get("transfer-encoding") == "chunked":
        content = b""
        while True:
            size, line, rest = rest.partition(b"\r\n")
            if not line or len(rest) < int(size, 16) + 2:
                return None
            length = int(size, 16)
            content, rest = content + rest[:length], rest[length + 2 :]
            if not length:
                return content, rest
    length = int(headers.get("content-length", len(rest)))
    return None if len(rest) < length else (rest[:length], rest[length:])


def request(
    method: str,
    target: str,
    headers: Sequence[str] = (),
    body: bytes = b"",
    *,
    host: str | None = None,
    version: str = "HTTP/1.1",
) -> bytes:
    """The bytes of a request; ``headers`` are whole lines, ``host`` one of them."""
    hosts = [] if host is None else [f"Host: {host}"]
    lines = [f"{method} {target} {version}", *hosts, *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def post(target: str, value: Any, host: str, headers: Sequence[str] = ()) -> bytes:
    """The bytes of a request with a JSON body; ``value`` may be its bytes."""
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    kind = ["Content-Type: application/json", f"Content-Length: {len(data)}"]
    return request("POST", target, [*kind, *headers], data, host=host)


def is_error(answer: Answer) -> bool:
    """Whether it has the form of OpenAI's errors."""
    try:
        error = answer.json["error"]
        return (
            answer.values("content-type") == ["application/json"]
            and sorted(error) == ["code", "message", "param", "type"]
            and isinstance(error["message"], str)
            and isinstance(error["type"], str)
        )
    except (ValueError, KeyError, TypeError):
        return False
