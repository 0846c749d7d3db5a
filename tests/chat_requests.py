"""Requests for chats, as the tests of a server make them."""

from __future__ import annotations

import json
from typing import Any

from served import Served

PATH = "/v1/chat/completions"
ASKED = [{"role": "user", "content": "Why?"}]
SETTINGS = {"max_tokens": 12, "seed": 3, "temperature": 1.0}


def events(server: Served, path: str, body: Any) -> list[Any]:
    """The data of all events of a stream but the last, which says that it is one."""
    answer, data = server.send(
        "POST",
        path,
        json.dumps({**body, "stream": True}).encode(),
        **{"Content-Type": "application/json"},
    )
    assert answer.status == 200, data
    *told, done = data.decode().strip().split("\n\n")
    assert done == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in told]


def answered(server: Served, **body: Any) -> Any:
    status, found = server.post(PATH, {"messages": ASKED, **SETTINGS, **body})
    assert status == 200, found
    return found
