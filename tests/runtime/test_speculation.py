"""Guessing changes no token, and is given up where it does not pay."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import gpt2_config, gpt2_tensors, write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.writing import export_model
from pocketlm.runtime.bound_graph import BoundGraph
from pocketlm.runtime.decode import begin, speculate, steps
from pocketlm.runtime.model import Model
from pocketlm.runtime.request import GREEDY, Request
from pocketlm.runtime.sampling import SamplingOptions
from pocketlm.runtime.sequence import Sequence as Running
from pocketlm.runtime.session import Session
from pocketlm.runtime.speculation import LONGEST_MATCH, PROBE, DraftModel, Pace, PromptLookup

IDS = [int(number) for number in np.random.default_rng(2).integers(0, 299, 60)]


class Oracle:
    """Guesses from a text, with some of it wrong: what a drafter of any quality says."""

    def __init__(self, text: Sequence[int], wrong: set[int]) -> None:
        self._text = [(token + 1) % 300 if i in wrong else token for i, token in enumerate(text)]

    def outlook(self, sequence: Running, most: int) -> tuple[int, int]:
        return min(most, len(self._text) - len(sequence.token_ids)), 3

    def guess(self, sequence: Running, count: int) -> list[int]:
        return self._text[len(sequence.token_ids) :][:count]


@settings(max_examples=40, deadline=None)
@given(
    wrong=st.sets(st.integers(0, 159)),
    temperature=st.sampled_from([0.0, 0.8]),
    penalty=st.sampled_from([1.0, 1.3]),
    limit=st.integers(1, 150),
    ends=st.booleans(),
)
def test_guesses_right_or_wrong_change_no_token(
    tiny_session: Session,
    wrong: set[int],
    temperature: float,
    penalty: float,
    limit: int,
    ends: bool,
) -> None:
    """In float32; as many numbers are drawn as tokens come out."""
    options = SamplingOptions(temperature=temperature, repetition_penalty=penalty, seed=5)
    request = Request(IDS[:20], options, 150)
    expected = [step.token for step in steps(tiny_session, begin(tiny_session, request))]
    request = Request(IDS[:20], options, limit, frozenset(expected[40:41]) if ends else frozenset())
    plain = begin(tiny_session, request)
    expected = [step.token for step in steps(tiny_session, plain)]
    sequence = begin(tiny_session, request)
    oracle = Oracle([*IDS[:20], *expected, *IDS], wrong)
    found = list(speculate(tiny_session, sequence, oracle))
    assert [step.token for step in found] == expected
    assert sequence.finish_reason == plain.finish_reason
    assert sequence.cache.length == plain.cache.length == len(sequence.token_ids) - 1
    assert 0 <= sequence.num_right <= sequence.num_guessed


@pytest.mark.parametrize("limit", [5, 6, 7, 150])
def test_all_tokens_of_the_last_step_are_in_the_text(
    tiny_model: Model, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ends it: the number of tokens, or the context."""
    monkeypatch.setattr(Pace, "num_guesses", lambda self, sure, available: min(3, available))
    options: dict[str, Any] = {"temperature": 0, "max_tokens": limit, "ignore_eos": True}
    plain = tiny_model.generate(IDS[:20], **options)
    guessed = tiny_model.generate(IDS[:20], draft=tiny_model, **options)
    assert guessed.timings.right_guesses > 0
    assert (guessed.token_ids, guessed.text) == (plain.token_ids, plain.text)
    assert guessed.finish_reason == plain.finish_reason


def test_right_guesses_take_fewer_steps(
    tiny_session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request(IDS[:20], GREEDY, 100)
    expected = [step.token for step in steps(tiny_session, begin(tiny_session, request))]
    monkeypatch.setattr(Pace, "num_guesses", lambda self, sure, available: min(9, available))
    runs = 0
    run = BoundGraph._run

    def counted(self: BoundGraph, *arguments: object) -> None:
        nonlocal runs
        runs += 1
        run(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(BoundGraph, "_run", counted)
    sequence = begin(tiny_session, request)
    oracle = Oracle([*IDS[:20], *expected], set())
    assert [step.token for step in speculate(tiny_session, sequence, oracle)] == expected
    assert runs == 1 + 10  # the prompt, and ten tokens a step
    assert (sequence.num_guessed, sequence.num_right) == (89, 89)


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 9), st.lists(st.integers(0, 60)))
def test_a_lookup_says_what_followed_the_longest_match(
    tiny_session: Session, ids: list[int], most: int, asked_before: list[int]
) -> None:
    """The twin looks through the whole text; when it was asked before does not matter."""
    lookup, sequence = PromptLookup(), begin(tiny_session, Request([1]))

    def guess(token_ids: list[int]) -> tuple[list[int], int]:
        sequence.token_ids = token_ids
        count, sure = lookup.outlook(sequence, most)
        return lookup.guess(sequence, count), sure

    for length in sorted(asked_before):
        guess(ids[:length])
    expected: tuple[list[int], int] = ([], 0)
    for count in range(min(LONGEST_MATCH, len(ids)), 1, -1):
        places = [
            i for i in range(count, len(ids)) if ids[i - count : i] == ids[len(ids) - count :]
        ]
        if places:
            expected = ids[places[-1] :][:most], count
            break
    assert guess(ids) == (expected if expected[1] else ([], 0))


def test_a_pace_settles_on_what_is_fastest() -> None:
    """Of steps that cost 1, 1.1, 1.2, … all guesses where all are right, and none where none is."""
    for right, expected in ((True, 12), (False, 0)):
        pace, chosen = Pace(), []
        for _ in range(300):
            guesses = pace.num_guesses(4, 12)
            chosen.append(guesses)
            pace.took(1 + guesses, 1 + 0.1 * guesses)
            pace.came_out(4, guesses, guesses if right else 0)
        assert max(set(chosen[20:]), key=chosen[20:].count) == expected
        tried = sum(guesses > 0 for guesses in chosen[20:])
        assert tried == 280 if right else tried <= 280 / PROBE + 1


def test_a_pace_gives_up_where_several_tokens_cost_too_much() -> None:
    """As in formats whose kernel takes row by row: though guesses are right."""
    pace, chosen = Pace(), []
    for _ in range(300):
        guesses = pace.num_guesses(3, 8)
        chosen.append(guesses)
        pace.took(1 + guesses, 1.0 + 1.2 * guesses)
        pace.came_out(3, guesses, guesses)
    assert sum(guesses > 0 for guesses in chosen[40:]) <= 260 / PROBE + 1


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_draft_of_the_model_itself_is_nearly_always_right(
    tiny_session: Session, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It draws with the numbers that the sequence draws with."""
    monkeypatch.setattr(Pace, "num_guesses", lambda self, sure, available: min(4, available))
    options = SamplingOptions(temperature=temperature, seed=8)
    request = Request(IDS[:20], options, 60)
    expected = [step.token for step in steps(tiny_session, begin(tiny_session, request))]
    sequence = begin(tiny_session, request)
    draft = DraftModel(tiny_session, request)
    assert [step.token for step in speculate(tiny_session, sequence, draft)] == expected
    assert sequence.num_right >= 0.9 * sequence.num_guessed > 30


def test_a_draft_of_another_model_changes_no_token(
    tiny_session: Session, int8_kv_session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pace, "num_guesses", lambda self, sure, available: min(3, available))
    request = Request(IDS[:20], SamplingOptions(temperature=0.9, seed=3), 139)
    expected = [step.token for step in steps(tiny_session, begin(tiny_session, request))]
    sequence = begin(tiny_session, request)
    draft = DraftModel(int8_kv_session, request)
    assert [step.token for step in speculate(tiny_session, sequence, draft)] == expected
    assert 0 < sequence.num_right < sequence.num_guessed


@pytest.mark.parametrize("options", [{}, {"logit_bias": {290: -5.0}}, {"banned_tokens": [290]}])
def test_a_draft_of_fewer_tokens_guesses_where_it_knows_them_all(
    tiny_session: Session,
    tmp_path: Path,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where one vocabulary is padded, and the other is not."""
    monkeypatch.setattr(Pace, "num_guesses", lambda self, sure, available: min(3, available))
    config = gpt2_config(vocab_size=260, n_positions=160)
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "in", config, gpt2_tensors(config)))
    smaller = Session(export_model(checkpoint, tmp_path / "out"), threads=1)
    sampling = SamplingOptions(temperature=0.9, seed=3, **options)
    for prompt_ids in ([*range(20)], [*range(20), 280]):
        request = Request(prompt_ids, sampling, 60)
        expected = [step.token for step in steps(tiny_session, begin(tiny_session, request))]
        sequence = begin(tiny_session, request)
        found = speculate(tiny_session, sequence, DraftModel(smaller, request))
        assert [step.token for step in found] == expected
