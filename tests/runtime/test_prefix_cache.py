"""Prompts kept in memory: the tokens of a model that keeps none, in bounded bytes."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pocketlm
from pocketlm.export.errors import NumericsError, RequestError
from pocketlm.export.folder import ModelFolder
from pocketlm.runtime.chunks import Chunked, cuts
from pocketlm.runtime.decode import begin, generate, steps
from pocketlm.runtime.model import Model
from pocketlm.runtime.prefix_cache import MOST_BYTES, PrefixCache
from pocketlm.runtime.request import GREEDY, Request
from pocketlm.runtime.row_rule import RowSteps
from pocketlm.runtime.sampling import SamplingOptions
from pocketlm.runtime.scheduler import Job, Scheduler
from pocketlm.runtime.sequence import Sequence
from pocketlm.runtime.session import Session

IDS = [int(number) for number in np.random.default_rng(19).integers(0, 299, 160)]
GENEROUS = 1 << 24


@pytest.fixture
def model(tiny_folder: ModelFolder) -> Model:
    """One that remembers."""
    return pocketlm.Model(tiny_folder, threads=1)


def run_alone(session: Session, prefixes: PrefixCache | None, ids: list[int]) -> Sequence:
    """Three tokens after ``ids``, in chunks of 16; it is kept at the end."""
    sequence = begin(session, Request(ids, GREEDY, 3, logprobs=3, chunk_size=16), None, prefixes)
    sequence_steps = list(steps(session, sequence))
    assert [step.token for step in sequence_steps] == sequence.token_ids[len(ids) :]
    if prefixes is not None:
        prefixes.keep(sequence)
    return sequence


prompts = st.tuples(st.sampled_from([0, 16, 33, 48]), st.integers(60, 62), st.integers(0, 40)).map(
    lambda place: (IDS[: place[0]] + IDS[place[1] :][: place[2]]) or [7]
)
asked = st.fixed_dictionaries(
    {"prompt": prompts, "limit": st.integers(1, 6), "seed": st.integers(0, 3)}
)


@pytest.mark.parametrize("kv", ["fp32", "int8"])
@settings(max_examples=20, deadline=None)
@given(
    several=st.lists(asked, min_size=1, max_size=10),
    rows=st.integers(1, 4),
    most=st.sampled_from([0, 30_000, GENEROUS]),
)
def test_what_is_kept_changes_no_bit(
    kv: str,
    several: list[dict[str, Any]],
    rows: int,
    most: int,
    tiny_session: Session,
    int8_kv_session: Session,
    tiny_model: Model,
) -> None:
    """Together and one after another, all by one cache that is as small as may be."""
    session = int8_kv_session if kv == "int8" else tiny_session
    prefixes = PrefixCache(session.kv_bytes_per_token, most)
    scheduler, jobs = Scheduler(session, RowSteps(None), rows, prefixes=prefixes), []
    for number, one in enumerate(several):
        sampling = SamplingOptions(seed=one["seed"])
        request = Request(one["prompt"], sampling, one["limit"], logprobs=2, chunk_size=16)
        jobs.append(Job(request, tiny_model.tokenizer, number))
        scheduler.add(jobs[-1])
    while not scheduler.is_idle:
        scheduler.step()
        assert prefixes.num_bytes <= most
    for job in jobs:
        expected = list(generate(session, job.request))
        found = list(steps(session, begin(session, job.request, None, prefixes)))
        result = job.result()
        assert result.token_ids == [step.token for step in expected]
        assert result.logprobs == [step.logprob for step in expected]
        assert result.top_logprobs == [step.top for step in expected]
        for step, other in zip(found, expected, strict=True):
            assert (step.token, step.logprob, step.top) == (other.token, other.logprob, other.top)
        if most == GENEROUS:
            again = begin(session, job.request, None, prefixes)
            length = len(job.prompt_ids)
            assert again.num_reused == (length if length > 1 else 0)


@pytest.mark.parametrize("running", [True, False])
def test_the_beginning_of_a_longer_prompt_gets_its_own_logits(
    tiny_model: Model, tiny_session: Session, running: bool
) -> None:
    """It ends where a chunk of the longer one did, but what was kept follows that one's end."""
    prefixes = PrefixCache(tiny_session.kv_bytes_per_token, GENEROUS)
    scheduler, jobs = Scheduler(tiny_session, prefixes=None if running else prefixes), []
    for number, count in enumerate((61, 48)):
        request = Request(IDS[:count], GREEDY, 30, logprobs=1, chunk_size=16)
        jobs.append(Job(request, tiny_model.tokenizer, number))
        scheduler.add(jobs[-1])
        while not running and not scheduler.is_idle:
            scheduler.step()
    while not scheduler.is_idle:
        scheduler.step()
    assert [job.timings.reused_tokens for job in jobs] == [0, 32]
    for job in jobs:
        expected = list(generate(tiny_session, job.request))
        assert job.token_ids == [step.token for step in expected]
        assert job.result().logprobs == [step.logprob for step in expected]


@pytest.mark.parametrize(
    "ids, ends, found",
    [
        (range(10), [4, 8, 10], 10),
        (range(9), [4, 9], 4),
        (range(8), [4, 8], 4),  # the logits are those after 10
        (range(12), [4, 8, 12], 8),
        (range(12), [6, 12], 0),
        ([0, 1, 2, 3, 4, 9, 6, 7, 8, 9], [4, 8, 10], 4),
        ([9, 1, 2, 3, 4], [4, 5], 0),
    ],
)
def test_what_two_prompts_share(ids: Any, ends: list[int], found: int) -> None:
    kept = Chunked(tuple(range(10)), (4, 8, 10), np.zeros(3, np.float32))
    prompt = Chunked(list(ids), ends)
    assert kept.shared(prompt) == found
    without = Chunked(kept.token_ids, kept.ends)
    assert without.shared(prompt) == min(found, 8)


def test_who_was_used_least_goes_first(tiny_session: Session) -> None:
    size = 20 * tiny_session.kv_bytes_per_token + 4 * 300
    prefixes = PrefixCache(tiny_session.kv_bytes_per_token, 3 * size)
    prompts = [[number, *IDS[:19]] for number in range(5)]
    for prompt in prompts[:3]:
        run_alone(tiny_session, prefixes, prompt)
    assert (len(prefixes), prefixes.num_bytes, prefixes.hits, prefixes.misses) == (
        3,
        3 * size,
        0,
        3,
    )
    assert run_alone(tiny_session, prefixes, prompts[0]).num_reused == 20
    run_alone(tiny_session, prefixes, prompts[3])  # in the place of the second

    def reused(prompt: list[int]) -> int:
        request = Request(prompt, GREEDY, 3, chunk_size=16)
        return begin(tiny_session, request, None, prefixes).num_reused

    assert [reused(prompt) for prompt in prompts] == [20, 0, 20, 20, 0]
    assert (prefixes.hits, prefixes.reused_tokens) == (4, 80)
    run_alone(tiny_session, prefixes, IDS[:100])  # larger than all there is
    assert len(prefixes) == 3
    prefixes.clear()
    assert (len(prefixes), prefixes.num_bytes, reused(prompts[0])) == (0, 0, 0)


def test_generate_stream_submit_and_generate_many_share_what_is_kept(model: Model) -> None:
    options: dict[str, Any] = {"max_tokens": 4, "temperature": 0}
    first = model.generate(IDS[:30], **options)
    assert first.timings.reused_tokens == 0
    others = [model.generate(IDS[:30], **options), model.submit(IDS[:30], **options).result()]
    others += list(model.generate_many([IDS[:30]] * 2, **options))
    for other in others:
        assert (other.token_ids, other.timings.reused_tokens) == (first.token_ids, 30)
    assert (len(model.prefix_cache), model.prefix_cache.hits) == (1, 3)  # one copied the other
    assert model.generate(IDS[:30], cache=model.new_cache(), **options).timings.reused_tokens == 0


def test_threads_share_it(model: Model) -> None:
    prompts = [IDS[:n] for n in (20, 30, 20, 30, 25)]
    options: dict[str, Any] = {"max_tokens": 5, "temperature": 0}
    expected = [model.generate(prompt, **options).token_ids for prompt in prompts]
    found: dict[int, list[list[int]]] = {}

    def work(number: int) -> None:
        model.prefix_cache.clear()
        found[number] = [model.generate(prompt, **options).token_ids for prompt in prompts]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(found.values()) == [expected] * 4


def test_what_a_failed_request_computed_is_not_kept(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = Sequence.take
    monkeypatch.setattr(Sequence, "take", lambda self, logits: take(self, logits * np.nan))
    (result,) = model.generate_many([IDS[:20]])
    assert isinstance(result.error, NumericsError)
    with pytest.raises(NumericsError):
        model.generate(IDS[:20])
    assert len(model.prefix_cache) == 0


def test_the_bytes_are_bounded_where_nobody_says(model: Model, tiny_folder: ModelFolder) -> None:
    assert 0 < model.prefix_cache.most_bytes <= MOST_BYTES
    off = pocketlm.load(tiny_folder.path, threads=1, prefix_cache_bytes=0)
    for _ in range(2):
        assert off.generate("a", max_tokens=2).timings.reused_tokens == 0
    for wrong in (-1, 1.5, "1", True):
        with pytest.raises(RequestError, match="prefix_cache_bytes is .*, expected an integer"):
            PrefixCache(1, wrong)  # type: ignore[arg-type]


def test_without_memory_for_a_copy_nothing_is_kept(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("pocketlm.runtime.prefix_cache.prompt_prefix", none)
    assert model.generate(IDS[:20], max_tokens=3).token_ids
    assert len(model.prefix_cache) == 0


def test_a_prompt_is_cut_as_it_would_be_without() -> None:
    """The premise: whatever was kept at a common end, the rest is cut in the same places."""
    for count in range(1, 120):
        whole = cuts(count, 16)
        for end in whole[:-1]:
            assert [end + cut for cut in cuts(count - end, 16)] == whole[whole.index(end) + 1 :]
