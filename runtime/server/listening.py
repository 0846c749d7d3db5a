"""A socket, uvicorn on it, and how both end."""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from types import FrameType
from typing import Any, cast

import uvicorn

from .app import make_app
from .connection import Connection
from .exposure import check_exposure
from .log import quiet_others
from .service import Service
from .settings import Settings

KEEP_ALIVE_SECONDS = 75


class Server(uvicorn.Server):
    """Answers on ``listener`` from ``run`` on, until ``stop``, SIGINT or SIGTERM.

    address     what a client connects to: (host, port)
    """

    def __init__(self, service: Service, listener: socket.socket) -> None:
        quiet_others()
        self._service = service
        self._listener = listener
        self.address: tuple[str, int] = listener.getsockname()[:2]
        config = uvicorn.Config(
            make_app(service),
            http=cast(Any, partial(Connection, service)),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=int(service.settings.grace_seconds),
        )
        super().__init__(config)

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Returns when all has ended: what is under way has the grace time of the settings."""
        asyncio.run(self.serve([self._listener]))

    def stop(self) -> None:
        """From any thread: lets what is under way end, and then ``run`` return."""
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal is ``stop``, the second ends at once."""
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's, with the models closed at its end."""
        host, port = self.address
        asyncio.get_running_loop().set_exception_handler(self._service.log.from_loop)
        self._service.log.event("listening", url=f"http://{host}:{port}")
        try:
            await super().serve(sockets)
        finally:
            self._service.close()


def bound(settings: Settings) -> socket.socket:
    """A socket that listens there; OSError where it cannot be had.

    Raises RequestError where that would let in more than was meant.
    """
    check_exposure(settings)
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # With its protocol: only then does asyncio send what is small at once (TCP_NODELAY).
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((settings.host, settings.port))
        found.listen(2048)
    except OSError:
        found.close()
        raise
    return found
