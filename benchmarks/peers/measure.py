"""Interleaved rounds over ours and the peers of one level, and whether they run the same model.

A level is a precision of ours with the peers' formats of the same width. Each is first started a
few times by itself, for the seconds to its first token. Then as many of its models as fit in memory
stay open, ours always among them; the rest take their turn in further groups, with ours again, so
that every ratio is of samples that lie next to each other in time. What is timed: ``trials``.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..machine import CpuWatch, OthersUse, available_bytes
from .command_start import command_start
from .conversions import Contender
from .environments import PeerError, child_environment
from .process import PeerProcess
from .trials import FIRST_PROMPT, FIRST_TOKEN, ManyRows, Trial, calls, own_bench, token_ids

# What opening a model takes at most: its files, packed again; the cache and the libraries.
MEMORY_FACTOR, MEMORY_BYTES = 2.0, 500_000_000
# The check that it is the same model: greedy tokens after random prompts, and in fp32 also the
# token after prompts with a narrow lead, see ``reference``.
PROMPTS, PROMPT_TOKENS, CHECKED_TOKENS = 12, 16, 4
TEXTS, TEXT_TOKENS, NARROW = 8, 64, 32
LEAST_AGREEMENT = {"fp32": 0.95, "int8": 0.5, "int4": 0.1}

OnProgress = Callable[[str], None]
Checks = list[tuple[list[int], int]]  # prompts, and how many tokens after each are compared


@dataclass
class Entry:
    """A peer in one precision: what came of it so far. ``failure`` says why it ends there."""

    peer: str
    precision: str
    level: str
    contender: Contender | None = None
    weights_bytes: int | None = None  # on disk, also when they are discarded by now
    failure: str | None = None
    version: str | None = None
    load_seconds: float | None = None
    peak_rss_bytes: int | None = None
    agreement: float | None = None
    quality: dict[str, Any] | None = None  # as ``quality`` has it of a model
    unscored: str | None = None  # why there is none
    bytes_per_token: int | None = None  # of weights
    answers: list[tuple[list[int], list[int]]] = field(default_factory=list)  # checked: ids, tokens
    settings: str = ""  # what it runs with
    samples: dict[str, list[float]] = field(default_factory=dict)  # seconds per round
    our_samples: dict[str, list[float]] = field(default_factory=dict)  # of the same rounds
    own_samples: dict[str, list[float]] = field(default_factory=dict)  # of its own benchmark
    command_samples: list[float] = field(default_factory=list)  # ``pocketlm run`` to its first text
    beside: list[str] = field(default_factory=list)  # who was open at the same time
    process: PeerProcess | None = None

    def close(self) -> None:
        """Ends its process, if it runs."""
        if self.process is not None:
            self.process.close()
            self.process = None

    def fail(self, error: PeerError) -> None:
        """Keeps the reason; samples of a peer that crashed are not shown."""
        self.failure = str(error)
        self.samples, self.our_samples, self.own_samples, self.quality = {}, {}, {}, None
        self.close()


@dataclass(frozen=True)
class Options:
    """How to measure."""

    tests: Sequence[Trial]
    threads: int
    rounds: int
    logs: Path
    answer_seconds: float
    on_progress: OnProgress = lambda message: None
    starts: int = 0  # of a fresh process each, for the seconds to its first token
    own_bench: bool = False  # also runs the benchmark of a peer that has one


def checks(reference: Entry, vocab_size: int, context: int, options: Options) -> dict[str, Checks]:
    """What each level is checked with; ``reference`` is our fp32 as a judge."""
    prompts = _random_ids(vocab_size, PROMPTS, min(PROMPT_TOKENS, context - CHECKED_TOKENS))
    usual = [(prompt, CHECKED_TOKENS) for prompt in prompts]
    texts = _random_ids(vocab_size, TEXTS, min(TEXT_TOKENS, context - 1))
    try:
        process = start(reference, options)
        narrow = process.ask("narrow", texts=texts, count=NARROW)["prompts"]
    finally:
        reference.close()
    return {"fp32": [*usual, *((prompt, 1) for prompt in narrow)], "int8": usual, "int4": usual}


def _random_ids(vocab_size: int, count: int, length: int) -> list[list[int]]:
    ids: list[list[int]] = (
        np.random.default_rng(length).integers(0, vocab_size, (count, length)).tolist()
    )
    return ids


def measure_level(
    entries: Sequence[Entry],
    vocab_size: int,
    checks_of: Mapping[str, Checks],
    options: Options,
) -> list[OthersUse]:
    """Fills ours, the first of ``entries``, and the peers'; what others used of the processor.

    A peer that fails keeps the reason; ours failing is raised.
    """
    ours, waiting = entries[0], [entry for entry in entries[1:] if entry.failure is None]
    others: list[OthersUse] = []
    _start_cold(entries, vocab_size, options)
    waiting = [entry for entry in waiting if entry.failure is None]
    while True:
        watch = CpuWatch()
        group: list[Entry] = []
        try:
            start(ours, options)
            group.append(ours)
            _fill_group(group, waiting, checks_of, options)
            _run_rounds(group, vocab_size, options)
        finally:
            for entry in entries:  # one may be open and not in the group yet
                entry.close()
        others += [found for found in [watch.stop()] if found is not None]
        if not waiting:
            return others


def start(entry: Entry, options: Options) -> PeerProcess:
    """Opens its model. Raises PeerError."""
    assert entry.contender is not None
    options.on_progress(f"{entry.peer} {entry.precision}: opening")
    # Several may run one folder, each in its own way.
    name = re.sub(r"\W+", "-", f"{entry.contender.folder.name} {entry.precision}")
    log = options.logs / f"{name}-serving.log"
    entry.process = PeerProcess(
        entry.contender.command(options.threads),
        log,
        child_environment(options.threads),
        options.answer_seconds,
    )
    entry.version = entry.process.opened["version"]
    entry.settings = entry.process.opened["settings"]
    entry.load_seconds = entry.process.load_seconds
    return entry.process


def _start_cold(entries: Sequence[Entry], vocab_size: int, options: Options) -> None:
    """Starts each by itself, in rounds; the first, which warms the page cache, is not kept."""
    for number in range(options.starts + 1 if options.starts else 0):
        alive = [entry for entry in entries if entry.failure is None]
        for entry in alive[:: -1 if number % 2 else 1]:
            try:
                seconds = _first_token(entry, vocab_size, number, options)
            except PeerError as error:
                if entry is entries[0]:
                    raise
                entry.fail(error)
                continue
            finally:
                entry.close()
            told = _command_start(entry, options)
            if number > 0:
                entry.samples.setdefault(FIRST_TOKEN, []).append(seconds)
                entry.command_samples += told


def _first_token(entry: Entry, vocab_size: int, number: int, options: Options) -> float:
    started = time.perf_counter()
    process = start(entry, options)
    process.ask("generate", ids=token_ids(vocab_size, FIRST_PROMPT, number), count=1)
    return time.perf_counter() - started


def _command_start(entry: Entry, options: Options) -> list[float]:
    """The seconds of ``pocketlm run``, if the entry is one of ours."""
    if entry.contender is None or entry.contender.peer.requirements is not None:
        return []
    return [command_start(entry.contender.folder, entry.contender.precision, options.threads)]


def _fill_group(
    group: list[Entry],
    waiting: list[Entry],
    checks_of: Mapping[str, Checks],
    options: Options,
) -> None:
    """Moves from ``waiting`` to ``group``, which has ours, what opens and fits; one at least."""
    free = available_bytes()
    _check(group[0], checks_of, options)
    while waiting:
        if len(group) > 1 and not fits(waiting[0], group, free):
            return
        entry = waiting.pop(0)
        try:
            start(entry, options)
            _check(entry, checks_of, options)
        except PeerError as error:
            entry.fail(error)
        else:
            group.append(entry)


def _check(entry: Entry, checks_of: Mapping[str, Checks], options: Options) -> None:
    """Keeps its tokens after the prompts of the check, for ``judge``; many at once, too."""
    assert entry.process is not None
    entry.answers = [
        (prompt, entry.process.ask("generate", ids=prompt, count=count)["tokens"])
        for prompt, count in checks_of[entry.level]
    ]
    for test in options.tests:
        if isinstance(test, ManyRows) and test.needs in entry.process.opened["can"]:
            prompts = [ids for ids, count in checks_of[entry.level] if count == CHECKED_TOKENS]
            prompts = prompts[: test.rows]
            found = entry.process.ask(test.needs, prompts=prompts, count=CHECKED_TOKENS)
            entry.answers += zip(prompts, found["tokens"], strict=True)
    entry.peak_rss_bytes = entry.process.ask("memory")["peak_rss_bytes"]


def fits(entry: Entry, group: Sequence[Entry], free: int) -> bool:
    """Whether ``entry`` fits beside ``group`` in what was ``free`` when ours was open."""
    assert entry.contender is not None
    needed = MEMORY_FACTOR * entry.contender.weights_bytes + MEMORY_BYTES
    taken = sum(other.peak_rss_bytes or 0 for other in group[1:])
    return needed + taken < free


def _run_rounds(group: list[Entry], vocab_size: int, options: Options) -> None:
    """One round that warms up, then those that count, every other one backwards; none of none.

    Ctrl-C leaves the samples of complete rounds.
    """
    ours, complete = group[0], 0
    timed = {test.name for test in options.tests}
    for entry in group:
        entry.samples = {**entry.samples, **{test.name: [] for test in options.tests}}
        entry.own_samples = {test.name: [] for test in options.tests}
        entry.beside = [f"{other.peer} {other.precision}" for other in group if other is not entry]
    try:
        for number in range(options.rounds + 1 if options.rounds else 0):
            _run_round(group, number, vocab_size, options)
            complete = number
    finally:
        for samples in (kept for entry in group for kept in (entry.samples, entry.own_samples)):
            samples |= {name: samples[name][:complete] for name in samples.keys() & timed}
        for entry in group[1:]:
            if entry.failure is None:
                entry.our_samples = ours.samples
    for entry in group:
        if entry.process is not None:
            entry.peak_rss_bytes = entry.process.ask("memory")["peak_rss_bytes"]


def _run_round(group: list[Entry], number: int, vocab_size: int, options: Options) -> None:
    for test in options.tests:
        alive = [entry for entry in group if entry.failure is None]
        for entry in alive[:: -1 if number % 2 else 1]:
            what = f"{test.name}, round {number} of {options.rounds}"
            options.on_progress(f"{entry.peer} {entry.precision}: {what}")
            try:
                _sample(entry, test, vocab_size, number, options.own_bench)
            except PeerError as error:
                if entry is group[0]:
                    raise
                entry.fail(error)


def _sample(entry: Entry, test: Trial, vocab_size: int, number: int, own: bool) -> None:
    assert entry.process is not None
    can = entry.process.opened["can"]
    if isinstance(test, ManyRows) and test.needs not in can:
        return
    seconds = sum(
        call.sign * entry.process.ask(call.do, **call.arguments)["seconds"]
        for call in calls(test, vocab_size, number)
    )
    if number == 0:
        return
    entry.samples[test.name].append(seconds)
    if own and "own_bench" in can and (asked := own_bench(test)) is not None:
        entry.own_samples[test.name].append(entry.process.ask("own_bench", **asked)["seconds"])


def judge(
    reference: Entry,
    entries: Sequence[Entry],
    options: Options,
) -> None:
    """Says of every entry how many of its checked tokens are the best of ``reference``, our fp32.

    Below the least that its level leaves, it does not run the same model, and its figures go.
    """
    try:
        process = start(reference, options)
        for entry in entries:
            if entry.failure is None:
                _judge(entry, process)
    finally:
        reference.close()


def _judge(entry: Entry, reference: PeerProcess) -> None:
    checked = sum(len(tokens) for _, tokens in entry.answers)
    agreed = sum(
        reference.ask("judge", ids=prompt, tokens=tokens)["agreed"]
        for prompt, tokens in entry.answers
    )
    entry.agreement = agreed / checked
    if entry.agreement < LEAST_AGREEMENT[entry.level]:
        entry.fail(PeerError(f"not the same model: {agreed} of {checked} tokens agree"))
