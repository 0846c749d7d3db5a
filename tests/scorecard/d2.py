"""D2: readers who stop reading cost little memory and are cut off; the others hardly notice.

Streams and plain answers are left unread, each larger than what the system keeps for a client.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from http.client import IncompleteRead

from figure import Conditions, Figure
from http_clients import Client
from serve_process import Process, serve_process
from tiny_server import tiny_folder

NUM_STALLED, NUM_NORMAL = 8, 4
MOST_SECONDS = 60.0
MOST_BYTES = 1_000_000  # of each who does not read
LEAST_SHARE = 0.8
BASELINE_SECONDS = 10.0
# Of 100 alternatives a token is 1.6 kB; a client who reads nothing is sent a few.
STREAM = {"prompt": "a", "max_tokens": 150, "ignore_eos": True, "logprobs": 100, "stream": True}
PLAIN = STREAM | {"stream": False, "n": 3}  # of which the system would take a third
NORMAL = {"prompt": "b", "max_tokens": 100, "ignore_eos": True, "stream": True, "temperature": 0}


def measure(conditions: Conditions) -> Figure:
    """Rates with and without them; memory, and when they are gone."""
    figure = Figure("s", MOST_SECONDS)
    settings = {"parallel": 16} | ({"stall_seconds": 4.0} if conditions.quick else {})
    seconds = BASELINE_SECONDS / (2 if conditions.quick else 1)
    told = {"settings": settings, "steps": {"seconds": 0.01}}
    with serve_process(tiny_folder().path, **told) as server:
        asked = [STREAM] * (NUM_STALLED - 2) + [PLAIN] * 2
        _read([Client(server.port).ask(**body) for body in asked])  # what it takes once
        alone, text = _rate(server, seconds)
        time.sleep(1)  # for the last of those to be gone
        files, before = server.num_files, server.rss_bytes
        started = time.monotonic()
        stalled = [Client(server.port, receive_bytes=4096).ask(**body) for body in asked]
        beside, same = _rate(server, seconds)
        most = server.rss_bytes
        while server.num_files > files and time.monotonic() - started < 2 * MOST_SECONDS:
            most = max(most, server.rss_bytes)
            time.sleep(0.1)
        figure.worst = round(time.monotonic() - started, 1)
        each = (most - before) / NUM_STALLED
        figure.check(each <= MOST_BYTES, conditions, "memory", f"{each:,.0f} bytes each")
        share = beside / alone
        rates = f"{beside:.0f} of {alone:.0f}/s"
        figure.check(share >= LEAST_SHARE, conditions, "rate", rates, timed=True)
        figure.check(text == same, conditions, "text", "another text than before")
        figure.check(server.num_files <= files, conditions, "closed", "some are still open")
        for number, client in enumerate(stalled):
            figure.check(_is_cut(client), conditions, f"cut-{number}", "the whole answer came")
        server.signal()
        figure.check(server.ended() == 0, conditions, "end", "\n".join(server.lines))
    figure.notes = {"bytes_each": round(each), "share": round(share, 3)}
    return figure


def _read(clients: Sequence[Client]) -> None:
    for client in clients:
        client.answer.read()
        client.leave()


def _rate(server: Process, seconds: float) -> tuple[float, set[str]]:
    """Events a second that the normal ones get together, and the texts that they got."""
    until = time.monotonic() + seconds
    counts, texts = [0] * NUM_NORMAL, set[str]()

    def read(place: int) -> None:
        while time.monotonic() < until:
            with Client(server.port) as client:
                events = client.ask(**NORMAL).events()
            counts[place] += len(events)
            texts.add("".join(event["choices"][0]["text"] for event in events[:-1]))

    threads = [threading.Thread(target=read, args=(place,)) for place in range(NUM_NORMAL)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.monotonic() - started), texts


def _is_cut(client: Client) -> bool:
    """Whether the connection ended before the answer did."""
    try:
        with client:
            client.answer.read()
    except (OSError, IncompleteRead):
        return True
    return False
