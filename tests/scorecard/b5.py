"""B5: 200 clients that send a byte every five seconds harm nobody, and are cut off in time."""

from __future__ import annotations

import itertools
import threading
import time

import numpy as np
from figure import Conditions, Figure
from raw_http import post, request
from served import Served
from slow import Slow
from tiny_server import MARKER, is_golden, tiny_server

MOST_RATIO = 2.0
LATE_SECONDS = 5.0
GOOD_CLIENTS = 4
# Of a full run, and of a quick one: the deadlines are shorter there, and so is the rest.
FULL = {"clients": 200, "every": 5.0, "alone": 10.0, "crowded": 40.0}
QUICK = {"clients": 40, "every": 0.5, "alone": 2.0, "crowded": 6.0}
QUICK_SETTINGS = {"header_seconds": 1.5, "body_seconds": 2.5}


def measure(conditions: Conditions) -> Figure:
    """``worst`` is the p95 of good clients beside the slow ones over theirs alone."""
    figure = Figure("ratio of p95", MOST_RATIO)
    plan = QUICK if conditions.quick else FULL
    settings = QUICK_SETTINGS if conditions.quick else {}
    with tiny_server(**settings) as server:
        _good_clients(server, 1.0, figure, conditions)  # warm-up
        before = _good_clients(server, plan["alone"], figure, conditions)
        crowd = Crowd(server, int(plan["clients"]), plan["every"])
        crowd.start()
        beside = _good_clients(server, plan["crowded"], figure, conditions)
        crowd.leave()
        after = _good_clients(server, plan["alone"], figure, conditions)
        crowd.check(figure, conditions)
        figure.check(is_golden(server), conditions, "golden", "another text than before")
    alone = float(np.percentile(before + after, 95))
    crowded = float(np.percentile(beside, 95))
    figure.worst = round(crowded / alone, 3)
    figure.notes |= {
        "p95_alone_ms": round(1000 * alone, 1),
        "p95_beside_ms": round(1000 * crowded, 1),
        "requests": len(beside),
        "cut_off": crowd.num_ended,
    }
    return figure


def _good_clients(
    server: Served, seconds: float, figure: Figure, conditions: Conditions
) -> list[float]:
    """The seconds that each of their requests took; all of them have to succeed."""
    taken: list[float] = []
    failed: list[str] = []
    until = time.perf_counter() + seconds

    def ask() -> None:
        while time.perf_counter() < until:
            started = time.perf_counter()
            try:
                status, found = server.post("/v1/completions", {"prompt": "a", "max_tokens": 8})
                if status != 200:
                    failed.append(str(found))
            except OSError as error:
                failed.append(repr(error))
            taken.append(time.perf_counter() - started)

    threads = [threading.Thread(target=ask) for _ in range(GOOD_CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    figure.check(not failed and len(taken) > 0, conditions, "good-clients", "\n".join(failed[:9]))
    return taken


class Crowd(threading.Thread):
    """Slow clients, each replaced when it is cut off.

    num_ended   those that were
    """

    def __init__(self, server: Served, count: int, every: float) -> None:
        super().__init__(daemon=True)
        self.num_ended = 0
        self._server = server
        self._every = every
        self._leaving = threading.Event()
        self._late: list[str] = []
        self._ended_of: dict[str, int] = {}
        kinds = itertools.cycle(["nothing", "line", "header", "after-one", "body", "chunks"])
        self._kinds = list(itertools.islice(kinds, count))

    def run(self) -> None:
        """Until it is told to leave."""
        clients = [self._new(kind) for kind in self._kinds]
        turns = itertools.count()
        while not self._leaving.wait(self._every / 20):
            turn = next(turns) % 20
            for place in range(turn, len(clients), 20):  # a twentieth of them each time
                client = clients[place]
                client.go_on()
                if client.done:
                    self._note(client)
                    client.close()
                    clients[place] = self._new(client.name)
        for client in clients:
            self._note_late(client)
            client.close()

    def leave(self) -> None:
        """Waits until all are gone."""
        self._leaving.set()
        self.join(30)

    def check(self, figure: Figure, conditions: Conditions) -> None:
        """Whether some of each kind were cut off, all in time."""
        figure.check(not self._late, conditions, "late", "\n".join(self._late[:20]), timed=True)
        for kind in set(self._kinds):
            ended = self._ended_of.get(kind, 0)
            figure.check(ended > 0, conditions, f"slow-{kind}", "none was cut off")

    def _note(self, client: Slow) -> None:
        self.num_ended += 1
        self._ended_of[client.name] = self._ended_of.get(client.name, 0) + 1
        self._note_late(client)

    def _note_late(self, client: Slow) -> None:
        settings = self._server.service.settings
        in_body = client.name in ("body", "chunks")
        deadline = settings.body_seconds if in_body else settings.header_seconds
        # What a slow client sees of its end, it sees at its next turn.
        if client.seconds > deadline + LATE_SECONDS + self._every:
            self._late.append(f"{client.name}: after {client.seconds:.1f} s")

    def _new(self, kind: str) -> Slow:
        host = f"127.0.0.1:{self._server.port}"
        head = post("/v1/completions", {"prompt": MARKER}, host)
        chunks = ["Content-Type: application/json", "Transfer-Encoding: chunked"]
        first, drop = {
            "nothing": (b"", b""),
            "line": (b"GET /", b"a"),
            "header": (head[: head.index(b"Content")] + b"X-A: ", b"a"),
            "after-one": (request("GET", "/health", host=host) + b"GET /", b"a"),
            "body": (head[:-1], b""),
            "chunks": (request("POST", "/v1/completions", chunks, host=host), b"1\r\n \r\n"),
        }[kind]
        return Slow(self._server.port, kind, first, drop, 30.0)
