"""B8: the log has lines of JSON, and nothing of what was asked, of keys, or of control characters.

What the other figures of this group send has a marker in its prompts, keys, headers, queries and
bodies; here they run once more, and a bug is had whose message holds the marker, too.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
from io import StringIO

from figure import Conditions, Figure
from served import served
from tiny_server import GOLDEN, LOGS, MARKER, is_golden, tiny_folder, tiny_server

import pocketlm
from pocketlm.runtime.model import Model

OTHERS = ["b1", "b3", "b4", "b5", "b6", "b7"]
LONG = ["b4", "b5"]  # by their deadlines: a quick run sends the same
OF_REQUESTS = {"time", "event", "id", "status", "method", "path", "seconds", "kind", "at", "note"}
LONGEST_LINE = 2000
CONTROLS = {chr(code) for code in [*range(32), *range(127, 160)]} - {"\n"}


def measure(conditions: Conditions) -> Figure:
    """``worst`` is the lines that have what they should not."""
    figure = Figure("lines that tell", 0)
    beside = StringIO()
    handler = logging.StreamHandler(beside)
    logging.getLogger().addHandler(handler)
    first = len(LOGS)
    try:
        with contextlib.redirect_stderr(beside), contextlib.redirect_stdout(beside):
            _send_everything(conditions, figure)
            _have_a_bug(figure, conditions)
    finally:
        logging.getLogger().removeHandler(handler)
    written = "".join(log.getvalue() for log in LOGS[first:])
    lines = written.split("\n")
    telling = [line for line in lines if line and not _is_clean(line)]
    figure.worst = len(telling)
    figure.ok += len(lines) - len(telling)
    figure.check(not telling, conditions, "telling", "\n".join(map(repr, telling[:50])))
    figure.check(not beside.getvalue(), conditions, "beside", beside.getvalue()[:5000])
    figure.check("%00" in written, conditions, "paths", "no path with an escape was written")
    with tiny_server() as server:
        figure.check(is_golden(server), conditions, "golden", "another text than before")
    return figure


def _send_everything(conditions: Conditions, figure: Figure) -> None:
    for name in OTHERS:
        quick = conditions.quick or name in LONG
        if conditions.quick and name == "b5":
            continue
        chosen = Conditions(quick, conditions.seed, conditions.out / name)
        before = sum(len(log.getvalue()) for log in LOGS)
        importlib.import_module(name).measure(chosen)
        after = sum(len(log.getvalue()) for log in LOGS)
        figure.check(after > before, conditions, f"lines-of-{name}", "it wrote no line")


def _have_a_bug(figure: Figure, conditions: Conditions) -> None:
    """The log of one says of which kind it is and where, and no more."""

    def opened() -> Model:
        raise ValueError(f"found {MARKER}\x1b[31m\r\n")

    good = tiny_folder().path
    with served({"broken": opened, "tiny": lambda: pocketlm.load(good, threads=1)}) as server:
        LOGS.append(server.written)
        asked = {"model": "broken", "prompt": MARKER}
        headers = {"X-Request-Id": f"{MARKER} x", "Authorization": f"Bearer {MARKER}"}
        server.send("GET", "/v1/models/%00%1b%0a")
        status, found = server.post("/v1/completions", asked, **headers)
        told = [event for event in server.events if event["event"] == "error"]
    right = status == 500 and MARKER not in json.dumps(found) and len(told) == 1
    figure.check(right and told[0]["kind"] == "ValueError", conditions, "bug", f"{found} {told}")


def _is_clean(line: str) -> bool:
    if MARKER in line or str(GOLDEN["prompt"]) in line or CONTROLS & set(line):
        return False
    try:
        event = json.loads(line)
    except ValueError:
        return False
    if not isinstance(event, dict) or len(line) > LONGEST_LINE:
        return False
    return event.get("event") not in ("request", "error") or set(event) <= OF_REQUESTS
