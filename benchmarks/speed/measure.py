"""The speed of models side by side: tests with llama-bench's names, in interleaved rounds.

    pp512             prefill of 512 tokens, in batches
    tg128             generation of 128 tokens: as many forward passes of one token each
    pp512+tg128       one after the other
    tg128 @ d512      the same with 512 tokens in the cache already

Every model runs in a process of its own. A round goes over all tests, and within a test over all
models, so that the samples of one round and test lie next to each other in time; every other round
goes backwards, so that a steady drift of the machine cancels as well. Each round also starts every
model once in a fresh process, for the seconds to its first token. Rounds of warm-up come first and
are not kept. Names: github.com/ggml-org/llama.cpp, tools/llama-bench/README.md.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...export.errors import RequestError
from ...runtime.chunks import CHUNK_SIZE
from ..session_variant import PLAIN, Variant
from .remote import Remote, WorkerDied

PROMPT, GENERATION = 512, 128  # of the tests that run unless others are asked for
NAME = re.compile(r"(?:pp([1-9]\d*))?(\+)?(?:tg([1-9]\d*))?(?: @ d([1-9]\d*))?")

OnProgress = Callable[[int, int, str], None]  # done, of how many, what


@dataclass(frozen=True)
class SpeedTest:
    """Tokens to process and to generate, after how many, and how."""

    prompt: int
    generation: int
    depth: int = 0
    batch: int = CHUNK_SIZE  # tokens per forward pass of the prompt
    threads: int = 1

    @property
    def name(self) -> str:
        """llama-bench's name for it; batch and threads stand beside, not in it."""
        parts = {"pp": self.prompt, "tg": self.generation}
        name = "+".join(f"{letters}{count}" for letters, count in parts.items() if count)
        return f"{name} @ d{self.depth}" if self.depth else name

    @property
    def kind(self) -> str:
        """prefill, decode or both."""
        if not self.generation:
            return "prefill"
        return "both" if self.prompt else "decode"

    @property
    def tokens(self) -> int:
        return self.prompt + self.generation


def parse_test(name: str) -> SpeedTest:
    """The test of a name such as ``pp512+tg128 @ d64``. Raises RequestError for any other."""
    match = NAME.fullmatch(name)
    if match is not None:
        prompt, plus, generation, depth = match.groups()
        if (prompt or generation) and bool(plus) == bool(prompt and generation):
            return SpeedTest(int(prompt or 0), int(generation or 0), int(depth or 0))
    raise RequestError(
        f"found the test {name!r:.40}, expected one like pp512, tg128 or pp512+tg128, with or "
        "without the depth @ d512"
    )


@dataclass(frozen=True)
class SpeedGrid:
    """What to measure: every combination of the lists; None is the default, cut where need be."""

    prompts: Sequence[int] | None = None
    generations: Sequence[int] | None = None
    pairs: Sequence[tuple[int, int]] = ()  # prompt and generation, one after the other
    depths: Sequence[int] = (0,)
    batches: Sequence[int] = (CHUNK_SIZE,)
    threads: Sequence[int] = (1,)

    def tests(self, context: int) -> list[SpeedTest]:
        """The tests for models of that context length, in order, each once.

        A test without a prompt does not depend on the batch, and is run with the first one. A
        default that does not fit is cut to what does, and named for that. Raises RequestError for
        an explicit one that does not fit, for a depth that leaves no room, and for no test.
        """
        found: dict[SpeedTest, None] = {}
        for threads in self.threads:
            for depth in self.depths:
                for prompt, generation in self._counts(context - depth, depth):
                    for batch in self.batches if prompt else self.batches[:1]:
                        test = SpeedTest(prompt, generation, depth, batch, threads)
                        _check_fits(test, context)
                        found[test] = None
        if not found:
            raise RequestError(
                "found no test, expected a prompt or a generation of at least one token; "
                "leave -p or -n out, or give -pg"
            )
        return list(found)

    def _counts(self, room: int, depth: int) -> Iterator[tuple[int, int]]:
        """(prompt, generation) of every test at one depth."""
        if room < 1:
            raise RequestError(
                f"found the depth {depth}, expected fewer tokens than the context length "
                f"{room + depth}; give a smaller -d"
            )
        prompts = (min(PROMPT, room),) if self.prompts is None else self.prompts
        generations = (min(GENERATION, room),) if self.generations is None else self.generations
        yield from ((prompt, 0) for prompt in prompts if prompt)
        yield from ((0, generation) for generation in generations if generation)
        yield from (
            (prompt, generation) for prompt, generation in self.pairs if prompt + generation
        )


def _check_fits(test: SpeedTest, context: int) -> None:
    needed = test.depth + test.tokens
    if needed > context:
        raise RequestError(
            f"found the test {test.name} of {needed} tokens, expected at most {context} (the "
            "shortest context length of the models); give smaller -p, -n, -pg or -d"
        )


@dataclass(frozen=True)
class Sample:
    """One run of a test."""

    seconds: float
    joules: float | None  # of the whole machine
    outside_kernel: float  # share of the seconds that was not ONNX Runtime's
    peak_rss_bytes: int  # of the process so far


@dataclass(frozen=True)
class ColdStart:
    """One start in a fresh process, with the files in the page cache."""

    load_seconds: float  # to open the folder
    first_token_seconds: float  # from the start of the process


Round = dict[tuple[str, SpeedTest], Sample]


@dataclass
class Recording:
    """What has been measured so far: whole rounds only, for all models that are still alive."""

    samples: dict[tuple[str, SpeedTest], list[Sample]] = field(default_factory=dict)
    cold_starts: dict[str, list[ColdStart]] = field(default_factory=dict)
    failed: dict[str, WorkerDied] = field(default_factory=dict)
    rounds: int = 0  # complete ones, without those of warm-up

    def add(self, samples: Round, cold: dict[str, ColdStart]) -> None:
        """Keeps a complete round."""
        for key, sample in samples.items():
            self.samples.setdefault(key, []).append(sample)
        for name, start in cold.items():
            self.cold_starts.setdefault(name, []).append(start)
        self.rounds += 1

    def drop(self, name: str, error: WorkerDied) -> None:
        """Forgets a model whose process died: what it had would not pair with the others'."""
        self.failed[name] = error
        self.samples = {key: found for key, found in self.samples.items() if key[0] != name}
        self.cold_starts.pop(name, None)

    def peak_rss_bytes(self, name: str) -> int:
        """The largest peak of the processes that ran the tests of a model."""
        samples = [found for key, found in self.samples.items() if key[0] == name]
        return max(sample.peak_rss_bytes for found in samples for sample in found)


def thread_counts(tests: Sequence[SpeedTest]) -> list[int]:
    """Each once, in the order of the tests."""
    return list(dict.fromkeys(test.threads for test in tests))


def measure(
    folders: dict[str, Path],
    tests: Sequence[SpeedTest],
    repetitions: int,
    recording: Recording,
    *,
    warmup: int = 1,
    variants: Mapping[str, Variant] | None = None,
    on_progress: OnProgress = lambda done, total, what: None,
) -> None:
    """Runs all tests on all models and adds every complete round to ``recording``.

    The tests of one number of threads come after those of another, with workers of their own, so
    that there is one per model at a time; fresh processes are started with the first number. A
    model whose process dies is dropped, and the others go on. Leaves no process behind, whatever
    ends it. ``variants`` are those of models, by name, that are not plain.
    """
    counts = thread_counts(tests)
    steps = _Steps(len(folders) * (warmup + repetitions) * (len(tests) + 1), on_progress)
    for count in counts:
        group = [test for test in tests if test.threads == count]
        rounds = _Rounds(folders, variants or {}, group, count == counts[0], recording, steps)
        with ExitStack() as stack:
            remotes = rounds.open_all(stack)
            for number in range(-warmup, repetitions):
                rounds.run(number, remotes)


class _Steps:
    """Counts what is done, for a progress bar."""

    def __init__(self, total: int, on_progress: OnProgress) -> None:
        self.total, self.done, self._on_progress = total, 0, on_progress

    def next(self, what: str) -> None:
        self._on_progress(self.done, self.total, what)
        self.done += 1


@dataclass(frozen=True)
class _Rounds:
    """Rounds over all models and the tests of one number of threads."""

    folders: dict[str, Path]
    variants: Mapping[str, Variant]
    tests: Sequence[SpeedTest]
    cold: bool  # whether they start fresh processes as well
    recording: Recording
    steps: _Steps

    def open_all(self, stack: ExitStack) -> dict[str, Remote]:
        """A worker for each model that is left; ``stack`` ends them."""
        remotes: dict[str, Remote] = {}
        for name in self.folders:
            if name not in self.recording.failed:
                try:
                    remote = stack.enter_context(Remote(*self._worker(name)))
                except WorkerDied as error:
                    self.recording.drop(name, error)
                else:
                    remotes[name] = remote
        return remotes

    def run(self, number: int, remotes: dict[str, Remote]) -> None:
        """One round; those of warm-up have negative numbers, and are not kept."""
        samples: Round = {}
        starts: dict[str, ColdStart] = {}
        which = f"round {number + 1}" if number >= 0 else "warm-up"
        for name, test in round_order(list(remotes), [*self.tests, *[None] * self.cold], number):
            if name in self.recording.failed:
                continue
            self.steps.next(f"{name}, {test.name if test else 'first token'}, {which}")
            try:
                if test is None:
                    starts[name] = cold_start(*self._worker(name))
                else:
                    samples[name, test] = _ask(remotes[name], test)
            except WorkerDied as error:
                self.recording.drop(name, error)
        if number >= 0:
            self._keep(samples, starts)

    def _worker(self, name: str) -> tuple[str, Path, int, Variant]:
        """What ``Remote`` takes."""
        threads, variant = self.tests[0].threads, self.variants.get(name, PLAIN)
        return name, self.folders[name], threads, variant

    def _keep(self, samples: Round, starts: dict[str, ColdStart]) -> None:
        """Of the models that are left, if any."""
        failed = self.recording.failed
        kept = {key: sample for key, sample in samples.items() if key[0] not in failed}
        if kept:
            self.recording.add(kept, {n: start for n, start in starts.items() if n not in failed})


def round_order(
    names: Sequence[str], tests: Sequence[SpeedTest | None], number: int
) -> list[tuple[str, SpeedTest | None]]:
    """What a round runs one after the other; the test None is the start in a fresh process.

    The models of one test are neighbours; every other round is the reverse of the one before.
    """
    order = [(name, test) for test in tests for name in names]
    return order if number % 2 == 0 else order[::-1]


def cold_start(name: str, folder: Path, threads: int, variant: Variant) -> ColdStart:
    """Starts Python, imports, opens the folder and waits for one token."""
    with Remote(name, folder, threads, variant) as remote:
        remote.ask("first_token")
        return ColdStart(remote.load_seconds, time.perf_counter() - remote.started)


def _ask(remote: Remote, test: SpeedTest) -> Sample:
    answer: dict[str, Any] = remote.ask(
        "measure",
        prompt=test.prompt,
        generation=test.generation,
        depth=test.depth,
        batch=test.batch,
    )
    return Sample(**answer)
