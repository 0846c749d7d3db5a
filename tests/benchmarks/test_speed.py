"""Speed tests: their names, which are chosen, in which order they run, and what is kept."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketlm.benchmarks.session_variant import Variant
from pocketlm.benchmarks.speed import measure as speed
from pocketlm.benchmarks.speed.measure import (
    ColdStart,
    Recording,
    SpeedGrid,
    SpeedTest,
    measure,
    parse_test,
    round_order,
)
from pocketlm.benchmarks.speed.remote import Remote, WorkerDied
from pocketlm.export.errors import RequestError
from pocketlm.export.folder import ModelFolder

COUNTS = st.integers(0, 10**9)


# Names -------------------------------------------------------------------------------------------


@given(COUNTS, COUNTS, COUNTS)
def test_names_and_tests_are_inverses(prompt: int, generation: int, depth: int) -> None:
    test = SpeedTest(prompt, generation, depth)
    if prompt + generation:
        assert parse_test(test.name) == test


@pytest.mark.parametrize(
    ("test", "name", "kind"),
    [
        (SpeedTest(512, 0), "pp512", "prefill"),
        (SpeedTest(0, 128), "tg128", "decode"),
        (SpeedTest(512, 128), "pp512+tg128", "both"),
        (SpeedTest(0, 32, 4096), "tg32 @ d4096", "decode"),
    ],
)
def test_names_are_those_of_llama_bench(test: SpeedTest, name: str, kind: str) -> None:
    assert (test.name, test.kind) == (name, kind)
    assert test.tokens == test.prompt + test.generation


@given(st.text("ptgd512+@ ", max_size=12))
def test_a_name_is_understood_or_refused(text: str) -> None:
    try:
        assert parse_test(text).name == text
    except RequestError as error:
        assert "expected one like pp512, tg128 or pp512+tg128" in str(error)


@pytest.mark.parametrize("name", ["", "pp", "pp0", "pp512tg128", "pp512+", "+tg1", "pp1 @ d0"])
def test_a_name_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(RequestError, match="found the test"):
        parse_test(name)


# Which tests -------------------------------------------------------------------------------------


def names(grid: SpeedGrid, context: int = 4096) -> list[str]:
    return [test.name for test in grid.tests(context)]


def test_by_default_a_prompt_and_a_generation_are_tested() -> None:
    assert names(SpeedGrid()) == ["pp512", "tg128"]


def test_a_default_that_does_not_fit_is_cut_and_named_for_what_it_is() -> None:
    assert names(SpeedGrid(), 448) == ["pp448", "tg128"]
    assert names(SpeedGrid(depths=[0, 400]), 448) == [
        "pp448",
        "tg128",
        "pp48 @ d400",
        "tg48 @ d400",
    ]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (SpeedGrid(prompts=[449]), "the test pp449 of 449 tokens, expected at most 448"),
        (SpeedGrid(generations=[1, 500]), "the test tg500 of 500 tokens, expected at most 448"),
        (SpeedGrid(pairs=[(400, 49)]), "the test pp400.tg49 of 449 tokens, expected at most 448"),
        (
            SpeedGrid(prompts=[9], depths=[440]),
            "the test pp9 @ d440 of 449 tokens, expected at most",
        ),
        (
            SpeedGrid(depths=[448]),
            "the depth 448, expected fewer tokens than the context length 448",
        ),
        (
            SpeedGrid(prompts=[0], generations=[0]),
            "found no test, expected a prompt or a generation",
        ),
    ],
)
def test_an_explicit_test_that_does_not_fit_is_refused(grid: SpeedGrid, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        grid.tests(448)


def test_every_combination_is_tested_once_and_a_generation_without_its_batches() -> None:
    grid = SpeedGrid(
        prompts=[64, 128, 64],
        generations=[8],
        pairs=[(16, 4)],
        depths=[0, 32],
        batches=[32, 64],
        threads=[2, 1],
    )
    tests = grid.tests(4096)
    assert len(tests) == len(set(tests)) == 2 * 2 * (2 * 2 + 1 + 2)
    assert [test.threads for test in tests] == [2] * 14 + [1] * 14
    first = [(test.name, test.batch) for test in tests[:7]]
    assert first == [
        ("pp64", 32),
        ("pp64", 64),
        ("pp128", 32),
        ("pp128", 64),
        ("tg8", 32),
        ("pp16+tg4", 32),
        ("pp16+tg4", 64),
    ]


@given(st.integers(1, 2000), st.integers(0, 2000))
def test_chosen_tests_fit_the_context(context: int, depth: int) -> None:
    try:
        tests = SpeedGrid(depths=[depth]).tests(context)
    except RequestError:
        assert depth >= context
    else:
        assert all(0 < test.tokens <= context - test.depth for test in tests)


# Rounds ------------------------------------------------------------------------------------------

TESTS = [SpeedTest(16, 0), SpeedTest(0, 4), SpeedTest(0, 4, threads=2)]


def test_the_models_of_a_test_are_neighbours_and_every_other_round_goes_backwards() -> None:
    models, tests = ["a", "b", "c"], [*TESTS, None]
    there, back = (round_order(models, tests, number) for number in (0, 1))
    assert back == there[::-1]
    assert there == round_order(models, tests, 2) == round_order(models, tests, -2)
    assert [test for _, test in there] == [test for test in tests for _ in models]
    # Whatever grows from step to step: over two rounds every model has met the same of it.
    for test in tests:
        met = {m: there.index((m, test)) + len(there) + back.index((m, test)) for m in models}
        assert len(set(met.values())) == 1


@pytest.fixture
def folders(tiny_folder: ModelFolder) -> dict[str, Path]:
    return {"a": tiny_folder.path, "b": tiny_folder.path}


@pytest.fixture
def remotes(monkeypatch: pytest.MonkeyPatch) -> list[Remote]:
    """Every worker that is started."""
    started: list[Remote] = []

    class Watched(Remote):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            started.append(self)

    monkeypatch.setattr(speed, "Remote", Watched)
    return started


def all_ended(remotes: list[Remote]) -> bool:
    return all(remote._process.returncode is not None for remote in remotes)


def test_rounds_are_kept_without_those_of_warm_up(
    folders: dict[str, Path], remotes: list[Remote]
) -> None:
    events: list[tuple[int, int, str]] = []
    recording = Recording()
    started = time.perf_counter()
    measure(folders, TESTS, 1, recording, warmup=1, on_progress=lambda *event: events.append(event))
    elapsed = time.perf_counter() - started
    assert recording.rounds == 2  # one of each number of threads
    assert recording.samples.keys() == {(name, test) for name in folders for test in TESTS}
    samples = [sample for found in recording.samples.values() for sample in found]
    assert len(samples) == 6
    assert all(0 < sample.seconds < elapsed for sample in samples)
    assert recording.peak_rss_bytes("a") > 10_000_000
    for starts in recording.cold_starts.values():
        assert len(starts) == 1
        assert all(0 < s.load_seconds < s.first_token_seconds < elapsed for s in starts)
    assert [done for done, _, _ in events] == list(range(2 * 2 * (len(TESTS) + 1)))
    assert {total for _, total, _ in events} == {len(events)}
    assert events[-1][2] == "b, tg4, round 1"
    # Two workers for each number of threads, and one fresh process a round of the first.
    assert len(remotes) == 2 + 2 + 2 * 2
    assert all_ended(remotes)


@pytest.mark.usefixtures("no_cold_starts")
def test_tests_of_one_round_are_asked_for_in_its_order(
    folders: dict[str, Path],
) -> None:
    events: list[str] = []
    measure(
        folders,
        TESTS[:2],
        1,
        Recording(),
        on_progress=lambda done, total, what: events.append(what),
    )
    back = [f"{n}, {t}, warm-up" for t in ("first token", "tg4", "pp16") for n in "ba"]
    there = [f"{n}, {t}, round 1" for t in ("pp16", "tg4", "first token") for n in "ab"]
    assert events == [*back, *there]


@pytest.fixture
def no_cold_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the fresh processes of every round, which take most of a short bench."""
    monkeypatch.setattr(speed, "cold_start", lambda *arguments: ColdStart(0.1, 0.2))


def at_step(number: int, action: Callable[[], object]) -> Callable[[int, int, str], None]:
    """A progress callback that does something once."""

    def on_progress(done: int, total: int, what: str) -> None:
        if done == number:
            action()

    return on_progress


@pytest.mark.usefixtures("no_cold_starts")
def test_an_interrupt_keeps_whole_rounds_and_leaves_no_process(
    folders: dict[str, Path], remotes: list[Remote]
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    recording = Recording()
    with pytest.raises(KeyboardInterrupt):
        measure(folders, TESTS[:2], 5, recording, on_progress=at_step(6 + 6 + 3, interrupt))
    assert recording.rounds == 1
    assert {len(found) for found in recording.samples.values()} == {1}
    assert all_ended(remotes)


@pytest.mark.usefixtures("no_cold_starts")
@pytest.mark.parametrize("step", [2, 6 + 2, 6 + 6 + 5])
def test_a_model_whose_process_dies_is_dropped_and_the_other_goes_on(
    folders: dict[str, Path], remotes: list[Remote], step: int
) -> None:
    recording = Recording()

    def kill() -> None:
        os.kill(remotes[0]._process.pid, signal.SIGKILL)

    measure(folders, TESTS[:2], 3, recording, on_progress=at_step(step, kill))
    assert isinstance(recording.failed["a"], WorkerDied)
    assert recording.rounds == 3
    assert recording.samples.keys() == {("b", test) for test in TESTS[:2]}
    assert {len(found) for found in recording.samples.values()} == {3}
    assert recording.cold_starts.keys() == {"b"}
    assert all_ended(remotes)


@pytest.mark.usefixtures("no_cold_starts")
def test_a_model_that_cannot_be_opened_for_want_of_memory_is_dropped(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Small(Remote):
        def __init__(self, name: str, folder: Path, threads: int, variant: Variant) -> None:
            if name == "b":
                raise WorkerDied("b: found its process killed")
            super().__init__(name, folder, threads, variant)

    monkeypatch.setattr(speed, "Remote", Small)
    recording = Recording()
    measure(folders, TESTS[:1], 1, recording)
    assert recording.failed.keys() == {"b"}
    assert recording.samples.keys() == {("a", TESTS[0])}
