"""Beams wide enough for everything find what an exhaustive search finds."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from checkpoint_files import gpt2_config, gpt2_tensors, write_checkpoint

from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.errors import RequestError
from pocketlm.export.writing import export_model
from pocketlm.runtime.beams import beam_search
from pocketlm.runtime.bound_graph import BoundGraph
from pocketlm.runtime.decode import generate
from pocketlm.runtime.model import Model
from pocketlm.runtime.request import GREEDY, Request
from pocketlm.runtime.session import Session

PROMPT = [1, 4, 2]
END = 3


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A model of seven tokens, whose logits are far apart."""
    root = tmp_path_factory.mktemp("beams")
    config = gpt2_config(vocab_size=7, n_positions=12)
    tensors = gpt2_tensors(config)
    checkpoint = open_checkpoint(write_checkpoint(root / "gpt2", config, tensors))
    return Session(export_model(checkpoint, root / "out"), threads=1)


def exhaustive(
    session: Session, length: int, penalty: float
) -> list[tuple[float, tuple[int, ...]]]:
    """Every continuation that ends, or is ``length`` long: (score, tokens), the best first."""
    found = []
    for count in range(1, length + 1):
        for ids in itertools.product(range(7), repeat=count):
            if END in ids[:-1] or (count < length and ids[-1] != END):
                continue
            rows = session.all_logits([*PROMPT, *ids], session.new_cache()).astype(np.float64)
            logs = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
            total = sum(logs[len(PROMPT) - 1 + i, token] for i, token in enumerate(ids))
            found.append((float(total) / count**penalty, ids))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0, 2.0, -0.5])
def test_beams_equal_an_exhaustive_search(session: Session, penalty: float) -> None:
    request = Request(PROMPT, max_tokens=3, end_ids=frozenset({END}))
    found = beam_search(session, request, 7**3, penalty)
    expected = exhaustive(session, 3, penalty)
    assert len(found) == len(expected) == 1 + 6 + 36 * 7
    np.testing.assert_allclose(
        [beam.score for beam in found], [score for score, _ in expected], rtol=0, atol=1e-5
    )
    best = beam_search(session, request, 20, penalty)
    assert best[0].token_ids == expected[0][1]
    assert best[0].finish_reason == ("eos" if expected[0][1][-1] == END else "length")


def test_one_beam_without_an_end_is_greedy(tiny_session: Session) -> None:
    request = Request([5, 6, 7], GREEDY, 12)
    (beam,) = beam_search(tiny_session, request, 1)
    assert list(beam.token_ids) == [step.token for step in generate(tiny_session, request)]
    assert beam.score == pytest.approx(beam.logprob / 12)


def test_wider_beams_find_no_less_likely_texts(tiny_session: Session) -> None:
    request = Request([5, 6, 7], max_tokens=10)
    best = [beam_search(tiny_session, request, width)[0].logprob for width in (1, 4, 16)]
    assert best == sorted(best)
    assert best[-1] > best[0]


def test_a_beginning_goes_on_however_many_tokens_end_a_text(session: Session) -> None:
    """The three likeliest do; of long texts, which the penalty favours, one beginning is left."""
    logits = session.step(PROMPT, session.new_cache())
    ends = frozenset(int(token) for token in logits.argsort()[-3:])
    request = Request(PROMPT, GREEDY, 4, ends)
    (best,) = beam_search(session, request, 1, length_penalty=10.0)
    assert len(best.token_ids) == 4


@pytest.mark.parametrize("penalty", [None, [1], "1", True, float("nan"), 11])
def test_a_wrong_length_penalty_is_refused(tiny_model: Model, penalty: Any) -> None:
    with pytest.raises(RequestError, match="length_penalty is .*, expected a number in"):
        tiny_model.beams("a", length_penalty=penalty)


def test_the_context_ends_beams(session: Session) -> None:
    found = beam_search(session, Request([1, 2] * 5, max_tokens=100), 3)
    assert {(len(beam.token_ids), beam.finish_reason) for beam in found} == {(3, "context")}


def test_it_ends_as_soon_as_nothing_better_can_come(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every token an end, after the first."""
    steps = []
    run = BoundGraph._run

    def counted(self: BoundGraph, *arguments: Any) -> None:
        steps.append(1)
        run(self, *arguments)

    monkeypatch.setattr(BoundGraph, "_run", counted)
    request = Request(PROMPT, max_tokens=9, end_ids=frozenset(range(7)))
    assert len(beam_search(session, request, 4)) == 4
    assert len(steps) == 1
