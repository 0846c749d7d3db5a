"""Many requests at once: each gets the tokens that it gets alone, and all of them come back."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import dataclasses
import os
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from checkpoint_files import gpt2_config, write_checkpoint
from forks import in_a_fork
from hypothesis import given, settings
from hypothesis import strategies as st

import pocketlm
from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.errors import NumericsError, RequestError, ResourceError
from pocketlm.export.folder import ModelFolder
from pocketlm.export.writing import export_model
from pocketlm.runtime.arena import FIRST_CAPACITY, Arena
from pocketlm.runtime.bound_graph import BoundGraph
from pocketlm.runtime.crossing import crossing
from pocketlm.runtime.decode import Batch, generate
from pocketlm.runtime.model import Model
from pocketlm.runtime.request import GREEDY, Request
from pocketlm.runtime.row_rule import PLAIN, row_group
from pocketlm.runtime.sampling import SamplingOptions
from pocketlm.runtime.scheduler import Job, Scheduler
from pocketlm.runtime.sequence import Sequence as Running
from pocketlm.runtime.session import Session

IDS = [int(number) for number in np.random.default_rng(11).integers(0, 299, 300)]
OPTIONS = (
    {"temperature": 0},
    {"temperature": 0.9, "seed": 3},
    {"temperature": 0.7, "seed": 4, "top_p": 0.8, "repetition_penalty": 1.2},
    {"temperature": 0, "logprobs": 2},
)


def twin(session: Session, prompt: Sequence[int], limit: int) -> list[int]:
    """Greedy tokens, each from an empty cache: no batch, no chunk, no scheduler."""
    ids = list(prompt)
    for _ in range(limit):
        ids.append(int(session.step(ids, session.new_cache()).argmax()))
    return ids[len(prompt) :]


asked = st.fixed_dictionaries(
    {
        "prompt": st.tuples(st.integers(0, 3), st.integers(1, 60)).map(
            lambda place: IDS[place[0] * 20 :][: place[1]]
        ),
        "max_tokens": st.integers(1, 12),
        "options": st.sampled_from(OPTIONS),
    }
)


@settings(max_examples=30, deadline=None)
@given(st.lists(asked, min_size=1, max_size=9), st.integers(1, 5), st.integers(4, 70))
def test_company_and_order_change_no_token(
    tiny_model: Model, requests: list[dict[str, Any]], rows: int, chunk_size: int
) -> None:
    """Prompts that begin alike among them; ends that come at once, and long ones."""
    many = [{"prompt": r["prompt"], "max_tokens": r["max_tokens"]} | r["options"] for r in requests]
    found = list(tiny_model.generate_many(many, rows=rows, ignore_eos=True))
    assert sorted(result.index for result in found) == list(range(len(many)))
    for result in found:
        alone = tiny_model.generate(**many[result.index], ignore_eos=True, reproducible=True)
        assert result.token_ids == alone.token_ids
        assert (result.text, result.finish_reason) == (alone.text, alone.finish_reason)
        assert result.logprobs == alone.logprobs and result.top_logprobs == alone.top_logprobs


def test_the_twin_without_a_scheduler_gives_the_same_tokens(tiny_model: Model) -> None:
    prompts = [IDS[i : i + 5 + 7 * i] for i in range(7)]
    many = tiny_model.generate_many(prompts, temperature=0, max_tokens=9, ignore_eos=True)
    for result in many:
        assert result.token_ids == twin(tiny_model.session, prompts[result.index], 9)


def test_results_come_as_they_finish_and_requests_are_taken_as_there_is_room(
    tiny_model: Model,
) -> None:
    taken = []

    def requests() -> Any:
        for index, limit in enumerate((30, 2, 3, 2, 2, 2)):
            taken.append(index)
            yield {"prompt": IDS[index : index + 4], "max_tokens": limit}

    order = []
    for result in tiny_model.generate_many(requests(), rows=2, temperature=0, ignore_eos=True):
        order.append(result.index)
        assert len(taken) <= len(order) + 3  # two that run, and one that waits
    assert order == [1, 2, 3, 4, 5, 0]


def test_short_prompts_join_at_once_and_long_ones_a_chunk_a_step(tiny_model: Model) -> None:
    """The long one is cut into chunks of 40, and the room of a step is ``CHUNK_SIZE``."""
    lengths = [5, 100, 150, 1, 120, 3, 3]
    scheduler, jobs = Scheduler(tiny_model.session), []
    for number, length in enumerate(lengths):
        prompt = [number, *IDS[: length - 1]]
        jobs.append(Job(Request(prompt, GREEDY, 9, chunk_size=160), tiny_model.tokenizer, number))
        scheduler.add(jobs[-1])
    begun = []
    for _ in range(4):
        scheduler.step()
        begun.append([job.index for job in jobs if job.token_ids])
    assert begun[:3] == [[0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6]]
    while not scheduler.is_idle:
        scheduler.step()
    for job in jobs:
        alone = [step.token for step in generate(tiny_model.session, job.request)]
        assert job.token_ids == alone
    cut = Scheduler(tiny_model.session)
    long, short = (
        Job(Request(ids, GREEDY, 2, chunk_size=40), tiny_model.tokenizer, 0)
        for ids in (IDS[:100], IDS[50:55])
    )
    for job in (long, short):
        cut.add(job)
    steps = 0
    while not short.token_ids:
        cut.step()
        steps += 1
    assert steps == 3 and long.token_ids  # chunks of 40, 40 and 20, and then the short one


def test_who_makes_requests_slowly_holds_up_nobody(
    tiny_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time stands still but where a request is made."""
    now, taken = [0.0], []
    monkeypatch.setattr(
        "pocketlm.runtime.scheduler.time", SimpleNamespace(perf_counter=lambda: now[0])
    )

    def slowly() -> Any:
        for index in range(6):
            now[0] += 1.0
            taken.append(index)
            yield {"prompt": IDS[index : index + 4], "max_tokens": 1}

    first = next(tiny_model.generate_many(slowly(), temperature=0))
    assert (first.index, taken) == (0, [0])


def test_a_prompt_that_begins_alike_is_not_computed_twice(
    tiny_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = []
    step = BoundGraph._bind_one

    def counted(self: BoundGraph, cache: Any, ids: Any) -> None:
        fed.append(len(ids))
        step(self, cache, ids)

    monkeypatch.setattr(BoundGraph, "_bind_one", counted)
    prompt, session = IDS[:61], tiny_model.session
    asked = [prompt, prompt, [*prompt, 7], [*prompt[:40], 8, 9], [5, *prompt]]
    scheduler, jobs = Scheduler(session), []
    for number, ids in enumerate(asked):
        request = Request(ids, SamplingOptions(seed=number), 5, chunk_size=16)
        jobs.append(Job(request, tiny_model.tokenizer, number))
        scheduler.add(jobs[-1])
    while not scheduler.is_idle:
        scheduler.step()
    assert [job.timings.reused_tokens for job in jobs] == [0, 61, 48, 32, 0]
    assert [n for n in fed if n > 1] == [16, 16, 16, 13, 14, 10, 16, 16, 16, 14]
    for job in jobs:
        alone = list(generate(session, job.request))
        assert job.token_ids == [step.token for step in alone]


def test_the_bytes_of_a_cache_are_a_bound(tiny_model: Model) -> None:
    """Requests that would not fit beside the others wait; one that never fits runs alone."""
    session = tiny_model.session
    per_token = session.kv_bytes_per_token
    assert per_token == 4 * session.shape.kv_numbers_per_token
    scheduler = Scheduler(session, PLAIN, 8, kv_bytes=3 * 20 * per_token)
    jobs = [Job(Request(IDS[:10], GREEDY, 11), tiny_model.tokenizer, i) for i in range(8)]
    for job in jobs:
        scheduler.add(job)
    most = 0
    while not scheduler.is_idle:
        scheduler.step()
        most = max(most, len(scheduler._running))
    assert most == 3 and all(len(job.result().token_ids) == 11 for job in jobs)
    large = Job(Request(IDS[:100], GREEDY, 3), tiny_model.tokenizer)
    scheduler.add(large)
    while not scheduler.is_idle:
        scheduler.step()
    assert len(large.result().token_ids) == 3


def test_a_request_that_fails_is_told_and_changes_nobody_elses_tokens(
    tiny_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [IDS[i * 10 : i * 10 + 6] for i in range(4)]
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 8, "ignore_eos": True}
    expected = [tiny_model.generate(prompt, **options).token_ids for prompt in prompts]
    take = Running.take

    def broken(self: Running, logits: Any) -> Any:
        spoilt = self.request.prompt_ids == tuple(prompts[2]) and self.num_new == 3
        return take(self, logits * np.nan if spoilt else logits)

    monkeypatch.setattr(Running, "take", broken)
    for result in tiny_model.generate_many(prompts, **options):
        if result.index == 2:
            assert result.finish_reason == "error" and isinstance(result.error, NumericsError)
            assert result.token_ids == expected[2][:3]
        else:
            assert (result.token_ids, result.error) == (expected[result.index], None)


@pytest.mark.parametrize(
    "asked, message",
    [
        (["a", 5], r"requests\[1\]: prompt is 5 .*, expected a string"),
        ([{"prompt": "a", "top_k": -1}], r"requests\[0\]: top_k is -1, expected"),
        ([{"prompt": "a", "topk": 3}], r"requests\[0\]: found the option 'topk', expected one of"),
        (["a", [400]], r"requests\[1\]: prompt has the token id 400"),
        (["a", Request([400])], r"requests\[1\]: .*400, expected"),  # of another model
        (["a", Request([5] * 161)], r"requests\[1\]: .*161"),
        ("abc", "requests is 'abc' of type str, expected several"),
        ({"prompt": "a"}, "requests is {'prompt': 'a'} of type dict, expected several"),
        (None, "requests is None of type NoneType, expected several"),
    ],
)
def test_a_request_that_is_none_is_named(tiny_model: Model, asked: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        list(tiny_model.generate_many(asked, max_tokens=2))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rows": 0}, "rows is 0, expected an integer from 1 to 32"),
        ({"rows": 33}, "rows is 33, expected an integer from 1 to 32"),
        ({"kv_bytes": -1}, "kv_bytes is -1, expected an integer from 0 up"),
        ({"kv_bytes": 1.5}, "kv_bytes is 1.5, expected an integer from 0 up"),
    ],
)
def test_a_wrong_bound_is_refused(tiny_model: Model, options: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        next(tiny_model.generate_many(["a"], **options))


def test_a_generation_that_nobody_follows_frees_its_rows(tiny_model: Model) -> None:
    batch = Batch(tiny_model.session)
    sequence = batch.join(Request(IDS[:20], GREEDY, 50))
    batch.step()
    assert len(batch) == 1
    batch.leave(sequence)
    assert len(batch) == 0 and batch.step() == []


@pytest.mark.parametrize("name", ["lookup", "reproducible", "ignore_eos"])
@pytest.mark.parametrize("value", ["no", 0, None])
def test_a_switch_is_a_truth_value(tiny_model: Model, name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=f"{name} is .*, expected True or False"):
        tiny_model.stream("a", **{name: value})


# In the background ------------------------------------------------------------------------------


def test_submitted_jobs_give_what_they_give_alone(tiny_model: Model) -> None:
    prompts = [IDS[i * 9 : i * 9 + 3 + i] for i in range(6)]
    options: dict[str, Any] = {"temperature": 0.8, "seed": 5, "max_tokens": 10}
    expected = [tiny_model.generate(p, **options, reproducible=True).text for p in prompts]
    jobs = [tiny_model.submit(prompt, **options) for prompt in prompts]
    assert ["".join(piece.text for piece in job) for job in jobs] == expected
    assert [job.result().text for job in jobs] == expected
    assert all(job.done for job in jobs)


def test_a_job_is_cancelled_within_a_token(tiny_model: Model) -> None:
    job = tiny_model.submit(IDS[:5], max_tokens=150, ignore_eos=True, temperature=0)
    other = tiny_model.submit(IDS[:4], max_tokens=20, ignore_eos=True, temperature=0)
    pieces = iter(job)
    next(pieces)
    job.cancel()
    rest = list(pieces)
    result = job.result(timeout=30)
    assert result.finish_reason == "cancelled" and len(result.token_ids) < 150
    assert sum(len(piece.steps) for piece in rest) == len(result.token_ids) - 1
    assert len(other.result(timeout=30).token_ids) == 20


def test_a_job_that_waits_can_be_cancelled(tiny_model: Model) -> None:
    scheduler = Scheduler(tiny_model.session, most_rows=1)
    first, second = (Job(Request(IDS[:4], GREEDY, 5), tiny_model.tokenizer, i) for i in (0, 1))
    scheduler.add(first)
    scheduler.add(second)
    scheduler.step()
    second.cancel()
    assert scheduler.step() == [second] and second.result().finish_reason == "cancelled"
    while not scheduler.is_idle:
        scheduler.step()
    assert first.result().finish_reason == "length"


@pytest.mark.parametrize("seconds", [0, 0.0])
def test_a_time_limit_ends_a_request(tiny_model: Model, seconds: float) -> None:
    alone = tiny_model.generate(IDS[:5], max_tokens=100, max_seconds=seconds, ignore_eos=True)
    assert (alone.finish_reason, len(alone.token_ids)) == ("timeout", 1)
    (result,) = tiny_model.generate_many([IDS[:5]], max_seconds=seconds, ignore_eos=True)
    assert result.finish_reason == "timeout"


@pytest.mark.parametrize("seconds", [-1, float("nan"), "3", True])
def test_a_wrong_time_limit_is_refused(tiny_model: Model, seconds: Any) -> None:
    with pytest.raises(RequestError, match="max_seconds is .*, expected a number of seconds"):
        tiny_model.stream("a", max_seconds=seconds)


def test_a_job_waits_no_longer_than_told(tiny_model: Model) -> None:
    job = Job(Request(IDS[:4], GREEDY, 5), tiny_model.tokenizer)
    with pytest.raises(TimeoutError, match="has not ended within 0.01 seconds"):
        job.result(timeout=0.01)


def test_memory_that_runs_out_is_told_to_everyone_who_waits(
    tiny_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_: Any, **__: Any) -> Any:
        raise ResourceError("found no memory, expected some; close something")

    with monkeypatch.context() as patch:
        patch.setattr(Batch, "step", none_left)
        jobs = [tiny_model.submit(IDS[: 3 + i], max_tokens=5) for i in range(3)]
        for job in jobs:
            with pytest.raises(ResourceError, match="found no memory"):
                job.result(timeout=30)
    assert tiny_model.submit(IDS[:3], max_tokens=5, ignore_eos=True).result(30).token_ids


def test_a_request_that_cannot_begin_ends_alone(
    tiny_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is wrong: nobody would wait for ever, nor lose a token."""
    join = Batch.join

    def failing(self: Batch, request: Request) -> Running:
        if len(request.prompt_ids) == 4:
            raise MemoryError("for a sampler")
        return join(self, request)

    prompts = [IDS[:3], IDS[:4], IDS[:5]]
    options: dict[str, Any] = {"max_tokens": 5, "ignore_eos": True}
    monkeypatch.setattr(Batch, "join", failing)
    jobs = [tiny_model.submit(prompt, **options) for prompt in prompts]
    with pytest.raises(ResourceError, match="beginning with a request: found"):
        jobs[1].result(timeout=30)
    assert [len(jobs[i].result(timeout=30).token_ids) for i in (0, 2)] == [5, 5]
    found = {one.index: one for one in tiny_model.generate_many(prompts, **options)}
    assert [found[i].finish_reason for i in range(3)] == ["length", "error", "length"]


def test_a_step_that_failed_can_be_taken_again(
    tiny_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the step of another one, which joins, had not: no token of either is lost."""
    rows, calls = Batch._step, []

    def failing(self: Batch, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise ResourceError("found no memory, expected some; close something")
        return rows(self, *arguments)

    monkeypatch.setattr(Batch, "_step", failing)
    scheduler = Scheduler(tiny_model.session)
    jobs = [Job(Request(IDS[: 4 + i], GREEDY, 6), tiny_model.tokenizer, i) for i in range(2)]
    for job in jobs:
        scheduler.add(job)
    for _ in range(20):
        with contextlib.suppress(ResourceError):
            scheduler.step()
    tokens = {job.index: job.result(timeout=0).token_ids for job in jobs}
    assert tokens == {i: twin(tiny_model.session, IDS[: 4 + i], 6) for i in range(2)}
    assert len(calls) > 1


def test_a_thread_that_dies_at_birth_is_told(
    tiny_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("pocketlm.runtime.scheduler.BIRTH_SECONDS", 0.01)
        patch.setattr("_thread.start_new_thread", lambda *_: 0)
        with pytest.raises(ResourceError, match="a thread for jobs: found"):
            tiny_model.submit(IDS[:3], max_tokens=3)
    assert tiny_model.submit(IDS[:3], max_tokens=3).result(timeout=30).token_ids


def threads_without_jobs(model: Model) -> int:
    """How many threads there are, once that of the jobs had time to end."""
    for _ in range(500):
        if not model._background._at_work:
            break
        time.sleep(0.01)
    time.sleep(0.01)
    return _thread._count()


def test_the_thread_ends_when_there_is_nothing_to_do(tiny_model: Model) -> None:
    before = threads_without_jobs(tiny_model)
    tiny_model.submit(IDS[:100], max_tokens=3).result(timeout=30)
    for _ in range(500):  # what does nothing any more may still be ending
        if threads_without_jobs(tiny_model) <= before:
            break
    assert threads_without_jobs(tiny_model) <= before
    assert len(threading.enumerate()) <= before + 1  # nor does anything look like one
    assert tiny_model.submit("a", max_tokens=3).result(timeout=30).token_ids


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize(
    "ask",
    [
        lambda model: model.submit("a"),
        lambda model: list(model.generate_many(["a"])),
        lambda model: list(model.generate_many(["a"], reproducible=False)),
        lambda model: model.generate("a"),
    ],
)
def test_a_fork_while_jobs_run_is_refused(tiny_folder: ModelFolder, ask: Any) -> None:
    """Where their thread is not, and may have held what others wait for."""
    model = Model(tiny_folder, threads=1)
    job = model.submit(IDS[:5], max_tokens=150, ignore_eos=True)
    with model.prefix_cache._lock:
        said = in_a_fork(lambda: (ask(model), None)[1], 2.0)
    assert said.startswith(b"PocketLMError: this model was loaded by process")
    job.cancel()
    job.result(timeout=30)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("wait", [lambda job: job.result(), lambda job: next(iter(job))])
def test_a_fork_does_not_wait_for_a_job_of_its_parent(tiny_model: Model, wait: Any) -> None:
    job = Job(Request(IDS[:4], GREEDY, 5), tiny_model.tokenizer)  # nobody has begun with it
    said = in_a_fork(lambda: wait(job), 2.0)
    assert said.startswith(b"PocketLMError: this model was loaded by process"), said
    job.finish("cancelled")
    said = in_a_fork(lambda: print(job.result().finish_reason, list(job)), 2.0)
    assert said == b"nothing raised"


def test_pieces_that_have_come_end_for_who_asks_again(tiny_model: Model) -> None:
    job = tiny_model.submit(IDS[:5], max_tokens=3, temperature=0)
    assert len(list(job)) > 0 and list(job) == []


def test_a_model_that_ran_jobs_is_free_when_nobody_has_it(tiny_folder: ModelFolder) -> None:
    """At once: its weights are not to wait for a collection of garbage."""
    model = Model(tiny_folder, threads=1)
    job = model.submit(IDS[:5], max_tokens=20, ignore_eos=True)
    gone = weakref.ref(model)
    del model
    assert gone() is None
    assert len(job.result(timeout=30).token_ids) == 20  # which goes on


def test_asyncio_streams_side_by_side(tiny_model: Model) -> None:
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 8, "ignore_eos": True}
    prompts: list[Any] = ["the", "one two", [7, 8, 9]]

    async def text(prompt: Any) -> str:
        return "".join([piece.text async for piece in tiny_model.astream(prompt, **options)])

    async def all_of_them() -> list[str]:
        return list(await asyncio.gather(*map(text, prompts)))

    expected = [tiny_model.generate(p, **options, reproducible=True).text for p in prompts]
    assert asyncio.run(all_of_them()) == expected


def test_leaving_an_async_stream_cancels_it(tiny_model: Model) -> None:
    async def first() -> str:
        stream = tiny_model.astream("the", max_tokens=150, ignore_eos=True, temperature=0)
        async for piece in stream:
            await stream.aclose()  # type: ignore[attr-defined]
            return piece.text
        return ""

    assert asyncio.run(first())


def test_errors_reach_who_awaits(tiny_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    async def one() -> None:
        async for _ in tiny_model.astream("the", max_tokens=3):
            pass

    step = Session.step
    monkeypatch.setattr(Session, "step", lambda *feed: np.nan * step(*feed))
    with pytest.raises(NumericsError):
        asyncio.run(one())
    with pytest.raises(RequestError, match="top_k is -1"):
        tiny_model.submit("a", top_k=-1)


# Which rows -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows_at_once, expected", [(2, 2), (4, 4), (8, 8), (16, None)])
def test_the_row_group_is_the_least_that_hides_company(
    tiny_session: Session, rows_at_once: int, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a processor that takes so many rows at once, and what is left by other code."""
    least, step = row_group(tiny_session), Session.step_together
    assert least in (1, 2)  # of float32, or we could not tell

    def spoilt(self: Any, feeds: Any, *, multiple: int, prefill: bool) -> Any:
        assert not prefill
        multiple = max(multiple, least or 1)
        rows = -(-len(feeds) // multiple) * multiple
        found = step(self, feeds, multiple=multiple)
        return found + 1e-3 if rows % rows_at_once else found

    monkeypatch.setattr(Session, "step_together", spoilt)
    assert row_group(tiny_session) == expected


def test_rows_are_tried_with_any_vocabulary_and_in_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = gpt2_config(vocab_size=30, n_positions=160)
    source = open_checkpoint(write_checkpoint(tmp_path / "source", config))
    session = Session(export_model(source, tmp_path / "model"), threads=1)
    capacities = set()
    bind = Arena.bind

    def counted(arena: Arena, *others: Any) -> object:
        capacities.add(arena.capacity)
        return bind(arena, *others)

    monkeypatch.setattr(Arena, "bind", counted)
    assert row_group(session) in (1, 2)
    assert capacities == {FIRST_CAPACITY}


def test_a_context_of_one_token_has_no_row_group(prefill_folder: ModelFolder) -> None:
    """There is no row after another; such a model computes each token by itself."""
    model = Model(prefill_folder, threads=1, prefill="int8")
    session = model.session
    session.shape = dataclasses.replace(session.shape, context_length=1)
    assert row_group(session) is None
    assert crossing(session) is None
    alone = model.generate([5], temperature=0, reproducible=True).token_ids
    assert len(alone) == 1
    for reproducible in (True, False):
        results = model.generate_many([[5]] * 3, temperature=0, reproducible=reproducible)
        assert [result.token_ids for result in results] == [alone] * 3


def test_a_model_without_a_row_group_runs_each_by_itself(
    tiny_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pocketlm.runtime.row_rule.row_group", lambda session: None)
    model = pocketlm.Model(tiny_model.folder, threads=1)
    rows = []
    run = BoundGraph._run

    def counted(self: BoundGraph, caches: Any, *others: Any) -> None:
        rows.append(len(caches))
        run(self, caches, *others)

    monkeypatch.setattr(BoundGraph, "_run", counted)
    found = list(model.generate_many([IDS[:4], IDS[:9]], max_tokens=4, temperature=0))
    assert len(found) == 2 and set(rows) == {1}
