"""B1: a bad body is told so, at once, in OpenAI's form, and nothing is tried up again for it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from bad_json import GOOD, broken, unknown, wrong
from figure import Conditions, Figure
from raw_http import Answer, exchange, is_error, post
from served import Served
from tiny_server import MARKER, is_golden, tiny_server

from pocketlm.runtime.server.app import ENDPOINTS

MOST_MILLISECONDS = 100
# OpenAI's clients send again what these answer.
TRIED_AGAIN = (408, 409, 429)
TRIES = 3  # a pause of others is not ours


@dataclass(frozen=True)
class Case:
    """``body`` is sent to ``path``; ``code`` is that of its error, None: any."""

    name: str
    path: str
    body: bytes
    code: str | None = None


def cases() -> Iterator[Case]:
    """All: what is broken goes to every endpoint that takes a body."""
    paths = [endpoint.path for endpoint in ENDPOINTS if endpoint.method == "POST"]
    for path in paths:
        # Were it not for the code, one of them could be refused for what else is in it.
        for bodies, code in ((broken(), "invalid_json"), (unknown(), "unknown_parameter")):
            for name, body in bodies.items():
                yield Case(f"{path.strip('/').replace('/', '-')}-{name}", path, body, code)
    for name, path, body in wrong():
        yield Case(name, path, body)


def measure(conditions: Conditions) -> Figure:
    """All of them, then whether good ones still are, and what OpenAI's own client makes of it."""
    figure = Figure("ms", MOST_MILLISECONDS)
    everything = list(cases())
    chosen = (
        conditions.random.sample(everything, conditions.count(len(everything), 30))
        if conditions.quick
        else everything
    )
    # Where more wants to run than can, the clock on the wall times the others.
    is_busy = os.getloadavg()[0] > (os.cpu_count() or 1)
    clock = time.process_time if is_busy else time.perf_counter
    figure.notes["clock"] = clock.__name__
    with tiny_server() as server:
        for case in chosen:
            _try(server, case, clock, figure, conditions)
        for path, good in GOOD.items():
            status, found = server.post(path, good)
            right = status == 200 and len(found["choices"]) == 1
            figure.check(right, conditions, f"good{path.replace('/', '-')}", f"{status} {found}")
        _ask_theirs(server, figure, conditions)
        figure.check(is_golden(server), conditions, "golden", "another text than before")
    return figure


def _try(
    server: Served,
    case: Case,
    clock: Callable[[], float],
    figure: Figure,
    conditions: Conditions,
) -> None:
    sent = post(case.path, case.body, f"127.0.0.1:{server.port}")
    best, answers = float("inf"), list[Answer]()
    for _ in range(TRIES):
        started = clock()
        answers = exchange(server.port, sent, answers=1, seconds=10).answers
        best = min(best, 1000 * (clock() - started))
        if best <= MOST_MILLISECONDS:
            break
    figure.worst = max(figure.worst, round(best, 1))
    right = (
        len(answers) == 1
        and 400 <= answers[0].status < 500
        and answers[0].status not in TRIED_AGAIN
        and is_error(answers[0])
        and case.code in (None, answers[0].json["error"]["code"])
        and len(answers[0].body) < 2000
    )
    told = [(answer.status, answer.body[:300]) for answer in answers]
    reproduce = f"POST {case.path} {case.body[:300]!r}: {told} in {best:.0f} ms"
    figure.check(right and best <= MOST_MILLISECONDS, conditions, case.name, reproduce)


def _ask_theirs(server: Served, figure: Figure, conditions: Conditions) -> None:
    """By OpenAI's client, with the retries it has by itself: each bad request is sent once."""
    import openai

    asked: list[tuple[str, dict[str, Any], type[openai.APIStatusError]]] = [
        ("tiny", {"n": -1}, openai.BadRequestError),
        ("tiny", {"nonsense": MARKER}, openai.BadRequestError),
        ("tiny", {"temperature": -1}, openai.BadRequestError),
        ("nobody", {}, openai.NotFoundError),
    ]
    headers = {"X-Request-Id": "by-their-client"}
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        for place, (model, extra, expected) in enumerate(asked):
            try:
                client.completions.create(
                    model=model, prompt="a", extra_body=extra, extra_headers=headers
                )
                found = None
            except openai.APIStatusError as error:
                found = error
            right = isinstance(found, expected) and bool(found.param and found.request_id)
            figure.check(right, conditions, f"openai-{place}", f"{extra}: {found!r}")
    time.sleep(0.2)  # the line of a request comes after its answer
    sent = sum(event.get("id") == headers["X-Request-Id"] for event in server.events)
    figure.check(sent == len(asked), conditions, "openai-retries", f"{sent} requests")
