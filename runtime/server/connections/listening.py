"""A socket, uvicorn on it, and how both end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from functools import partial
from types import FrameType
from typing import Any, cast

import h11
import uvicorn

from ..app import make_app
from ..log import quiet_others
from ..service import Service
from ..settings import Settings
from .connection import Connection
from .exposure import check_exposure
from .hosts import family_of, in_url

KEEP_ALIVE_SECONDS = 75
MOST_PENDING = 2048  # connections that wait to be accepted
AT_ONCE = 4  # that are accepted before any of them is looked at, and too many are ended
SEND_BUFFER_BYTES = 131_072  # of a connection, in the system, whose own choice is megabytes
DATE_SECONDS = 1.0
LAST_WORDS_SECONDS = 0.5  # that answers have to say that they end early
POLLING_SECONDS = 0.02
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # and where this machine reaches it


class Server(uvicorn.Server):
    """Answers on ``listener`` from ``run`` on, until ``stop``, SIGINT or SIGTERM.

    Then nothing new is taken, and what is under way has the grace time of the settings to end; it
    ends with an error after that, and at once with a second signal.

    address     what a client connects to: (host, port)
    """

    def __init__(self, service: Service, listener: socket.socket) -> None:
        quiet_others()
        listener.listen(MOST_PENDING)
        self._service = service
        self._listener = listener
        self._guard = make_app(service)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = asyncio.Event()
        self.address: tuple[str, int] = listener.getsockname()[:2]
        config = uvicorn.Config(
            self._guard,
            http=cast(Any, partial(Connection, service)),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=AT_ONCE,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
        )
        super().__init__(config)

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Returns when all has ended, but for threads that open a model or prepare a request.

        Those would keep ``asyncio.run`` waiting, for minutes.
        """
        with self.capture_signals():
            self._loop = asyncio.new_event_loop()
            try:
                self._loop.run_until_complete(self.serve([self._listener]))
            finally:
                self._loop.close()
                self._service.log.close()

    def stop(self) -> None:
        """From any thread or signal: lets what is under way end, and then ``run`` return."""
        self.should_exit = self._guard.draining = True
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._stopped.set)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal is ``stop``, the second ends at once."""
        self.force_exit = self.should_exit
        self.stop()

    @property
    def url(self) -> str:
        """What a browser on this machine opens."""
        host, port = self.address
        return f"http://{in_url(ANY_ADDRESS.get(host, host))}:{port}"

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's, without signals, and with the models closed at its end."""
        asyncio.get_running_loop().set_exception_handler(self._service.log.from_loop)
        self._service.log.event("listening", url=self.url)
        self._service.pool.start()
        try:
            await self._serve(sockets)
        finally:
            self._service.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's, where more may wait than are accepted at once."""
        await super().startup(sockets)
        self._listener.listen(MOST_PENDING)

    async def main_loop(self) -> None:
        """uvicorn's, which is told of the end: all it has to do is the Date of answers."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), DATE_SECONDS)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's, where what outlives the grace time says so to its client."""
        with contextlib.suppress(NotImplementedError):  # as on Windows
            asyncio.get_running_loop().remove_reader(self._listener)
        await asyncio.sleep(0)  # who was let in joins first: a closed server forgets about that
        for server in self.servers:
            server.close()
        grace = self._service.settings.grace_seconds
        if not await self._all_ended(grace, unless_forced=True):
            for task in list(self.server_state.tasks):
                task.cancel()
            await self._all_ended(LAST_WORDS_SECONDS)
            for connection in list(self.server_state.connections):
                connection.transport.abort()
            await self._all_ended(LAST_WORDS_SECONDS)

    async def _all_ended(self, seconds: float, *, unless_forced: bool = False) -> bool:
        """Whether all answers and connections end within so many seconds."""
        until = time.monotonic() + seconds
        while self.server_state.tasks or self.server_state.connections:
            if time.monotonic() > until or (unless_forced and self.force_exit):
                return False
            for connection in list(self.server_state.connections):
                with contextlib.suppress(h11.LocalProtocolError):  # it is ending already
                    connection.shutdown()  # once it has answered
            await asyncio.sleep(POLLING_SECONDS)
        return True


def bound(settings: Settings) -> socket.socket:
    """A socket that may listen there, and does not yet; OSError where it cannot be had.

    Raises RequestError where that would let in more than was meant.
    """
    check_exposure(settings)
    # With its protocol: only then does asyncio send what is small at once (TCP_NODELAY).
    found = socket.socket(family_of(settings.host), socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        found.bind((settings.host, settings.port))
    except OSError:
        found.close()
        raise
    return found
