"""What the server costs beside the engine under it: ratios of one run.

    python -m pocketlm.benchmarks.server gpt2-int8/ --rounds 12 --clients 16

    one        tokens/s of one client that streams, over those of ``Model.submit``
    many       tokens/s of many clients that stream at once, over those of ``generate_many``
    first      seconds to the first token beside as many clients less one, over those alone
    idle       share of a core that the server takes while nobody asks

What is compared takes turns in every round; a ratio is the median of those of the rounds, with the
interval that holds the true one with 95 %. The server is a thread of this process, on the model
that the engine is measured with. Its clients are a process of their own, which shares the cores
with the model: what they cost is in the figures, as it is wherever a client runs beside its server.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from ..export.folder import ModelFolder
from ..export.importing import importing
from ..runtime.model import Model
from .engine import text_ids
from .intervals import paired_ratio
from .machine import CpuWatch, busy_sentence, describe_machine, load_average, machine_sentence
from .programs import at_least, errors_in_a_line, given_path, thread_count
from .tables import Table
from .turns import rates

with importing("measuring a server", "serve"):
    from ..runtime.server.connections.listening import Server, bound
    from ..runtime.server.log import Log
    from ..runtime.server.models.pool import Source
    from ..runtime.server.service import make_service
    from ..runtime.server.settings import Settings

PROMPT_TOKENS = 64
NEW_TOKENS = 128
IDLE_SECONDS = 5.0
TESTS = ("one", "many", "first", "idle")

Row = tuple[str, str, str, str]  # test, what, figure, ratio


class Clients:
    """The process of the clients."""

    def __init__(self, port: int) -> None:
        self._port = port
        # Without site-packages: it starts sooner, and takes less memory.
        program = Path(__file__).with_name("server_clients.py")
        self._process = subprocess.Popen(
            [sys.executable, "-S", str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, bodies: Sequence[Any], wait: bool = False) -> list[tuple[float, float]]:
        """Of each: seconds to its first event, and to its last."""
        assert self._process.stdin is not None and self._process.stdout is not None
        asked = {"port": self._port, "bodies": bodies, "wait": wait}
        print(json.dumps(asked), file=self._process.stdin, flush=True)
        found = [(first, last) for first, last in json.loads(self._process.stdout.readline())]
        assert all(last for _, last in found), "a stream broke off"
        return found

    def close(self) -> None:
        """Ends it."""
        self._process.communicate()


@contextmanager
def serving(model: Model, parallel: int) -> Iterator[Clients]:
    """Clients of a server of ``model``."""
    settings = Settings(port=0, parallel=parallel)
    service = make_service([Source("model", lambda: model)], settings, Log(StringIO()))
    server = Server(service, bound(settings))
    thread = threading.Thread(target=server.run)
    thread.start()
    clients = Clients(server.address[1])
    try:
        yield clients
    finally:
        clients.close()
        server.stop()
        thread.join()


def measure(
    model: Model, tests: Sequence[str], rounds: int, num_clients: int = 16
) -> Iterator[Row]:
    """The rows of the table that ``tests`` make; ``model`` is closed by its server at the end."""
    with serving(model, num_clients) as clients:
        if "one" in tests:
            yield from one(model, clients, rounds)
        if "many" in tests:
            yield from many(model, clients, rounds, num_clients)
        if "first" in tests:
            yield from first(model, clients, rounds, num_clients)
        if "idle" in tests:
            yield from idle()


def one(model: Model, clients: Clients, rounds: int) -> Iterator[Row]:
    """A client alone, over the engine alone; and the engine's plain stream beside it."""
    prompt = text_ids(model.session, PROMPT_TOKENS)
    options: dict[str, Any] = {"max_tokens": NEW_TOKENS, "temperature": 0, "ignore_eos": True}

    def over_http() -> float:
        ((_, last),) = clients.run([_body(prompt)])
        return NEW_TOKENS / last

    def submitted() -> float:
        started = time.perf_counter()
        for _ in model.submit(prompt, **options):
            pass
        return NEW_TOKENS / (time.perf_counter() - started)

    def streamed() -> float:
        started = time.perf_counter()
        for _ in model.stream(prompt, **options):
            pass
        return NEW_TOKENS / (time.perf_counter() - started)

    served, engine, plain = rates([over_http, submitted, streamed], rounds)
    yield _row("one", "a stream, over submit: tokens/s", served, engine)
    yield _row("one", "a stream, over Model.stream: tokens/s", served, plain)


def many(model: Model, clients: Clients, rounds: int, count: int) -> Iterator[Row]:
    """Clients that all stream at once, over the engine with the same requests."""
    prompts = [text_ids(model.session, PROMPT_TOKENS, seed) for seed in range(count)]
    bodies = [_body(prompt) for prompt in prompts]

    def over_http() -> float:
        return count * NEW_TOKENS / max(last for _, last in clients.run(bodies))

    def together() -> float:
        started = time.perf_counter()
        for _ in model.generate_many(
            prompts, rows=count, max_tokens=NEW_TOKENS, temperature=0, ignore_eos=True
        ):
            pass
        return count * NEW_TOKENS / (time.perf_counter() - started)

    served, engine = rates([over_http, together], rounds)
    yield _row("many", f"{count} streams, over generate_many: tokens/s", served, engine)


def first(model: Model, clients: Clients, rounds: int, count: int) -> Iterator[Row]:
    """When the first token of a client comes beside the others, over when it comes alone."""
    asked = _body(text_ids(model.session, PROMPT_TOKENS))
    seeds = itertools.count(1)  # what others asked before is not computed again

    def alone() -> float:
        return clients.run([asked])[0][0]

    def loaded() -> float:
        others = [
            _body(text_ids(model.session, PROMPT_TOKENS, next(seeds))) for _ in range(count - 1)
        ]
        return clients.run([*others, asked], wait=True)[-1][0]

    beside, by_itself = rates([loaded, alone], rounds)
    milliseconds = [1000 * seconds for seconds in beside]
    reference = [1000 * seconds for seconds in by_itself]
    yield _row("first", f"first token beside {count - 1} streams: ms", milliseconds, reference)


def idle() -> Iterator[Row]:
    """After all the others."""
    started, used = time.perf_counter(), time.process_time()
    time.sleep(IDLE_SECONDS)
    share = (time.process_time() - used) / (time.perf_counter() - started)
    yield "idle", "of a core", f"{100 * share:.2f} %", ""


def _body(prompt: list[int]) -> dict[str, Any]:
    options = {"max_tokens": NEW_TOKENS, "temperature": 0, "ignore_eos": True, "stream": True}
    return {"prompt": prompt, **options}


def _row(test: str, what: str, found: list[float], reference: list[float]) -> Row:
    ratio = paired_ratio(found, reference)
    told = f"{ratio.median:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"
    return test, what, f"{np.median(found):.0f}", told


def main() -> None:
    """Measures a model, and prints a table."""
    parser = argparse.ArgumentParser(
        prog="python -m pocketlm.benchmarks.server", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("model", type=given_path, metavar="MODEL", help="model folder")
    parser.add_argument("--test", action="append", choices=TESTS, help="default: all")
    parser.add_argument("--rounds", type=at_least(1), default=12)
    parser.add_argument("--clients", type=at_least(2), default=16, metavar="N")
    parser.add_argument("--threads", type=thread_count)
    given = parser.parse_args()
    with errors_in_a_line(parser.prog):
        # Nobody profits from what another round has computed.
        model = Model(ModelFolder.open(given.model), given.threads, prefix_cache_bytes=0)
        about = describe_machine(model.session.threads)
        load, watch = load_average(), CpuWatch()
        rows = list(measure(model, given.test or TESTS, given.rounds, given.clients))
    busy = busy_sentence(watch.stop(), load)
    print(f"\n{given.model}\n")
    print(Table(("test", "what", "figure", "ratio"), rows, labels=2).markdown())
    print(f"\n{machine_sentence(about)}")
    if busy:
        print(f"WARNING: {busy}")


if __name__ == "__main__":
    main()
