"""Token ids to token ids: chunks, limits, log probabilities, and what happens when logits break."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import gpt2_config, gpt2_tensors, write_checkpoint
from hypothesis import given
from hypothesis import strategies as st

from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.errors import NumericsError, RequestError
from pocketlm.export.writing import export_model
from pocketlm.runtime.cancellation import Cancellation, Cancelled
from pocketlm.runtime.chunks import chunks, prefill
from pocketlm.runtime.decode import generate
from pocketlm.runtime.request import GREEDY, Request
from pocketlm.runtime.sampling import SamplingOptions
from pocketlm.runtime.session import Session

PROMPT = [int(number) for number in np.random.default_rng(5).integers(0, 299, 40)]
CONTEXT = 160


def greedy(
    session: Session, prompt: Sequence[int], limit: int = 20, chunk_size: int = 256, **options: Any
) -> list[int]:
    request = Request(prompt, GREEDY, limit, chunk_size=chunk_size)
    return [step.token for step in generate(session, request, **options)]


@pytest.fixture(scope="module")
def golden(tiny_session: Session) -> list[int]:
    """What follows PROMPT, each token from an empty cache."""
    ids = list(PROMPT)
    for _ in range(20):
        ids.append(int(tiny_session.step(ids, tiny_session.new_cache()).argmax()))
    return ids[len(PROMPT) :]


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 7, 64])
def test_chunks_of_any_size_give_the_same_tokens(
    tiny_session: Session, golden: list[int], chunk_size: int
) -> None:
    assert greedy(tiny_session, PROMPT, chunk_size=chunk_size) == golden


def test_golden_tokens_are_not_one_repeated(golden: list[int]) -> None:
    assert len(set(golden)) > 3


@pytest.mark.parametrize("limit", [1, 5])
def test_limit_is_kept(tiny_session: Session, golden: list[int], limit: int) -> None:
    cache = tiny_session.new_cache()
    assert greedy(tiny_session, PROMPT, limit, cache=cache) == golden[:limit]
    # The last token is chosen but not fed: nobody asked for what follows it.
    assert cache.length == len(PROMPT) + limit - 1


@pytest.mark.parametrize("room", [0, 1, 4])
def test_context_end_ends_it(tiny_session: Session, room: int) -> None:
    prompt = (PROMPT * 4)[: CONTEXT - room]
    cache = tiny_session.new_cache()
    assert len(greedy(tiny_session, prompt, 1000, cache=cache)) == room + 1
    assert cache.length == CONTEXT


def test_closing_the_iterator_stops_the_work(tiny_session: Session, golden: list[int]) -> None:
    cache = tiny_session.new_cache()
    steps = generate(tiny_session, Request(PROMPT, GREEDY, 100), cache)
    assert [next(steps).token for _ in range(3)] == golden[:3]
    steps.close()  # type: ignore[attr-defined]
    assert cache.length == len(PROMPT) + 2


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_logprobs_are_log_softmax_of_all_logits(tiny_session: Session, temperature: float) -> None:
    sampling = SamplingOptions(temperature=temperature, seed=1)
    steps = list(generate(tiny_session, Request(PROMPT, sampling, 12, logprobs=5)))
    tokens = [step.token for step in steps]
    logits = tiny_session.all_logits(PROMPT + tokens, tiny_session.new_cache())
    rows = logits[len(PROMPT) - 1 : -1].astype(np.float64)
    expected = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
    found = np.array([step.logprob for step in steps], np.float64)
    # Both are float32 logits, summed in different orders by the kernels.
    np.testing.assert_allclose(found, expected[np.arange(12), tokens], rtol=0, atol=2e-4)
    assert all(step.seconds > 0 for step in steps)
    for step, row in zip(steps, expected, strict=True):
        likeliest = [int(token) for token in row.argsort()[:-6:-1]]
        assert [token for token, _ in step.top] == likeliest
        np.testing.assert_allclose([value for _, value in step.top], row[likeliest], atol=2e-4)


def test_logprobs_are_none_unless_asked_for(tiny_session: Session) -> None:
    step = next(generate(tiny_session, Request(PROMPT, GREEDY, 1)))
    assert (step.logprob, step.top) == (None, ())
    step = next(generate(tiny_session, Request(PROMPT, GREEDY, 1, logprobs=True)))
    assert step.logprob is not None and step.top == ()


@pytest.mark.parametrize("split", [1, 13, 39])
def test_a_prompt_that_has_begun_equals_the_whole(
    tiny_session: Session, golden: list[int], split: int
) -> None:
    cache = tiny_session.new_cache()
    prefill(tiny_session, PROMPT[:split], cache)
    assert greedy(tiny_session, PROMPT, cache=cache) == golden


@pytest.mark.parametrize("held, prompt", [(0, CONTEXT + 1), (100, CONTEXT - 99), (CONTEXT, 1)])
def test_a_prompt_that_does_not_fit_is_refused_before_anything_runs(
    tiny_session: Session, held: int, prompt: int
) -> None:
    cache = tiny_session.new_cache()
    if held:
        prefill(tiny_session, [1] * held, cache)
    message = rf"found {held} \+ {prompt} tokens, expected at most 160"
    with pytest.raises(RequestError, match=message):
        greedy(tiny_session, [1] * (held + prompt), cache=cache, chunk_size=8)
    assert cache.length == held


def test_an_empty_prompt_is_refused(tiny_session: Session) -> None:
    with pytest.raises(RequestError, match="found no token ids, expected at least one"):
        greedy(tiny_session, [])


def test_a_wrong_id_in_the_last_chunk_is_refused_before_anything_runs(
    tiny_session: Session,
) -> None:
    cache = tiny_session.new_cache()
    with pytest.raises(RequestError, match="found token id 300, expected 0 to 299"):
        greedy(tiny_session, [*PROMPT, 300], cache=cache, chunk_size=8)
    assert cache.length == 0


def test_cancelled_before_it_begins(tiny_session: Session, golden: list[int]) -> None:
    cancellation = Cancellation()
    cancellation.cancel()
    with pytest.raises(Cancelled):
        greedy(tiny_session, PROMPT, cancellation=cancellation)
    assert greedy(tiny_session, PROMPT) == golden


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_logits_that_are_not_finite_are_reported_once(
    tiny_session: Session,
    golden: list[int],
    monkeypatch: pytest.MonkeyPatch,
    value: float,
    temperature: float,
) -> None:
    step = Session.step
    calls = []

    def broken(session: Session, *arguments: Any) -> Any:
        logits = step(session, *arguments)
        calls.append(len(arguments[0]))
        if len(calls) == 3:
            logits[17] = value
        return logits

    sampling = SamplingOptions(temperature=temperature, seed=0)
    with monkeypatch.context() as patch:
        patch.setattr(Session, "step", broken)
        steps = generate(tiny_session, Request(PROMPT, sampling, 10))
        next(steps)
        next(steps)
        with pytest.raises(NumericsError):
            next(steps)
    assert greedy(tiny_session, PROMPT) == golden


def test_a_model_that_overflows_is_reported_and_the_session_lives_on(tmp_path: Path) -> None:
    config = gpt2_config(tie_word_embeddings=False)
    tensors = gpt2_tensors(config)
    # Each is a float32, their sum is not: token 7 at position 5 is where it breaks.
    tensors["transformer.wte.weight"][7] = 3e38
    tensors["transformer.wpe.weight"][5] = 3e38
    folder = export_model(
        open_checkpoint(write_checkpoint(tmp_path / "gpt2", config, tensors)), tmp_path / "out"
    )
    session = Session(folder, threads=1)
    expected = greedy(session, [1, 2], 3)
    with pytest.raises(NumericsError):
        greedy(session, [1, 2, 3, 4, 5, 7], 3)
    assert greedy(session, [1, 2], 3) == expected


@given(st.integers(1, 60), st.integers(1, 20))
def test_chunks_are_even_cover_the_prompt_and_leave_no_token_alone(count: int, size: int) -> None:
    prompt = list(range(count))
    *parts, last = chunks(prompt, size)
    assert [number for part in [*parts, last] for number in part] == prompt
    even = max(size + size % 2, 2)
    assert all(len(part) == even for part in parts)
    assert 2 <= len(last) <= even + 1 or count == 1


def test_seconds_leave_out_what_the_caller_does(
    tiny_session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("pocketlm.runtime.sequence.time.perf_counter", lambda: clock[0])
    spent = []
    for step in generate(tiny_session, Request(PROMPT, GREEDY, 4)):
        spent.append(step.seconds)
        clock[0] += 60  # the caller takes a minute
    assert spent == [0, 0, 0, 0]
