"""Clients of a server who read as they like, and leave when they like."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from http.client import HTTPConnection, HTTPResponse
from typing import Any

COMPLETIONS = "/v1/completions"
AT_ONCE = struct.pack("ii", 1, 0)  # SO_LINGER: closing resets the connection
MOST_SECONDS = 20.0


class Client:
    """A connection of its own; ``receive_bytes`` is how much the system takes for it unread."""

    def __init__(self, port: int, receive_bytes: int | None = None) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.socket.settimeout(MOST_SECONDS)
        if receive_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.connect(("127.0.0.1", port))
        self._connection = HTTPConnection("127.0.0.1", port)
        self._connection.sock = self.socket
        self._answer: HTTPResponse | None = None

    def ask(self, **body: Any) -> Client:
        """Sends a request for a completion; itself."""
        headers = {"Content-Type": "application/json"}
        self._connection.request("POST", COMPLETIONS, json.dumps(body), headers)
        return self

    def look(self, path: str) -> Client:
        """Asks for what is there; itself."""
        self._answer = None
        self._connection.request("GET", path)
        return self

    @property
    def answer(self) -> HTTPResponse:
        """What it is answered, its head read."""
        if self._answer is None:
            self._answer = self._connection.getresponse()
        return self._answer

    @property
    def status(self) -> int:
        """That of the answer."""
        return self.answer.status

    def whole(self) -> Any:
        """The JSON of the answer."""
        return json.loads(self.answer.read())

    def event(self) -> Any:
        """The next event of a stream: JSON, "[DONE]", or None at its end."""
        while line := self.answer.readline():
            if line.startswith(b"data: "):
                data = line[6:].strip()
                return "[DONE]" if data == b"[DONE]" else json.loads(data)
        return None

    def events(self) -> list[Any]:
        """All that are left; the answer has ended properly then."""
        found = []
        while (event := self.event()) is not None:
            found.append(event)
        return found

    def leave(self, reset: bool = False) -> None:
        """Ends the connection, politely or not."""
        if reset:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
        else:
            with contextlib.suppress(OSError):  # the server has ended it
                self.socket.shutdown(socket.SHUT_RDWR)
        if self._answer is not None:
            self._answer.close()
        self._connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()


def text_of(events: list[Any], index: int = 0) -> str:
    """What a stream of /v1/completions said in the text of that place."""
    choices = [choice for event in events if "choices" in event for choice in event["choices"]]
    return "".join(choice["text"] for choice in choices if choice["index"] == index)
