"""A second set of weights for prompts: which step takes it, when it is opened and closed.

Against sessions that have one of the two graphs alone, bit for bit.
"""

from __future__ import annotations

import _thread
import dataclasses
import gc
import shutil
import signal
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pocketlm.export.errors import (
    ModelFolderError,
    PocketLMError,
    ProviderError,
    RequestError,
    ResourceError,
)
from pocketlm.export.folder import ModelFolder
from pocketlm.export.manifest import DECODER, INT8_KV_PREFILL, PREFILL_DATA_FILE, PREFILL_DECODER
from pocketlm.export.writing import export_model
from pocketlm.quantize.run import precision_of
from pocketlm.runtime import placement, prefill_choice, standby
from pocketlm.runtime.arena import Cache
from pocketlm.runtime.bound_graph import BoundGraph
from pocketlm.runtime.cancellation import Cancellation, Cancelled
from pocketlm.runtime.engine import onnxruntime
from pocketlm.runtime.model import Model
from pocketlm.runtime.opening import open_graph
from pocketlm.runtime.prefill_choice import PROMPT_TOKENS, choose_prefill
from pocketlm.runtime.providers import CPU, CUDA
from pocketlm.runtime.row_rule import row_group
from pocketlm.runtime.session import Logits, Session
from pocketlm.runtime.standby import IDLE_SECONDS

IDS = [int(number) for number in np.random.default_rng(7).integers(0, 300, 160)]
PROMPT, SHORT = IDS[:PROMPT_TOKENS], IDS[: PROMPT_TOKENS - 1]


@pytest.fixture(scope="module")
def both(prefill_folder: ModelFolder) -> Session:
    """With both sets of weights."""
    return Session(prefill_folder, threads=1, prefill="int8")


@pytest.fixture(scope="module")
def decoder(prefill_folder: ModelFolder) -> Session:
    """With the first set alone."""
    return Session(prefill_folder, threads=1)


class Alone:
    """The graph for prompts, opened by itself."""

    def __init__(self, folder: ModelFolder) -> None:
        engine = open_graph(folder, PREFILL_DECODER, 1, CPU)
        self._graph, self._size = BoundGraph(engine, folder.shape), folder.shape.vocab_size

    def step(self, ids: list[int], cache: Cache) -> Logits:
        out = np.empty(self._size, np.float32)
        self._graph.step(cache, ids, out, Cancellation())
        return out


@pytest.fixture(scope="module")
def prompts(prefill_folder: ModelFolder) -> Alone:
    return Alone(prefill_folder)


def test_a_step_is_computed_by_its_number_of_tokens_alone(
    both: Session, decoder: Session, prompts: Alone
) -> None:
    """Whatever came before, and over the same cache."""
    cache, twin = both.new_cache(), decoder.new_cache()
    for ids in (SHORT, [5], PROMPT, [6], [7, 8]):
        one = prompts if len(ids) >= PROMPT_TOKENS else decoder
        np.testing.assert_array_equal(both.step(ids, cache), one.step(ids, twin))
    for value, other in zip(cache.values(), twin.values(), strict=True):
        np.testing.assert_array_equal(value, other)
    assert not np.array_equal(
        prompts.step(PROMPT, both.new_cache()), decoder.step(PROMPT, both.new_cache())
    )


def test_scores_are_of_the_weights_that_decode(both: Session, decoder: Session) -> None:
    rows = both.all_logits(PROMPT, both.new_cache())
    np.testing.assert_array_equal(rows, decoder.all_logits(PROMPT, decoder.new_cache()))


def test_rows_take_the_weights_that_were_asked_for(
    both: Session, decoder: Session, prompts: Alone
) -> None:
    new, twins = both.new_caches(), [both.new_cache() for _ in range(3)]
    caches = [new() for _ in twins]
    for cache in (*caches, *twins):
        decoder.step(SHORT, cache)
    feeds = [(cache, [number]) for number, cache in enumerate(caches)]
    rows = both.step_together(feeds, prefill=True)
    for number, twin in enumerate(twins):
        np.testing.assert_allclose(rows[number], prompts.step([number], twin), rtol=0.02, atol=0.05)
    lone = both.step_together([(caches[0], [9])], prefill=True)[0]
    np.testing.assert_array_equal(lone, prompts.step([9], _same(caches[0], 1)))


def _same(cache: Cache, but: int) -> Cache:
    made = cache.copy()
    made.truncate(made.length - but)
    return made


def test_without_it_nothing_else_is_ever_opened(
    prefill_folder: ModelFolder, tiny_folder: ModelFolder, opened: list[str]
) -> None:
    """As the first graph is, whatever its steps."""
    for folder, asked in ((prefill_folder, "none"), (tiny_folder, "auto")):
        session = Session(folder, threads=1, prefill=asked)
        caches = [session.new_cache() for _ in range(2)]
        session.step(PROMPT, caches[0])
        session.step_together([(caches[1], [1])], prefill=True)
        assert session.prefill == "none"
    assert opened == [DECODER, DECODER]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The graphs that sessions open from now on."""
    names: list[str] = []

    def counted(folder: ModelFolder, name: str, *others: Any, **more: Any) -> Any:
        names.append(name)
        return open_graph(folder, name, *others, **more)

    monkeypatch.setattr("pocketlm.runtime.session.open_graph", counted)
    return names


def test_two_threads_that_ask_for_it_open_it_once(
    prefill_folder: ModelFolder, opened: list[str]
) -> None:
    session = Session(prefill_folder, threads=1, prefill="auto")
    assert (session.prefill, opened) == ("int8", [DECODER])
    found: list[Logits] = []

    def work() -> None:
        found.append(session.step(PROMPT, session.new_cache()))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened == [DECODER, PREFILL_DECODER]
    assert len(found) == 3 and (found[0] == found[1]).all() and (found[0] == found[2]).all()


def test_it_is_closed_when_idle_and_opened_anew(
    prefill_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch, opened: list[str]
) -> None:
    now = 1000.0
    monkeypatch.setattr(standby, "monotonic", lambda: now)
    session = Session(prefill_folder, threads=1, prefill="int8")
    cache = session.new_cache()
    expected = session.step(PROMPT, cache)
    engine = weakref.ref(session._prompts._graph.engine)  # type: ignore[union-attr]
    assert engine() is not None
    now += IDLE_SECONDS
    session.step([5], cache)
    assert engine() is not None
    seconds, now = session.run_seconds, now + 1
    session.step([5], cache)
    gc.collect()
    assert engine() is None
    assert session.run_seconds > seconds
    np.testing.assert_array_equal(session.step(PROMPT, session.new_cache()), expected)
    assert opened == [DECODER, PREFILL_DECODER, PREFILL_DECODER]


def test_it_goes_with_the_session(prefill_folder: ModelFolder) -> None:
    """At once, and not when Python next looks for what refers to itself."""
    session = Session(prefill_folder, threads=1, prefill="int8")
    session.step(PROMPT, session.new_cache())
    engine = weakref.ref(session._prompts._graph.engine)  # type: ignore[union-attr]
    gc.disable()
    try:
        del session
        assert engine() is None
    finally:
        gc.enable()


def test_one_that_is_cancelled_while_it_opens_leaves_the_session_usable(
    prefill_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another thread, by Ctrl-C, and before it has begun."""
    session = Session(prefill_folder, threads=1, prefill="int8")
    cache = session.new_cache()
    make = onnxruntime.InferenceSession

    def interrupted(begin: Callable[[], object]) -> None:
        def waiting(source: str, options: Any, **more: Any) -> Any:
            begin()
            while not session_is_told.wait(0.01) and not stopping.cancelled:
                pass
            return make(source, options, **more)

        monkeypatch.setattr(onnxruntime, "InferenceSession", waiting)

    session_is_told = threading.Event()
    stopping = Cancellation()
    interrupted(lambda: _thread.start_new_thread(stopping.cancel, ()))
    with pytest.raises(Cancelled):
        session.step(PROMPT, cache, stopping)
    with pytest.raises(Cancelled):
        session.step(PROMPT, cache, stopping)
    stopping = Cancellation()
    interrupted(lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        session.step(PROMPT, cache, stopping)
    monkeypatch.undo()
    assert cache.length == 0
    np.testing.assert_array_equal(
        session.step(PROMPT, cache), session.step(PROMPT, session.new_cache())
    )


@pytest.mark.parametrize("change", ["removed", "replaced", "changed"])
def test_it_is_not_opened_from_other_files_than_there_were(
    prefill_folder: ModelFolder, tiny_folder: ModelFolder, tmp_path: Path, change: str
) -> None:
    """Between the opening of the model and the first long prompt there may be hours."""
    out = tmp_path / "model"
    shutil.copytree(prefill_folder.path, out)
    session = Session(ModelFolder.open(out), threads=1, prefill="int8")
    expected = session.step(SHORT, session.new_cache())
    if change == "removed":
        shutil.rmtree(out)
    elif change == "replaced":  # by a model of the same shape, in other formats
        other = precision_of("int4", head="fp32", prefill=True)
        export_model(tiny_folder, out, other, force=True)
    else:
        data = out / PREFILL_DATA_FILE
        data.write_bytes(data.read_bytes()[::-1])
    cache = session.new_cache()
    with pytest.raises(ModelFolderError, match="since the model was opened.*load it again"):
        session.step(PROMPT, cache)
    assert cache.length == 0
    np.testing.assert_array_equal(session.step(SHORT, cache), expected)


def test_it_is_opened_from_files_that_are_the_same_again(
    prefill_folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copied anew, and named by a path that was relative to where the process was then."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(prefill_folder.path, "model")
    session = Session(ModelFolder.open("model"), threads=1, prefill="int8")
    shutil.rmtree("model")
    shutil.copytree(prefill_folder.path, "model")
    monkeypatch.chdir("/")
    assert session.step(PROMPT, session.new_cache()).shape == (session.shape.vocab_size,)


def test_no_memory_for_it_says_how_to_do_without(
    prefill_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(prefill_folder, threads=1, prefill="int8")

    def full(*_: Any, **__: Any) -> None:
        raise MemoryError("bad allocation")

    monkeypatch.setattr(onnxruntime, "InferenceSession", full)
    with pytest.raises(ResourceError, match="opening the weights for prompts.*--prefill none"):
        session.step(PROMPT, session.new_cache())
    monkeypatch.undo()
    session.step(PROMPT, session.new_cache())


def test_auto_takes_it_where_memory_is_free(
    prefill_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = prefill_choice.ROOM * prefill_folder.prefill_memory_bytes
    for free, name in ((None, "int8"), (needed, "int8"), (needed - 1, "none")):
        monkeypatch.setattr(prefill_choice, "free_bytes", lambda free=free: free)
        choice = choose_prefill(prefill_folder, "auto")
        assert (choice.name, choice.note is None) == (name, name == "int8")
        assert choose_prefill(prefill_folder, "int8").name == "int8"
    assert "--prefill int8 insists" in str(choice.note)


def test_what_a_folder_does_not_have_is_refused_with_what_to_type(
    tiny_folder: ModelFolder, prefill_folder: ModelFolder
) -> None:
    with pytest.raises(RequestError, match="export CHECKPOINT OUT --precision fp32 --prefill int8"):
        Session(tiny_folder, threads=1, prefill="int8")
    with pytest.raises(RequestError, match="prefill is 'int4', expected one of: auto, int8, none"):
        Session(prefill_folder, threads=1, prefill="int4")
    graphs = {
        name: graph
        for name, graph in prefill_folder.manifest.graphs.items()
        if name != INT8_KV_PREFILL
    }
    manifest = dataclasses.replace(prefill_folder.manifest, graphs=graphs)
    folder = ModelFolder(prefill_folder.path, manifest)
    with pytest.raises(RequestError, match="expected prefill-int8-kv; .* or leave out --kv int8"):
        choose_prefill(folder, "int8", kv="int8")
    assert choose_prefill(folder, "auto", kv="int8").name == "none"


def test_on_cuda_there_is_none(
    prefill_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose_prefill(prefill_folder, "auto", CUDA).name == "none"
    with pytest.raises(ProviderError, match="found prefill 'int8', expected none or auto"):
        choose_prefill(prefill_folder, "int8", CUDA)
    assert "int8-channel" not in prefill_folder.decoder_formats
    monkeypatch.setattr(placement, "has_cuda_build", lambda: True)
    with pytest.warns(UserWarning, match="running on the CPU: found prefill 'int8'"):
        session, fallback = placement.open_session(prefill_folder, 1, "auto", prefill="int8")
    assert (session.prefill, session.place) == ("int8", CPU)


# Over a cache of int8 -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both_int8(prefill_folder: ModelFolder) -> Session:
    """Both sets of weights, over a cache of int8."""
    return Session(prefill_folder, threads=1, kv="int8", prefill="int8")


def test_steps_over_int8_are_near_those_over_float32(both_int8: Session, both: Session) -> None:
    """Of either graph, each after the other's rows; what is kept is the same but for rounding."""
    cache, exact = both_int8.new_cache(), both.new_cache()
    for ids in (PROMPT, [5], IDS[70:140]):
        found, near = both_int8.step(ids, cache), both.step(ids, exact)
        assert np.abs(found - near).max() < 0.1 * np.abs(near).max()
    assert cache.length == exact.length == 135
    for value, other in zip(cache.values(), exact.values(), strict=True):
        assert value.dtype == np.int8
        assert np.corrcoef(value.ravel(), other.ravel())[0, 1] > 0.95


def test_chunks_over_int8_that_are_shared_change_no_bit(both_int8: Session) -> None:
    """Beside a row that grows meanwhile, so that the arena is allocated anew."""
    new = both_int8.new_caches()
    whole, first = new(), new()
    for cache in (whole, first):
        both_int8.step(PROMPT, cache)
    second = first.copy()
    first.truncate(10)
    expected = both_int8.step(IDS[64:150], whole)
    np.testing.assert_array_equal(both_int8.step(IDS[64:150], second), expected)
    for value, other in zip(whole.values(), second.values(), strict=True):
        np.testing.assert_array_equal(value, other)
    assert first.length == 10


def test_a_step_over_int8_that_fails_leaves_the_cache_as_it_was(
    both_int8: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, stopping = both_int8.new_cache(), Cancellation()
    both_int8.step(PROMPT, cache)
    held = [value.copy() for value in cache.values()]
    stopping.cancel()
    with pytest.raises(Cancelled):
        both_int8.step(PROMPT, cache, stopping)

    def broken(*_: Any) -> None:
        raise RuntimeError("of a kernel")

    monkeypatch.setattr(BoundGraph, "_run_bound", broken)
    with pytest.raises(PocketLMError, match="of a kernel"):
        both_int8.step(PROMPT, cache)
    monkeypatch.undo()
    assert cache.length == PROMPT_TOKENS
    for value, before in zip(cache.values(), held, strict=True):
        np.testing.assert_array_equal(value, before)


def test_rows_over_int8_stay_with_the_weights_that_decode(
    both_int8: Session, prefill_folder: ModelFolder
) -> None:
    assert not both_int8.prefills_rows
    plain = Session(prefill_folder, threads=1, kv="int8")
    cache, other = both_int8.new_cache(), plain.new_cache()
    for number in range(3):
        rows = both_int8.step_together([(cache, [number])], prefill=True)
        np.testing.assert_array_equal(rows[0], plain.step([number], other))
    unused = Session(prefill_folder, threads=1, kv="int8", prefill="int8")
    assert row_group(unused) == row_group(plain)
    assert unused._prompts is not None and not unused._prompts.is_open


# Of a model ---------------------------------------------------------------------------------------


def test_a_batch_takes_it_from_where_it_is_faster(
    prefill_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless it is to be reproducible: then always, in whatever company."""
    monkeypatch.setattr("pocketlm.runtime.row_rule.crossing", lambda session: 3)
    model = Model(prefill_folder, threads=1, prefill="int8", prefix_cache_bytes=0)
    asked: list[tuple[int, bool]] = []
    step = Session.step_together

    def noted(self: Session, feeds: Any, *others: Any, **more: Any) -> Logits:
        if len(feeds[0][1]) == 1:
            asked.append((len(feeds), more.get("prefill", False)))
        return step(self, feeds, *others, **more)

    prompts: list[list[int]] = [[n, 5] for n in range(4)]
    model._row_rule.reproducible()
    monkeypatch.setattr(Session, "step_together", noted)
    leaving = [{"prompt": ids, "max_tokens": 3 + 2 * n} for n, ids in enumerate(prompts)]
    greedy: dict[str, Any] = {"temperature": 0, "ignore_eos": True}
    list(model.generate_many(leaving, reproducible=False, **greedy))
    assert {prefill for rows, prefill in asked if rows < 3} == {False}
    assert {prefill for rows, prefill in asked if rows >= 3} == {True}
    asked.clear()
    list(model.generate_many(leaving, **greedy))
    options = {"max_tokens": 6, **greedy}
    model.generate(prompts[0], reproducible=True, **options)
    model.submit(prompts[0], **options).result(60)
    assert {prefill for _, prefill in asked} == {True}
    assert {rows for rows, _ in asked} >= {1, 2, 3, 4}
    asked.clear()
    model.generate(prompts[0], **options)
    assert asked == []


def test_where_it_crosses_is_found_by_halving(
    both: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pocketlm.runtime import crossing

    for least in (*crossing.COUNTS, 99):
        monkeypatch.setattr(
            crossing, "_prefill_wins", lambda session, caches, least=least: len(caches) >= least
        )
        assert crossing.crossing(both) == (least if least < 99 else None)
    monkeypatch.undo()
    assert crossing.crossing(both) in (*crossing.COUNTS, None)


@pytest.mark.parametrize("kv", ["fp32", "int8"])
def test_company_changes_no_bit_of_a_text(
    prefill_folder: ModelFolder, tmp_path: Path, kv: str
) -> None:
    """Of several after one prompt, of a prompt from a file, and of one whose context slides."""
    model = Model(prefill_folder, threads=1, kv=kv, prefill="int8")
    options: dict[str, Any] = {"max_tokens": 70, "ignore_eos": True, "logprobs": True, "seed": 1}
    options["context"] = "slide"
    prompts = [IDS[:100], [*IDS[:64], *IDS[20:40]], [5], IDS[:100]]
    together = {one.index: one for one in model.generate_many(prompts, **options)}
    alone = []
    for number, prompt in enumerate(prompts):
        model.prefix_cache.clear()
        alone.append(model.generate(prompt, reproducible=True, **options))
        assert together[number].logprobs == alone[-1].logprobs
    assert alone[0].timings.slides == 1
    several = model.completions(prompts[0], 2, **options)
    assert several[0].logprobs == alone[0].logprobs
    options |= {"max_tokens": 9, "prompt_cache": tmp_path / "prompt"}
    for reused in (0, 100):
        found = model.generate(prompts[0], reproducible=True, **options)
        assert found.logprobs == (alone[0].logprobs or [])[:9]
        assert found.timings.reused_tokens == reused
