"""D3: more than there is room for is refused at once, and what is taken is answered rightly.

And nobody waits for one body, however large.
"""

from __future__ import annotations

import select
import socket
import time
from dataclasses import dataclass, field

from figure import Conditions, Figure
from http_clients import COMPLETIONS
from large_bodies import large_bodies
from pauses import longest_pause
from raw_http import Answer, parse, post
from serve_process import serve_process
from tiny_server import tiny_folder

import pocketlm

ROUNDS = 10
NUM_CLIENTS, PARALLEL, QUEUE = 64, 2, 16
MOST_MILLISECONDS = 100.0
TRIES = 3  # a pause of others is not ours
RETRY_SECONDS = range(1, 6)
ASKED = {"max_tokens": 12, "ignore_eos": True, "temperature": 0}


@dataclass
class Asked:
    """A request, and its answer as it comes."""

    prompt: str
    socket: socket.socket
    started: float = 0.0
    milliseconds: float = 0.0
    data: bytearray = field(default_factory=bytearray)

    @property
    def answer(self) -> Answer:
        """What came."""
        (answer,) = parse(bytes(self.data))
        return answer


def measure(conditions: Conditions) -> Figure:
    """Rounds of 64 at once, on a model that computes meanwhile."""
    figure = Figure("ms", MOST_MILLISECONDS)
    path = tiny_folder().path
    settings = {"parallel": PARALLEL, "most_waiting": QUEUE}
    steps = {"seconds": 0.005, "busily": True}
    refusals: list[float] = []
    with (
        pocketlm.load(path, threads=1) as model,
        serve_process(path, settings=settings, steps=steps) as server,
    ):
        _all_at_once(server.port, ["first"])
        for number in range(conditions.count(ROUNDS, 2)):
            prompts = [f"{number}, {place}: " for place in range(NUM_CLIENTS)]
            found = _all_at_once(server.port, prompts)
            taken = 0
            for asked in found:
                answer = asked.answer
                name = f"{number}-{asked.prompt.strip(': ')}"
                told = f"{asked.prompt!r}: {answer.status} {answer.body[:200]!r}"
                if answer.status == 200:
                    taken += 1
                    text = model.submit(asked.prompt, **ASKED).result().text
                    right = answer.json["choices"][0]["text"] == text
                else:
                    refusals.append(asked.milliseconds)
                    waits = [int(seconds) for seconds in answer.values("retry-after")]
                    told_when = len(waits) == 1 and waits[0] in RETRY_SECONDS
                    right = answer.status in (429, 503) and told_when
                figure.check(right, conditions, name, told)
            # All at once: the first have not ended before the last is refused.
            few = f"{taken} were taken"
            right = PARALLEL + QUEUE <= taken <= PARALLEL + QUEUE + 4
            figure.check(right, conditions, f"{number}-taken", few)
            (again,) = _all_at_once(server.port, ["again"])  # it recovers
            figure.check(again.answer.status == 200, conditions, f"{number}-again", "refused")
        server.signal()
        figure.check(server.ended() == 0, conditions, "end", "\n".join(server.lines))
    pause = _among_large_bodies(figure, conditions)
    refusals.sort()
    figure.worst = round(refusals[int(0.99 * (len(refusals) - 1))], 1)
    median = round(refusals[len(refusals) // 2], 1)
    figure.notes = {"refused": len(refusals), "median": median, "pause": pause}
    return figure


def _among_large_bodies(figure: Figure, conditions: Conditions) -> float:
    """The longest time, in ms, that others waited while one body was answered, or refused."""
    bodies, worst = large_bodies(), 0.0
    chosen = conditions.random.sample(sorted(bodies), conditions.count(len(bodies), 3))
    with serve_process(tiny_folder().path) as server:
        _all_at_once(server.port, ["first"])
        for name in chosen:
            path, body = bodies[name]
            sent = post(path, body, f"127.0.0.1:{server.port}", ["Connection: close"])
            best, head = float("inf"), b""
            for _ in range(TRIES):
                seconds, head = longest_pause(server.port, sent, server.process.pid)
                best = min(best, 1000 * seconds)
                if best <= MOST_MILLISECONDS:
                    break
            worst = max(worst, round(best, 1))
            told = f"POST {path} of {len(body):,} bytes ({name}): {head[:300]!r}, {best:.0f} ms"
            is_answered = head.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 400 "))
            figure.check(is_answered, conditions, f"{name}-answer", told)
            figure.check(best <= MOST_MILLISECONDS, conditions, name, told, timed=True)
    return worst


def _all_at_once(port: int, prompts: list[str]) -> list[Asked]:
    """They connect, and ask then, one right after the other."""
    everyone = [Asked(prompt, socket.create_connection(("127.0.0.1", port))) for prompt in prompts]
    poll = select.poll()
    for asked in everyone:
        poll.register(asked.socket, select.POLLIN)
    for asked in everyone:
        body = {"prompt": asked.prompt, **ASKED}
        sent = post(COMPLETIONS, body, f"127.0.0.1:{port}", ["Connection: close"])
        asked.started = time.perf_counter()
        asked.socket.sendall(sent)
    under_way = {asked.socket.fileno(): asked for asked in everyone}
    while under_way:
        for number, _ in poll.poll():
            asked = under_way[number]
            data = asked.socket.recv(1 << 16)
            if not asked.data:
                asked.milliseconds = 1000 * (time.perf_counter() - asked.started)
            asked.data += data
            if not data:
                poll.unregister(number)
                under_way.pop(number).socket.close()
    return everyone
