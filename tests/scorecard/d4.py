"""D4: clients of every kind for minutes: no error, nothing that grows, and no long waits.

Of the requests 15 % are left in their stream and 10 % are bad; the others get the text that their
prompt always gets.
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from http.client import HTTPException
from typing import Any

from figure import Conditions, Figure
from http_clients import Client, text_of
from serve_process import Process, serve_process
from tiny_server import tiny_folder

SECONDS, QUICK_SECONDS = 300.0, 45.0
SETTLED_SECONDS, QUICK_SETTLED_SECONDS = 60.0, 25.0  # after which nothing may grow
NUM_CLIENTS = 8
LEFT, BAD = 0.15, 0.10
MOST_RATIO = 3.0  # of the slowest first tokens (p99) to the median
MOST_BYTES_PER_MINUTE = 1_000_000
STEPS = {"seconds": 0.01, "prompt_seconds": 0.004}
TEXT = {"temperature": 0, "ignore_eos": True, "stream": True}
BROKEN: list[dict[str, Any]] = [
    {"prompt": "a", "temperature": "hot"},
    {"prompt": "a", "nonsense": 1},
    {"prompt": "a", "max_tokens": -1},
    {"prompt": "a " * 2000},
    {"prompt": "a", "model": "other"},
]


class Asking:
    """A client that asks until ``until``; ``firsts`` are seconds to first tokens."""

    def __init__(self, port: int, seed: int, until: float, texts: dict[str, str]) -> None:
        self.firsts: list[float] = []
        self.count = 0
        self.wrong: list[str] = []
        self._port = port
        self._random = random.Random(seed)
        self._until = until
        self._texts = texts

    def run(self) -> None:
        """All of them, each over a connection of its own."""
        while time.monotonic() < self._until:
            self.count += 1
            try:
                self._ask(self._random.random())
            except (OSError, HTTPException, ValueError) as error:
                self.wrong.append(repr(error))

    def _ask(self, kind: float) -> None:
        with Client(self._port) as client:
            if kind < BAD:
                status = client.ask(**self._random.choice(BROKEN)).status
                if status not in (400, 404):
                    self.wrong.append(f"a bad request was answered {status}")
                return
            prompt = self._random.choice([*self._texts])
            started = time.perf_counter()
            client.ask(prompt=prompt, max_tokens=30, **TEXT)
            events = [client.event()]
            self.firsts.append(time.perf_counter() - started)
            if kind < BAD + LEFT:
                for _ in range(self._random.randrange(10)):
                    client.event()
                client.leave(reset=self._random.random() < 0.5)
                return
            events += client.events()
            if events[-1] != "[DONE]" or text_of(events[:-1]) != self._texts[prompt]:
                self.wrong.append(f"{prompt!r} was answered {events[-2:]!r:.300}")


def measure(conditions: Conditions) -> Figure:
    """Eight of them at once; what the server holds is looked at every second."""
    figure = Figure("p99/p50", MOST_RATIO)
    seconds = QUICK_SECONDS if conditions.quick else SECONDS
    settled = QUICK_SETTLED_SECONDS if conditions.quick else SETTLED_SECONDS
    with serve_process(tiny_folder().path, steps=STEPS) as server:
        texts = {prompt: _text(server, prompt) for prompt in ("a", "Ducks", "Once upon", "x y z")}
        held = server.num_files
        started = time.monotonic()
        everyone = [
            Asking(server.port, conditions.seed + place, started + seconds, texts)
            for place in range(NUM_CLIENTS)
        ]
        threads = [threading.Thread(target=asking.run) for asking in everyone]
        for thread in threads:
            thread.start()
        sizes: list[tuple[float, int]] = []
        num_threads: list[int] = []
        while any(thread.is_alive() for thread in threads):
            now = time.monotonic() - started
            if settled < now < seconds:
                sizes.append((now / 60, server.rss_bytes))
                num_threads.append(server.num_threads)
            time.sleep(1)
        growth = statistics.linear_regression(*zip(*sizes, strict=True)).slope
        wrong = [told for asking in everyone for told in asking.wrong]
        figure.ok = sum(asking.count for asking in everyone) - len(wrong)
        for number, told in enumerate(wrong):
            figure.check(False, conditions, f"wrong-{number}", told)
        grows = f"{growth:,.0f} bytes a minute"
        minutes = (seconds - settled) / 60  # of a part of one nobody can tell
        right = growth * minutes <= MOST_BYTES_PER_MINUTE * max(1.0, minutes)
        figure.check(right, conditions, "memory", grows)
        time.sleep(0.5)
        left = f"{held} files before, {server.num_files} after"
        figure.check(server.num_files <= held, conditions, "files", left)
        # Under load there are all that there ever should be.
        left = f"{num_threads} threads under load, {server.num_threads} after"
        right = max(*num_threads, server.num_threads) <= num_threads[0]
        figure.check(right, conditions, "threads", left)
        golden = all(_text(server, prompt) == text for prompt, text in texts.items())
        figure.check(golden, conditions, "golden", "another text than before")
        server.signal()
        figure.check(server.ended() == 0, conditions, "end", "\n".join(server.lines[-50:]))
    firsts = sorted(first for asking in everyone for first in asking.firsts)
    median, slowest = firsts[len(firsts) // 2], firsts[int(0.99 * len(firsts))]
    figure.worst = round(slowest / median, 2)
    figure.notes = {
        "bytes_per_minute": round(growth),
        "first_ms": [round(1000 * median, 1), round(1000 * slowest, 1)],
    }
    return figure


def _text(server: Process, prompt: str) -> str:
    with Client(server.port) as client:
        return text_of(client.ask(prompt=prompt, max_tokens=30, **TEXT).events()[:-1])
