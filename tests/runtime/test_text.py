"""Text to text: every way a generation ends, stop strings, prompts, and streams side by side."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import gpt2_config, write_checkpoint

import pocketlm
from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.errors import ContextLengthError, NumericsError, RequestError
from pocketlm.export.writing import export_model
from pocketlm.runtime.bound_graph import BoundGraph
from pocketlm.runtime.cancellation import Cancellation
from pocketlm.runtime.request import Request
from pocketlm.runtime.requests import encoded
from pocketlm.runtime.sampling import SamplingOptions
from pocketlm.runtime.sequence import Step
from pocketlm.runtime.session import Session
from pocketlm.runtime.text import Piece, TextStream, Timings

Model = pocketlm.Model
GREEDY = SamplingOptions(temperature=0)


def start(
    model: Model,
    prompt: Any = "the",
    sampling: SamplingOptions = GREEDY,
    ends: frozenset[int] = frozenset(),
    cancellation: Cancellation | None = None,
    **options: Any,
) -> TextStream:
    """A stream of the tiny model, greedy and without end tokens unless told."""
    ids = encoded(model.tokenizer, prompt, model.start_id, model.session.shape)
    request = Request(ids, sampling, end_ids=ends, **({"max_tokens": 30} | options))
    return TextStream(model.session, model.tokenizer, request, cancellation)


def text_of(stream: TextStream) -> str:
    return "".join(piece.text for piece in stream)


@pytest.fixture(scope="module")
def golden(tiny_model: Model) -> TextStream:
    """The finished stream of 30 greedy tokens after "the"."""
    stream = start(tiny_model)
    text_of(stream)
    return stream


@pytest.fixture(scope="module")
def golden_text(tiny_model: Model, golden: TextStream) -> str:
    return tiny_model.tokenizer.decode(golden.token_ids)


# ---- how it ends ----


def test_length(golden: TextStream) -> None:
    assert (golden.finish_reason, len(golden.token_ids)) == ("length", 30)


def test_end_token_ends_it_and_has_no_text(tiny_model: Model, golden: TextStream) -> None:
    end = golden.token_ids[6]
    first = golden.token_ids.index(end)
    stream = start(tiny_model, ends=frozenset({end, 9999}))
    text = text_of(stream)
    assert stream.finish_reason == "eos"
    assert stream.token_ids == golden.token_ids[: first + 1]
    assert text == tiny_model.tokenizer.decode(golden.token_ids[:first])


def test_end_token_is_like_any_other_when_ignored(tiny_model: Model, golden: TextStream) -> None:
    stream = tiny_model.stream("the", max_tokens=30, temperature=0, ignore_eos=True)
    text_of(stream)
    assert (stream.finish_reason, stream.token_ids) == ("length", golden.token_ids)


def test_context(tiny_model: Model) -> None:
    stream = start(tiny_model, [5] * 155, max_tokens=1000)
    text_of(stream)
    assert (stream.finish_reason, len(stream.token_ids)) == ("context", 6)


def test_length_wins_where_the_context_ends_with_it(tiny_model: Model) -> None:
    stream = start(tiny_model, [5] * 155, max_tokens=6)
    text_of(stream)
    assert stream.finish_reason == "length"


def test_stop_strings_of_every_place_and_size_never_leak(
    tiny_model: Model, golden_text: str
) -> None:
    straddled = 0
    for begin in range(0, len(golden_text) - 4, 3):
        for size in (1, 2, 4):
            stop = golden_text[begin : begin + size]
            stream = start(tiny_model, stop=(stop, "never there"))
            pieces = list(stream)
            text = "".join(piece.text for piece in pieces)
            assert text == golden_text[: golden_text.index(stop)]
            assert stream.finish_reason == "stop"
            last = tiny_model.tokenizer.decode(stream.token_ids[-1:])
            straddled += stop not in last
    assert straddled > 5


def test_text_held_back_for_a_stop_is_returned_at_the_end(
    tiny_model: Model, golden_text: str
) -> None:
    stream = start(tiny_model, stop=(golden_text[-2:] + "never there",))
    assert text_of(stream) == golden_text
    assert stream.finish_reason == "length"


def test_cancelled_while_paused(tiny_model: Model, golden: TextStream) -> None:
    stream = start(tiny_model)
    next(stream)
    produced = len(stream.token_ids)
    stream.cancel()
    rest = list(stream)
    assert stream.finish_reason == "cancelled"
    assert stream.token_ids == golden.token_ids[:produced]
    assert all(not piece.steps for piece in rest)


def test_cancelled_before_it_begins(tiny_model: Model) -> None:
    stream = start(tiny_model)
    stream.cancel()
    assert list(stream) == []
    assert (stream.finish_reason, stream.token_ids) == ("cancelled", [])


def test_a_used_cancellation_ends_the_next_generation_too(tiny_model: Model) -> None:
    cancellation = Cancellation()
    cancellation.cancel()
    stream = start(tiny_model, cancellation=cancellation)
    assert list(stream) == []
    assert stream.finish_reason == "cancelled"


# ---- pieces ----


@pytest.mark.parametrize("prompt", ["the", "", "A", "one two three", [200, 201]])
def test_pieces_join_to_the_decoded_tokens(tiny_model: Model, prompt: Any) -> None:
    stream = start(tiny_model, prompt, max_tokens=50, logprobs=True)
    pieces = list(stream)
    assert "".join(piece.text for piece in pieces) == tiny_model.tokenizer.decode(stream.token_ids)
    assert [token for piece in pieces for token in piece.token_ids] == stream.token_ids
    assert all(step.logprob is not None for piece in pieces for step in piece.steps)
    assert all(piece.text for piece in pieces[:-1])


def test_timings_count_what_happened(golden: TextStream) -> None:
    timings = golden.timings
    assert (timings.prompt_tokens, timings.new_tokens) == (len(golden.prompt_ids), 30)
    assert 0 < timings.prefill_seconds <= timings.first_token_seconds
    assert timings.decode_rate == pytest.approx(29 / timings.decode_seconds)
    assert timings.prefill_rate == pytest.approx(timings.prompt_tokens / timings.prefill_seconds)
    assert (Timings().decode_rate, Timings().prefill_rate) == (0, 0)


def test_pieces_know_the_ids_of_their_steps() -> None:
    assert Piece("a", (Step(4, None, 0.1), Step(5, -1.0, 0.1))).token_ids == (4, 5)


# ---- prompts ----


def test_an_empty_prompt_starts_from_end_of_text(tiny_model: Model) -> None:
    empty, spelled = start(tiny_model, ""), start(tiny_model, [299])
    assert empty.prompt_ids == (299,)
    assert text_of(empty) == text_of(spelled)
    assert start(tiny_model, []).prompt_ids == (299,)


def test_an_empty_prompt_without_end_of_text_is_refused(tiny_model: Model) -> None:
    with pytest.raises(RequestError, match="the prompt is empty, expected at least one token"):
        encoded(tiny_model.tokenizer, "", None, tiny_model.session.shape)


def test_a_prompt_may_fill_the_context(tiny_model: Model) -> None:
    stream = start(tiny_model, [5] * 160)
    text_of(stream)
    assert (stream.finish_reason, len(stream.token_ids)) == ("context", 1)


@pytest.mark.parametrize("prompt", [[5] * 161, "0" * 161])
def test_a_longer_prompt_is_refused_with_both_numbers(tiny_model: Model, prompt: Any) -> None:
    message = r"the prompt has 161 tokens, expected at most 160 \(the context length\)"
    with pytest.raises(ContextLengthError, match=message):
        start(tiny_model, prompt)


def test_a_far_longer_text_is_refused_before_it_is_tokenized(tiny_model: Model) -> None:
    with pytest.raises(ContextLengthError, match="text has 3000 characters, expected at most 2560"):
        start(tiny_model, "e" * 3000)


@pytest.mark.parametrize("convert", [tuple, np.array, list])
def test_prompts_as_ids(tiny_model: Model, golden: TextStream, convert: Any) -> None:
    stream = start(tiny_model, convert(tiny_model.tokenizer.encode("the")))
    text_of(stream)
    assert stream.token_ids == golden.token_ids
    assert all(type(number) is int for number in stream.prompt_ids)


@pytest.mark.parametrize(
    "prompt, found",
    [
        ([1, 300], "300"),
        ([-1], "-1"),
        ([2**80], str(2**80)),
        ([1, True], "True"),
        ([1.5], "1.5"),
        (["a"], "'a'"),
        ([[1]], "[1]"),
        (np.array([[1, 2], [3, 4]]), "array"),
        (np.array([1.5]), "1.5"),
        (np.array([True]), "True"),
        (None, "None"),
        (5, "5"),
        (b"the", "b'the'"),
        ({1: 2}, "{1: 2}"),
    ],
    ids=str,
)
def test_wrong_prompts_are_refused(tiny_model: Model, prompt: Any, found: str) -> None:
    with pytest.raises(RequestError, match=re.escape(found)) as caught:
        start(tiny_model, prompt)
    assert "expected" in str(caught.value)


@pytest.mark.parametrize("name", ["max_tokens", "chunk_size"])
@pytest.mark.parametrize("value", [0, -1, True, 1.5, "3", None])
def test_wrong_options_are_refused(name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=rf"{name} is .*, expected an integer from 1 up"):
        Request([1], **{name: value})


# ---- side by side ----


def test_streams_of_one_model_may_alternate(tiny_model: Model) -> None:
    prompts = ["the", "one two three", [7, 8, 9]]
    alone = [start(tiny_model, prompt) for prompt in prompts]
    for stream in alone:
        text_of(stream)
    together = [start(tiny_model, prompt) for prompt in prompts]
    waiting = list(together)
    while waiting:
        waiting = [stream for stream in waiting if next(stream, None) is not None]
    assert [stream.token_ids for stream in together] == [stream.token_ids for stream in alone]


def test_streams_of_one_model_in_threads(tiny_model: Model) -> None:
    prompts = ["the", "one two three", "A"]
    sampling = SamplingOptions(seed=3)
    alone = [text_of(start(tiny_model, prompt, sampling)) for prompt in prompts]
    together = [""] * len(prompts)

    def work(number: int) -> None:
        together[number] = text_of(start(tiny_model, prompts[number], sampling))

    workers = [threading.Thread(target=work, args=(number,)) for number in range(len(prompts))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert together == alone


def test_a_stream_left_half_way_does_no_harm(tiny_model: Model, golden_text: str) -> None:
    stream = start(tiny_model)
    next(stream)
    del stream
    assert text_of(start(tiny_model)) == golden_text


def test_a_numerics_error_reaches_the_caller(
    tiny_model: Model, golden_text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        step = Session.step
        patch.setattr(Session, "step", lambda *feed: np.nan * step(*feed))
        with pytest.raises(NumericsError):
            next(start(tiny_model))
    assert text_of(start(tiny_model)) == golden_text


# ---- a long prefill ----


def test_cancelling_a_long_prefill_returns_within_a_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = gpt2_config(vocab_size=300, n_positions=4096)
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "gpt2", config))
    model = Model(export_model(checkpoint, tmp_path / "out"), threads=1)
    expected = start(model, [5] * 300, max_tokens=3)
    text_of(expected)

    passes = cancelled_in = 0
    run = BoundGraph._run_bound

    def counted(graph: BoundGraph, stopping: Cancellation) -> None:
        nonlocal passes
        passes += 1
        if passes == cancelled_in:
            other = threading.Thread(target=stream.cancel)
            other.start()
            other.join()
        run(graph, stopping)

    monkeypatch.setattr(BoundGraph, "_run_bound", counted)
    stream = start(model, [5] * 4000, max_tokens=1)
    text_of(stream)
    assert passes > 8

    passes, cancelled_in = 0, 4
    stream = start(model, [5] * 4000, max_tokens=1)
    assert list(stream) == [] and passes == 4
    assert (stream.finish_reason, stream.token_ids) == ("cancelled", [])

    again = start(model, [5] * 300, max_tokens=3)
    text_of(again)
    assert again.token_ids == expected.token_ids
