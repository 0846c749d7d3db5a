"""One client's connection: uvicorn's, with deadlines, bounds and answers of our own to bad HTTP.

Source: uvicorn#157, which leaves slow clients to a proxy before it; nothing is before us.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from ..call import JSON
from ..errors import ApiError, busy
from ..json_encoding import encoded
from ..service import Service
from .answer_headers import SAFE
from .open_files import most_connections
from .strict_http import NOT_HTTP, StrictConnection

LINGER_SECONDS = 1.0  # that a client has to read its answer and stop sending
RESET = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)  # SO_LINGER, of no seconds


class Connection(H11Protocol):
    """A client, who has to say in time what it asks for, and who can be cut off.

    since       when it was last answered, or came; on the loop's clock
    """

    def __init__(self, service: Service, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.conn = self._strict = StrictConnection()
        self.since = 0.0
        self._service = service
        self._settings = service.settings
        self._timers: dict[str, asyncio.TimerHandle] = {}  # each cuts the client off

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way; the head of one may be."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: Any) -> None:
        """uvicorn's; one connection too many ends the one that is idle for longest."""
        lingering: Any = Lingering(transport, self.loop, self._strict)
        super().connection_made(lingering)
        transport.set_write_buffer_limits(high=0)  # what the system does not take is not kept here
        self.app_state = {**self.app_state, "cut": lingering.cut}
        self.since = self.loop.time()
        self._watch_head(True)
        most = most_connections(self._settings.most_connections)
        if len(self.connections) > most:
            self._make_room(most)

    def data_received(self, data: bytes) -> None:
        """uvicorn's; what comes after the last answer is thrown away."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        self._watch_head(self.conn.their_state is h11.IDLE)

    def on_response_complete(self) -> None:
        """uvicorn's; the rest of a body that nobody read is awaited for a moment only."""
        self.since = self.loop.time()
        if self._strict.is_sending:
            self._stop("rest")
            self._start("rest", LINGER_SECONDS, self._drop_sending)
        super().on_response_complete()
        self._watch_head(self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0]))

    def pause_writing(self) -> None:
        """uvicorn's, which has whoever answers wait; for so long."""
        super().pause_writing()
        self._start("stall", self._settings.stall_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """uvicorn's."""
        super().resume_writing()
        self._stop("stall")

    def connection_lost(self, exc: Exception | None) -> None:
        """uvicorn's."""
        for name in list(self._timers):
            self._stop(name)
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answers what is no request, in the form of all errors."""
        self.refuse(self._strict.refusal or ApiError(400, NOT_HTTP))

    def refuse(self, error: ApiError) -> None:
        """Answers with ``error`` where an answer has not begun, and takes nothing more."""
        if not self.is_idle:
            self.cycle.disconnected = True  # for whoever answers: it must not any more
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._write(error)
            if self.is_idle:  # else the log has a line of it
                self._service.log.request("", error.status)
        self.transport.close()

    def _write(self, error: ApiError) -> None:
        data = encoded(error.body)
        headers = [
            (b"content-type", JSON),
            (b"content-length", str(len(data)).encode()),
            (b"connection", b"close"),
            *((name.encode(), value.encode()) for name, value in error.headers.items()),
            *SAFE,
        ]
        reason = STATUS_PHRASES[error.status]
        for event in (
            h11.Response(status_code=error.status, headers=headers, reason=reason),
            h11.Data(data=data),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event))

    def _make_room(self, most: int) -> None:
        # Of many that come at once, one that was ended for another is still there.
        everyone: set[Any] = self.connections - {self}
        others = [one for one in everyone if not one.transport.is_gone]
        if len(others) < most:
            return
        idle = [one for one in others if isinstance(one, Connection) and one.is_idle]
        if idle:
            min(idle, key=lambda one: one.since).transport.abort()
        else:
            self.refuse(busy("the server has as many connections as it takes", 503))

    def _watch_head(self, arriving: bool) -> None:
        """Has a deadline while the head of a request is ``arriving``, from its first byte."""
        if arriving:
            self._start("head", self._settings.header_seconds, self.transport.abort)
        else:
            self._stop("head")

    def _start(self, name: str, seconds: float, act: Callable[[], None]) -> None:
        if name not in self._timers:
            self._timers[name] = self.loop.call_later(seconds, act)

    def _stop(self, name: str) -> None:
        if name in self._timers:
            self._timers.pop(name).cancel()

    def _drop_sending(self) -> None:
        if self.is_idle and self._strict.is_sending:
            self.transport.abort()


class Lingering:
    """A transport that lets a client which still sends read its answer before it is closed.

    What it sends in the meantime would have the system take the answer back otherwise (RFC 9112,
    section 9.6). ``conn`` says whether it does.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        conn: StrictConnection,
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._conn = conn
        self._ending = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    @property
    def is_gone(self) -> bool:
        """Whether its file is closed, or will be in a moment."""
        return self._transport.is_closing()

    def is_closing(self) -> bool:
        """Whether no more is answered."""
        return self._ending or self._transport.is_closing()

    def close(self) -> None:
        """Ends what is written now, and what is read a little later."""
        if self.is_closing():
            return
        if not self._conn.is_sending:
            self._transport.close()
            return
        self._ending = True
        self._transport.write_eof()
        self._transport.resume_reading()
        self._loop.call_later(LINGER_SECONDS, self._transport.abort)

    def cut(self) -> None:
        """Ends an answer in its midst, so that its client sees that it is not whole.

        In HTTP/1.0 the end of the connection is that of an answer without a length; so it is reset.
        """
        if self.is_closing():
            return
        if self._conn.their_http_version == b"1.0":
            sock: socket.socket = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._transport.abort()
