"""Clients of a server that cost as little as they can: sockets that count events.

Runs as a program of its own, for the server and they share the processor: each line on stdin is a
JSON object with "port", "bodies" (a request of each client) and "wait" (after the first event of
all but the last, the last begins); the line that answers has of each client, in seconds since it
asked, when its first event came and when its last did.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from collections.abc import Sequence

FIRST, LAST = b"data: ", b"data: [DONE]"


class Client:
    """One request and its stream of events."""

    def __init__(self, port: int, body: bytes) -> None:
        head = (
            "POST /v1/completions HTTP/1.1\r\n"
            f"Host: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
            f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self.first = self.last = 0.0
        self.socket = socket.create_connection(("127.0.0.1", port))
        self._tail = b""
        self.started = time.perf_counter()
        self.socket.sendall(head.encode() + body)

    def read(self) -> bool:
        """Takes what is there; whether more comes."""
        data = self.socket.recv(1 << 16)
        found = self._tail + data
        self._tail = found[-len(LAST) :]
        now = time.perf_counter() - self.started
        if not self.first and FIRST in found:
            self.first = now
        if LAST in found:
            self.last = now
        if not data:
            self.socket.close()
        return bool(data)


def run(port: int, bodies: Sequence[bytes], wait: bool) -> list[tuple[float, float]]:
    """(first, last) of each; with ``wait`` the last begins when all others have a first event."""
    poll = select.poll()
    clients: list[Client] = []
    under_way: dict[int, Client] = {}

    def begin(body: bytes) -> None:
        client = Client(port, body)
        clients.append(client)
        under_way[client.socket.fileno()] = client
        poll.register(client.socket, select.POLLIN)

    for body in bodies[:-1] if wait else bodies:
        begin(body)
    while under_way:
        if wait and len(clients) < len(bodies) and all(client.first for client in clients):
            begin(bodies[-1])
        for number, _ in poll.poll():
            if not under_way[number].read():
                poll.unregister(number)
                del under_way[number]
    return [(client.first, client.last) for client in clients]


def main() -> None:
    """Answers line by line until stdin ends."""
    for line in sys.stdin:
        asked = json.loads(line)
        bodies = [json.dumps(body).encode() for body in asked["bodies"]]
        print(json.dumps(run(asked["port"], bodies, asked["wait"])), flush=True)


if __name__ == "__main__":
    main()
