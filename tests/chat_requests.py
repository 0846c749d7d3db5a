"""Requests for chats, as the tests of a server make them."""

from __future__ import annotations

from typing import Any

from served import Served

PATH = "/v1/chat/completions"
ASKED = [{"role": "user", "content": "Why?"}]
SETTINGS = {"max_tokens": 12, "seed": 3, "temperature": 1.0}


def answered(server: Served, **body: Any) -> Any:
    status, found = server.post(PATH, {"messages": ASKED, **SETTINGS, **body})
    assert status == 200, found
    return found
