"""A client that sends a byte now and then, until it is cut off."""

from __future__ import annotations

import socket
import time

from raw_http import parse


class Slow:
    """Sends ``first`` at once, and then ``drop`` whenever it may go on.

    seconds     how long it was there
    done        whether the server ended it
    """

    def __init__(self, port: int, name: str, first: bytes, drop: bytes, most: float) -> None:
        self.name = name
        self.seconds = 0.0
        self.done = False
        self._drop = drop
        self._most = most
        self._got = b""
        self._started = time.perf_counter()
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=most)
        self._socket.sendall(first)
        self._socket.setblocking(False)

    @property
    def status(self) -> int | None:
        """Of what it was answered; None for nothing."""
        answers = parse(self._got)
        return answers[0].status if answers else None

    def go_on(self) -> None:
        """Sends, and looks whether it is still there."""
        if self.done:
            return
        self.seconds = time.perf_counter() - self._started
        try:
            if self._drop:
                self._socket.send(self._drop)
            while data := self._socket.recv(1 << 16):
                self._got += data
            self.done = True
        except BlockingIOError:
            pass
        except OSError:
            self.done = True

    def close(self) -> None:
        """Leaves."""
        self._socket.close()
