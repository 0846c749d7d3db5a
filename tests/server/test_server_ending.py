"""Told to end, a server takes nothing new, and what is under way ends as it should."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from http_clients import Client
from raw_http import post
from serve_process import Process, is_free, serve_process
from served import served
from starlette.types import Message

import pocketlm
from pocketlm.export.folder import ModelFolder
from pocketlm.runtime.server.call import EVENT_END, Call, event_of
from pocketlm.runtime.server.json_encoding import PART_BYTES

pytestmark = pytest.mark.serve

STEPS = {"seconds": 0.02}
TEXT = {"prompt": "a", "ignore_eos": True, "temperature": 0, "stream": True}
GRACE = {"grace_seconds": 0.5}


def ended_well(server: Process) -> None:
    assert server.ended() == 0
    assert is_free(server.port)
    for line in server.lines:
        json.loads(line)  # no traceback, no warning


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda one: one.name)
def test_what_is_under_way_ends_in_time_or_says_that_it_cannot(
    tiny_folder: ModelFolder, number: int
) -> None:
    with (
        serve_process(tiny_folder.path, settings=GRACE, steps=STEPS) as server,
        Client(server.port).ask(max_tokens=8, **TEXT) as short,
        Client(server.port).ask(max_tokens=120, **TEXT) as long,
        Client(server.port) as kept,
    ):
        short.event()
        long.event()
        server.signal(number)
        assert short.events()[-1] == "[DONE]"
        assert long.events()[-1]["error"]["message"].startswith("the server is ending")
        assert kept.socket.recv(1) == b""  # who asks nothing keeps nobody waiting
        ended_well(server)


def test_a_cut_answer_does_not_look_whole_in_http_1_0(tiny_folder: ModelFolder) -> None:
    """There the end of the connection is the end of an answer without a length (RFC 9112, 8)."""
    asked = TEXT | {"stream": False, "n": 4, "max_tokens": 120, "logprobs": 100}  # megabytes
    with (
        serve_process(tiny_folder.path, settings=GRACE) as server,
        Client(server.port, receive_bytes=4096) as client,
    ):
        sent = post("/v1/completions", asked, f"127.0.0.1:{server.port}")
        client.socket.sendall(sent.replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert client.socket.recv(4096).startswith(b"HTTP/1.1 200")
        server.signal()
        ended_well(server)
        with pytest.raises(ConnectionResetError):
            while client.socket.recv(1 << 16):
                pass


def test_a_second_signal_ends_it_at_once(tiny_folder: ModelFolder) -> None:
    settings = {"grace_seconds": 600.0}
    with (
        serve_process(tiny_folder.path, settings=settings, steps=STEPS) as server,
        Client(server.port).ask(max_tokens=120, **TEXT) as client,
    ):
        client.event()
        server.signal(signal.SIGTERM)
        while not is_free(server.port):  # two that come at once are one
            pass
        server.signal(signal.SIGTERM)
        assert "error" in client.events()[-1]
        ended_well(server)


@pytest.mark.parametrize("slow", ["opening_seconds", "preparing_seconds"])
def test_what_takes_long_does_not_keep_it(tiny_folder: ModelFolder, slow: str) -> None:
    with (
        serve_process(tiny_folder.path, settings=GRACE, **{slow: 60.0}) as server,
        Client(server.port).ask(prompt="a", max_tokens=1) as client,
        Client(server.port).look("/health") as after,
    ):
        assert after.status == 200  # so the other one has come
        server.signal()
        assert client.status == 503
        ended_well(server)


def test_a_kept_connection_is_told_that_it_ends(tiny_folder: ModelFolder) -> None:
    opened = {"tiny": partial(pocketlm.load, tiny_folder.path, threads=1)}
    with served(opened) as server:
        server.server._guard.draining = True  # as it is while others are answered
        with socket.create_connection(("127.0.0.1", server.port)) as asking:
            host = f"127.0.0.1:{server.port}"
            asking.sendall(f"GET /health HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            answer = asking.makefile("rb").read().decode().lower()
        assert answer.startswith("http/1.1 503 ")
        assert "connection: close" in answer
        assert "retry-after: " in answer


def test_what_is_said_at_the_end_is_never_a_part_of_another_event() -> None:
    """Wherever a stream waits for its client when it is cancelled."""
    large = {"text": "a" * 2 * PART_BYTES}
    begun = event_of({"text": "b"})

    async def events() -> AsyncIterator[bytes]:
        yield begun
        yield event_of(large)
        yield b"data: "
        yield b'{"text": "c"}'
        yield EVENT_END

    async def streamed(cancelled_at: int) -> tuple[bytes, bool]:
        """(what was sent, whether to its end) if the body's part of that number has to wait."""
        sent, num_parts, is_whole = b"", 0, False

        async def send(message: Message) -> None:
            nonlocal sent, num_parts, is_whole
            if message["type"] != "http.response.body":
                return
            num_parts += 1
            if num_parts == cancelled_at:
                raise asyncio.CancelledError
            sent += message["body"]
            is_whole = not message["more_body"]

        with suppress(asyncio.CancelledError):
            await Call({}, receive, send, service).stream(events())
        return sent, is_whole

    receive: Any = None
    service: Any = None
    num_said = 0
    for place in range(1, 8):
        sent, is_whole = asyncio.run(streamed(place))
        *whole, rest = sent.split(EVENT_END)
        for event in whole:
            said = json.loads(event.removeprefix(b"data: "))
            num_said += "error" in said
        assert b"error" not in rest and is_whole == (rest == b"")
    assert num_said == 3  # before, between and after whole events
