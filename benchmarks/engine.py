"""What many requests at once, guessing and reproducibility gain and cost: ratios of one run.

    python -m pocketlm.benchmarks.engine gpt2-int8/ llama-int4/ --kv fp32 --kv int8
    python -m pocketlm.benchmarks.engine llama-int4/ --prefill none --prefill int8
    python -m pocketlm.benchmarks.engine smollm2-int4/ --test lookup      # of a model that can copy

    rows       tokens/s of 2 to 32 sequences that take each step together, over those of one
    pairs      a lone sequence in steps of as many rows as hide its company, over plain steps
    requests   many prompts of 64 to 400 tokens, 64 new each: all together, over one after another
    busy       with a process that takes a core for itself: all threads, over one thread
    lookup     a text that copies from its prompt, guessed from it, over plain steps

What is compared takes turns in every round; a ratio is the median of those of the rounds, with the
interval that holds the true one with 95 %. Models may have random weights but for ``lookup``.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from ..export.folder import ModelFolder
from ..runtime.arena import Cache
from ..runtime.chunks import prefill
from ..runtime.decode import begin, speculate, steps
from ..runtime.model import Model
from ..runtime.prefill_choice import INT8, NONE
from ..runtime.request import GREEDY, Request
from ..runtime.row_rule import MOST_ROWS, PLAIN, RowRule, RowSteps
from ..runtime.sequence import Sequence
from ..runtime.session import Session
from ..runtime.speculation import PromptLookup
from .intervals import paired_ratio
from .machine import CpuWatch, busy_sentence, describe_machine, load_average, machine_sentence
from .programs import at_least, errors_in_a_line, given_path, thread_count
from .tables import Table
from .turns import rates

ROWS = (2, 4, 8, 16, MOST_ROWS)
DEPTHS = (64, 384)  # tokens before
STEPS = 16
NEW_TOKENS = 64
SHORTEST, LONGEST = 64, 400  # prompts of ``requests``
# What a model is to go on with: the second copy, as it went on with the first.
COPIED = (
    "The ferry leaves the northern pier at seven in the morning and returns at dusk, unless the "
    "wind is above force six, in which case the harbour master raises a red flag and the crew "
    "stays ashore, mending nets and arguing about the price of diesel and the state of the road."
)
COPY_PROMPT = f"Text: {COPIED}\nCopy: {COPIED}\nText: {COPIED}\nCopy: The ferry leaves"

Row = tuple[str, str, str, str]  # test, what, tokens/s, ratio


def rows_together(session: Session, rounds: int) -> Iterator[Row]:
    """Of 1, 2, … 32 sequences, after so many tokens each."""
    logits = np.empty((MOST_ROWS, session.shape.vocab_size), np.float32)
    how = RowRule(session).fastest()

    def rate(caches: list[Cache], depth: int) -> float:
        prefill = how.prefill(len(caches))
        started = time.perf_counter()
        for token in range(STEPS):
            feeds = [(cache, [token]) for cache in caches]
            session.step_together(feeds, prefill=prefill, out=logits)
        seconds = time.perf_counter() - started
        for cache in caches:
            cache.truncate(depth)
        return len(caches) * STEPS / seconds

    for depth in DEPTHS:
        caches = _copies(session, depth)
        tests = [partial(rate, caches[:count], depth) for count in (1, *ROWS)]
        alone, *together = rates(tests, rounds)
        for count, found in zip(ROWS, together, strict=True):
            yield _row("rows", f"{count} rows after {depth} tokens", found, alone)


def pairs(session: Session, rounds: int) -> Iterator[Row]:
    """What ``reproducible`` costs a lone sequence."""
    alike = RowRule(session).reproducible()
    request = Request(text_ids(session, DEPTHS[0]), GREEDY, NEW_TOKENS)

    def rate(rows: RowSteps) -> float:
        return _rate(request, session, lambda sequence: steps(session, sequence, None, rows))

    found = rates([lambda: rate(PLAIN), lambda: rate(alike)], rounds)
    yield _row("pairs", f"steps of {alike.group} rows", found[1], found[0])


def requests(model: Model, rounds: int, count: int) -> Iterator[Row]:
    """All together by ``generate_many``, and with one row."""
    lengths = np.random.default_rng(0).integers(SHORTEST, LONGEST + 1, count)
    prompts = [text_ids(model.session, int(length), seed) for seed, length in enumerate(lengths)]

    def rate(rows: int) -> float:
        started = time.perf_counter()
        found = model.generate_many(
            prompts, rows=rows, max_tokens=NEW_TOKENS, temperature=0, ignore_eos=True
        )
        assert sum(len(result.token_ids) for result in found) == count * NEW_TOKENS
        return count * NEW_TOKENS / (time.perf_counter() - started)

    found = rates([lambda: rate(1), lambda: rate(MOST_ROWS)], rounds)
    yield _row("requests", f"{count} prompts, {MOST_ROWS} at once", found[1], found[0])


def busy(model: Model, rounds: int) -> Iterator[Row]:
    """Beside a process that never waits; of a quiet machine the ratio is that of its threads."""
    session = model.session
    single = Session(model.folder, 1, kv=session.kv, prefill=session.prefill)
    request = Request(text_ids(session, DEPTHS[0]), GREEDY, NEW_TOKENS)

    def rate(session: Session) -> float:
        return _rate(request, session, lambda sequence: steps(session, sequence))

    tests = [partial(rate, single), partial(rate, session)]
    alone, all_threads = rates(tests, rounds)
    yield _row("busy", f"{session.threads} threads, nothing beside", all_threads, alone)
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        alone, all_threads = rates(tests, rounds)
        other.kill()
    yield _row("busy", f"{session.threads} threads, a core taken", all_threads, alone)


def lookup(model: Model, rounds: int) -> Iterator[Row]:
    """How much faster a text is that copies, and how many of the guesses were right."""
    session = model.session
    request = Request(model.tokenizer.encode(COPY_PROMPT), GREEDY, NEW_TOKENS)
    right: list[str] = []

    def plain() -> float:
        return _rate(request, session, lambda sequence: steps(session, sequence))

    def guessed() -> float:
        def loop(sequence: Sequence) -> Iterator[object]:
            yield from speculate(session, sequence, PromptLookup())
            right.append(f"{sequence.num_right} of {sequence.num_guessed}")

        return _rate(request, session, loop)

    found = rates([plain, guessed], rounds)
    yield _row("lookup", f"{right[-1]} guesses right", found[1], found[0])


def _rate(
    request: Request, session: Session, loop: Callable[[Sequence], Iterator[object]]
) -> float:
    """Tokens per second after the first."""
    new = loop(begin(session, request))
    next(new)
    started = time.perf_counter()
    count = sum(1 for _ in new)
    return count / (time.perf_counter() - started)


def _row(test: str, what: str, found: list[float], reference: list[float]) -> Row:
    ratio = paired_ratio(found, reference)
    told = f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
    return test, what, f"{np.median(found):.0f}", told


def _copies(session: Session, depth: int) -> list[Cache]:
    first = session.new_caches()()  # whose rows are small
    prefill(session, text_ids(session, depth), first)
    return [first, *(first.copy() for _ in range(MOST_ROWS - 1))]


def text_ids(session: Session, count: int, seed: int = 0) -> list[int]:
    """``count`` tokens at random."""
    ids: list[int] = (
        np.random.default_rng(seed).integers(0, session.shape.vocab_size, count).tolist()
    )
    return ids


TESTS = ("rows", "pairs", "requests", "busy", "lookup")


def measure(model: Model, tests: list[str], rounds: int, num_requests: int) -> Iterator[Row]:
    """The rows of the table that ``tests`` make."""
    if "rows" in tests:
        yield from rows_together(model.session, rounds)
    if "pairs" in tests:
        yield from pairs(model.session, rounds)
    if "requests" in tests:
        yield from requests(model, max(1, rounds // 5), num_requests)
    if "busy" in tests:
        yield from busy(model, rounds)
    if "lookup" in tests:
        yield from lookup(model, rounds)


def main() -> None:
    """Measures every model with every kind of cache, and prints a table of each."""
    parser = argparse.ArgumentParser(
        prog="python -m pocketlm.benchmarks.engine", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("models", nargs="+", type=given_path, metavar="MODEL", help="model folder")
    parser.add_argument("--kv", action="append", choices=("fp32", "int8"), help="default: fp32")
    parser.add_argument("--prefill", action="append", choices=(NONE, INT8), help="default: none")
    parser.add_argument("--test", action="append", choices=TESTS, help="default: all but lookup")
    parser.add_argument("--rounds", type=at_least(1), default=10)
    parser.add_argument("--requests", type=at_least(1), default=100, metavar="N")
    parser.add_argument("--threads", type=thread_count)
    given = parser.parse_args()
    with errors_in_a_line(parser.prog):
        for path in given.models:
            for kv, prefill in itertools.product(given.kv or ["fp32"], given.prefill or [NONE]):
                _tell(path, kv, prefill, given)


def _tell(path: Path, kv: str, prefill: str, given: argparse.Namespace) -> None:
    folder = ModelFolder.open(path)
    model = Model(folder, given.threads, kv=kv, prefill=prefill, prefix_cache_bytes=0)
    load, watch = load_average(), CpuWatch()
    tests = given.test or [test for test in TESTS if test != "lookup"]
    rows = list(measure(model, tests, given.rounds, given.requests))
    busy = busy_sentence(watch.stop(), load)
    second = f", prompts and many rows with {prefill}" if prefill != NONE else ""
    print(f"\n{path}, KV cache in {kv}{second}\n")
    print(Table(("test", "what", "tokens/s", "ratio"), rows, labels=2).markdown())
    print(f"\n{machine_sentence(describe_machine(model.session.threads))}")
    if busy:
        print(f"WARNING: {busy}")


if __name__ == "__main__":
    main()
