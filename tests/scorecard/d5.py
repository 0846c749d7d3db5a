"""D5: told to end, the server does so whatever it is at: nothing new, a proper end for the rest."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

from figure import Conditions, Figure
from http_clients import COMPLETIONS, Client
from raw_http import post
from serve_process import Process, is_free, serve_process
from tiny_server import tiny_folder

from pocketlm.export.interrupts import INTERRUPTED

SIGNALS = (signal.SIGTERM, signal.SIGINT)
GRACE_SECONDS, MORE_SECONDS = 1.0, 2.0
REFUSED_MILLISECONDS = 200.0
EARLY_SECONDS = (0.1, 0.3, 0.5, 0.8)  # after the start: it imports, opens its port, listens
TOGETHER = 2  # servers at once
TEXT = {"prompt": "a", "ignore_eos": True, "temperature": 0}
SHORT, LONG = TEXT | {"max_tokens": 10}, TEXT | {"max_tokens": 140}  # 0.2 and 2.8 seconds

Ends = Callable[[], str]  # what is wrong with how a client's answer ended, or nothing


@dataclass(frozen=True)
class State:
    """What a server is at when it is told to end: ``begin`` brings it there.

    told    what ``serve_process`` takes beside the usual
    again   whether a second signal follows
    """

    begin: Callable[[Process], list[Ends]]
    told: dict[str, Any]
    again: bool = False


def _stream(server: Process, events: int = 2, **asked: Any) -> Client:
    client = Client(server.port).ask(stream=True, **(LONG | asked))
    for _ in range(events):
        client.event()
    return client


def _ends_well(client: Client, whole: bool | None = None) -> Ends:
    """A stream, to the end of its answer: ``whole``, or with an error event; None: either."""

    def ends() -> str:
        events = client.events()  # raises where the answer is cut
        last = events[-1] if events else None
        error = isinstance(last, dict) and "error" in last
        done = last == "[DONE]"
        right = done or error if whole is None else done if whole else error
        return "" if right else f"the stream ended with {last!r:.200}"

    return ends


def _answered(client: Client, *statuses: int) -> Ends:
    """A plain answer: whole."""

    def ends() -> str:
        body = client.whole()
        good = client.status in statuses and ("choices" in body or "error" in body)
        return "" if good else f"answered {client.status} {body!r:.200}"

    return ends


def _idle(server: Process) -> list[Ends]:
    return []


def _kept(server: Process) -> list[Ends]:
    client = Client(server.port).ask(**SHORT)
    client.whole()

    def ends() -> str:
        """Another request is refused, or the connection has ended."""
        with contextlib.suppress(OSError, HTTPException):
            second = client.socket
            second.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % server.port)
            data = second.recv(1000)
            return "" if not data or b" 503 " in data else f"a kept connection got {data!r}"
        return ""

    return [ends]


def _short_stream(server: Process) -> list[Ends]:
    return [_ends_well(_stream(server, max_tokens=20), whole=True)]


def _long_stream(server: Process) -> list[Ends]:
    return [_ends_well(_stream(server), whole=False)]


def _several_texts(server: Process) -> list[Ends]:
    return [_ends_well(_stream(server, n=3), whole=False)]


def _several_clients(server: Process) -> list[Ends]:
    return [_ends_well(_stream(server, max_tokens=20 + 60 * place)) for place in range(3)]


def _prompt(server: Process) -> list[Ends]:
    client = Client(server.port).ask(**(SHORT | {"prompt": "long " * 25, "stream": True}))
    time.sleep(0.1)
    return [_ends_well(client)]


def _queued(server: Process) -> list[Ends]:
    first = _stream(server)
    second = Client(server.port).ask(**SHORT)
    time.sleep(0.05)
    return [_ends_well(first, whole=False), _answered(second, 200, 503)]


def _plain(server: Process) -> list[Ends]:
    clients = [Client(server.port).ask(**asked) for asked in (SHORT, LONG)]
    time.sleep(0.1)
    return [_answered(clients[0], 200), _answered(clients[1], 503)]


def _not_reading(server: Process) -> list[Ends]:
    client = Client(server.port, receive_bytes=4096).ask(
        stream=True, logprobs=100, **(LONG | {"n": 4})
    )
    time.sleep(2.0)
    return [lambda: client.leave() or ""]  # type: ignore[func-returns-value]


def _body(server: Process) -> list[Ends]:
    client = Client(server.port)
    client.socket.sendall(post(COMPLETIONS, SHORT, f"127.0.0.1:{server.port}")[:-10])
    time.sleep(0.1)

    def ends() -> str:
        """The rest never comes."""
        data = client.socket.recv(1000)
        return "" if data.startswith(b"HTTP/1.1 503 ") else f"half a body got {data!r}"

    return [ends]


def _half_head(server: Process) -> list[Ends]:
    client = Client(server.port)
    client.socket.sendall(b"GET /health HT")
    time.sleep(0.1)

    def ends() -> str:
        with contextlib.suppress(OSError):
            data = client.socket.recv(1000)
            return "" if not data or b" 503 " in data else f"half a head got {data!r}"
        return ""

    return [ends]


def _waiting(server: Process) -> list[Ends]:
    """For what takes longer than the server has."""
    client = Client(server.port).ask(**SHORT)
    time.sleep(0.2)
    return [_answered(client, 503)]


STEPS = {"steps": {"seconds": 0.02, "prompt_seconds": 0.4}}
SLOWLY = 30.0
STATES = {
    "idle": State(_idle, STEPS),
    "kept": State(_kept, STEPS),
    "short-stream": State(_short_stream, STEPS),
    "long-stream": State(_long_stream, STEPS),
    "several-texts": State(_several_texts, STEPS),
    "several-clients": State(_several_clients, STEPS),
    "prompt": State(_prompt, STEPS),
    "queued": State(_queued, STEPS | {"settings": {"parallel": 1}}),
    "plain": State(_plain, STEPS),
    "not-reading": State(_not_reading, STEPS),
    "body": State(_body, STEPS),
    "half-head": State(_half_head, STEPS),
    "opening": State(_waiting, {"opening_seconds": SLOWLY}),
    "preparing": State(_waiting, {"preparing_seconds": SLOWLY}),
    "second-signal": State(_long_stream, STEPS | {"settings": {"grace_seconds": 60.0}}, again=True),
}


def measure(conditions: Conditions) -> Figure:
    """Every state with both signals, and signals before the server listens."""
    figure = Figure("ms", REFUSED_MILLISECONDS)
    cases = [(name, number) for name in STATES for number in SIGNALS]
    early = [(number, seconds) for number in SIGNALS for seconds in EARLY_SECONDS]
    if conditions.quick:
        cases = conditions.random.sample(cases, 6)
        early = early[-1:]
    with ThreadPoolExecutor(TOGETHER) as threads:
        tried = [
            (f"{name}-{number.name}", threads.submit(_try, STATES[name], number))
            for name, number in cases
        ]
        tried += [
            (f"early-{number.name}-{seconds}", threads.submit(_try_early, number, seconds))
            for number, seconds in early
        ]
    for name, outcome in tried:
        wrong, milliseconds = outcome.result()
        figure.worst = max(figure.worst, round(milliseconds, 1))
        right = not wrong and milliseconds <= REFUSED_MILLISECONDS
        told = "\n".join([*wrong, f"{milliseconds:.0f} ms"])
        figure.check(right, conditions, name, told, timed=not wrong)
    return figure


def _try(state: State, number: signal.Signals) -> tuple[list[str], float]:
    """What was wrong, and the milliseconds until nobody new was let in."""
    settings = {"grace_seconds": GRACE_SECONDS} | state.told.get("settings", {})
    grace = settings["grace_seconds"]
    with serve_process(tiny_folder().path, **(state.told | {"settings": settings})) as server:
        if not state.told.get("opening_seconds") and not state.told.get("preparing_seconds"):
            with Client(server.port) as first:
                first.ask(**(SHORT | {"max_tokens": 1})).whole()
        ends = state.begin(server)
        started = time.monotonic()
        server.signal(number)
        milliseconds = _until_refused(server.port)
        if state.again:
            server.signal(number)
            grace = 0.0
        wrong = list(_outcomes(ends))
        try:
            code = server.ended(grace + MORE_SECONDS + 10)
        except TimeoutError:
            return [*wrong, "it did not end"], milliseconds
        seconds = time.monotonic() - started
        if code != 0:
            wrong.append(f"exit code {code}")
        if seconds > grace + MORE_SECONDS:
            wrong.append(f"it took {seconds:.1f} s to end")
        if not is_free(server.port):
            wrong.append("the port is still taken")
        wrong += [f"stderr: {line}" for line in server.lines if not line.startswith("{")]
    return wrong, milliseconds


def _until_refused(port: int) -> float:
    started = time.monotonic()
    while time.monotonic() - started < 5:
        with socket.socket() as asking:
            if asking.connect_ex(("127.0.0.1", port)):
                break
            with contextlib.suppress(OSError):
                asking.settimeout(5)
                asking.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % port)
                if b" 503 " in asking.recv(1000):
                    break
        time.sleep(0.005)
    return 1000 * (time.monotonic() - started)


def _outcomes(ends: list[Ends]) -> Iterator[str]:
    """Of all clients at once, as they would read."""
    found: list[str] = []

    def read(end: Ends) -> None:
        try:
            found.append(end())
        except (OSError, HTTPException, ValueError) as error:
            found.append(f"the answer was cut: {error!r}")

    threads = [threading.Thread(target=read, args=(end,)) for end in ends]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    yield from filter(None, found)


def _try_early(number: signal.Signals, seconds: float) -> tuple[list[str], float]:
    """So long after the start of the process: it ends as any other verb, or as a server."""
    command = [sys.executable, "-m", "pocketlm", "serve", str(tiny_folder().path), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    time.sleep(seconds)
    process.send_signal(number)
    err = process.communicate(timeout=30)[1].decode()
    wrong = []
    if process.returncode not in (0, INTERRUPTED, -number):
        wrong.append(f"exit code {process.returncode}")
    if "Traceback" in err and process.returncode != -signal.SIGINT:  # Python itself had not begun
        wrong.append(err)
    return wrong, 0.0
