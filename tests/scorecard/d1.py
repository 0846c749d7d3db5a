"""D1: whoever leaves frees the place, wherever the request was, and costs no more than two steps.

A text is left in the queue, in its prompt, in its stream, and while its plain answer is computed;
politely (FIN) and not (RST).
"""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path

from figure import Conditions, Figure
from http_clients import Client
from served import Served, served
from slow_model import Steps, slowed
from tiny_server import is_golden, tiny_folder

import pocketlm
from pocketlm.runtime.server.models.engine import Engine

COUNT = 200
MOST_SECONDS, MOST_STEPS = 1.0, 2
STEPS = Steps(seconds=0.004, prompt_seconds=0.03)
PLACES = ("stream", "plain", "queued", "prompt")


def measure(conditions: Conditions) -> Figure:
    """Of every kind as many; then whether nothing of them is left."""
    figure = Figure("s", MOST_SECONDS)
    random = conditions.random
    seconds: list[float] = []
    most_steps = 0
    path = tiny_folder().path
    opened = {"tiny": lambda: slowed(pocketlm.load(path, threads=1), STEPS)}
    with served(opened, parallel=1, most_waiting=4) as server:
        assert is_golden(server)
        engine = server.service.pool.served["tiny"].engine
        assert engine is not None
        before = _held_by_us()
        kinds = itertools.cycle(itertools.product(PLACES, (False, True)))
        for number, (place, reset) in zip(range(conditions.count(COUNT, 16)), kinds, strict=False):
            wait = random.uniform(0, 0.02)
            took, steps = _left(server, engine, place, reset, wait, number)
            seconds.append(took)
            most_steps = max(most_steps, steps)
            name = f"{number}-{place}-{'rst' if reset else 'fin'}"
            told = f"left after {wait:.4f} s: {took:.3f} s and {steps} steps to be free"
            right = took <= MOST_SECONDS and steps <= MOST_STEPS
            figure.check(right, conditions, name, told, timed=steps <= MOST_STEPS)
        figure.check(is_golden(server), conditions, "golden", "another text than before")
        until = time.monotonic() + 5
        while _grew(before, now := _held_by_us()) and time.monotonic() < until:
            time.sleep(0.05)
        figure.check(not _grew(before, now), conditions, "held", f"{before} before, {now} after")
    figure.worst = round(sorted(seconds)[int(0.99 * (len(seconds) - 1))], 3)
    figure.notes = {"steps": most_steps, "files_and_threads": now}
    return figure


def _left(
    server: Served, engine: Engine, place: str, reset: bool, wait: float, number: int
) -> tuple[float, int]:
    """Seconds until the place was free, and the steps that were computed for nobody."""
    asked = {"max_tokens": 100, "ignore_eos": True, "temperature": 0, "stream": place == "stream"}
    prompt = f"{number}: " if place != "prompt" else f"{number}: " + "long " * 25
    others: list[Client] = []
    if place == "queued":
        others.append(Client(server.port).ask(prompt="before", **(asked | {"stream": True})))
        others[0].event()
    held = len(others)
    leaving = Client(server.port).ask(prompt=prompt, **asked)
    if place == "stream":
        for _ in range(3):
            leaving.event()
    until = time.monotonic() + 5
    while engine.num_held == held and time.monotonic() < until:
        time.sleep(0.001)
    time.sleep(wait)
    steps_before = STEPS.count
    started = time.perf_counter()
    leaving.leave(reset)
    while engine.num_held > held and time.perf_counter() - started < 10:
        time.sleep(0.0005)
    took = time.perf_counter() - started
    time.sleep(0.02)
    # Beside another's nobody knows for whom they are.
    steps = 0 if others else STEPS.count - steps_before
    for other in others:
        other.leave()
    while engine.num_held and time.perf_counter() - started < 10:
        time.sleep(0.0005)
    return took, steps


def _grew(before: tuple[int, int], now: tuple[int, int]) -> bool:
    return any(count > first for first, count in zip(before, now, strict=True))


def _held_by_us() -> tuple[int, int]:
    """Descriptors and threads of this process."""
    return len(os.listdir("/proc/self/fd")), len(list(Path("/proc/self/task").iterdir()))
