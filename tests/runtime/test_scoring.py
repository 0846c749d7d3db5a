"""Log-likelihoods of texts: cutting pairs into ids, and scoring them with a kept cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import pocketlm
from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.errors import ContextLengthError, NumericsError, RequestError
from pocketlm.export.writing import export_model
from pocketlm.quantize.run import precision_of
from pocketlm.runtime.arena import Cache
from pocketlm.runtime.bound_graph import BoundGraph
from pocketlm.runtime.logprobs import likeliest, logprobs
from pocketlm.runtime.scoring import Score, Scorer, encode_pair
from pocketlm.runtime.session import Session
from pocketlm.runtime.tokenizer import Tokenizer

START = 299
CONTEXT = 160
ids = st.integers(0, 298)
texts = st.text(alphabet="ab thern.\n\té", max_size=12)
# A pair whose context begins with the first so many tokens of one text.
pairs = st.lists(
    st.tuples(st.integers(0, 40), st.lists(ids, max_size=4), st.lists(ids, min_size=1, max_size=6)),
    min_size=2,
    max_size=6,
)
SHARED = [(7 * i) % 97 for i in range(40)]


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> Tokenizer:
    return Tokenizer.open(tiny_checkpoint / "tokenizer.json")


@pytest.fixture(scope="module")
def int4_session(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Session:
    """Where the last bit of a row may decide the next: activations are rounded to int8."""
    out = tmp_path_factory.mktemp("int4") / "model"
    return Session(
        export_model(open_checkpoint(tiny_checkpoint), out, precision_of("int4")), threads=1
    )


def recomputed(session: Session, context: list[int], continuation: list[int]) -> Score:
    """All tokens at once from an empty cache, and the softmax in float64."""
    fed = [*context, *continuation][-session.shape.context_length - 1 :][:-1]
    logits = session.all_logits(fed, session.new_cache()).astype(np.float64)
    logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    rows = logs[-len(continuation) :]
    found = rows[np.arange(len(rows)), continuation]
    greedy = rows.argmax(axis=-1).tolist() == continuation
    truncated = len(context) + len(continuation) - 1 - len(fed)
    return Score(float(found.sum()), greedy, truncated, tuple(continuation), tuple(found))


# ---- ids of a pair ----


@given(context=texts, continuation=texts)
def test_the_ids_of_a_pair_are_those_of_the_whole_text(
    tokenizer: Tokenizer, context: str, continuation: str
) -> None:
    whole = tokenizer.encode(context + continuation)
    if len(whole) <= len(tokenizer.encode(context.rstrip())):
        with pytest.raises(RequestError, match="adds no token"):
            encode_pair(tokenizer, context, continuation, START)
        return
    first, second = encode_pair(tokenizer, context, continuation, START)
    assert first and second
    # Where a word of both merges into one token, the context keeps the ids it has alone.
    alone = tokenizer.encode(context.rstrip()) or [START]
    assert first == alone
    assert second == whole[len(alone) - (first == [START]) :]


@given(context=texts, spaces=st.text(alphabet=" \n\t", max_size=3), continuation=texts)
def test_spaces_belong_to_the_continuation_wherever_they_stand(
    tokenizer: Tokenizer, context: str, spaces: str, continuation: str
) -> None:
    context += "a"
    continuation = f"{continuation}b"
    assert encode_pair(tokenizer, context + spaces, continuation, START) == encode_pair(
        tokenizer, context, spaces + continuation, START
    )


def test_an_empty_context_is_the_token_a_text_begins_with(tokenizer: Tokenizer) -> None:
    assert encode_pair(tokenizer, "", "a b", START) == ([START], tokenizer.encode("a b"))
    assert encode_pair(tokenizer, "  ", "a b", START) == ([START], tokenizer.encode("  a b"))


def test_a_continuation_that_begins_with_that_token_gets_no_other(tokenizer: Tokenizer) -> None:
    text = "<|endoftext|>a b"
    assert encode_pair(tokenizer, "", text, START) == ([START], tokenizer.encode("a b"))


def test_an_empty_context_without_such_a_token_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match="the context is empty, expected text"):
        encode_pair(tokenizer, "", "a", None)


def test_a_continuation_without_a_token_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match="continuation '' adds no token to its context"):
        encode_pair(tokenizer, "a", "", START)


@given(context=texts, continuation=texts)
def test_a_token_that_the_tokenizer_puts_first_stands_there_once(
    starting_tokenizer: Tokenizer, tokenizer: Tokenizer, context: str, continuation: str
) -> None:
    assume(len(tokenizer.encode(context + continuation)) > len(tokenizer.encode(context.rstrip())))
    found = encode_pair(starting_tokenizer, context, continuation, START)
    plain, ids = encode_pair(tokenizer, context, continuation, START)
    assert found == ([START, *plain] if plain != [START] else plain, ids)


# ---- scores ----


@given(wanted=pairs)
@settings(max_examples=40, deadline=None)
def test_scores_equal_those_recomputed_from_an_empty_cache(
    tiny_session: Session, wanted: list[tuple[int, list[int], list[int]]]
) -> None:
    scorer = Scorer(tiny_session)
    for shared, own, continuation in wanted:
        context = [*SHARED[:shared], *own] or [START]
        found = scorer.score(context, continuation)
        expected = recomputed(tiny_session, context, continuation)
        # Float32 of logits up to 40, in rows that were computed among other rows.
        assert found.loglikelihood == pytest.approx(expected.loglikelihood, abs=1e-3)
        assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-3)
        assert (found.is_greedy, found.truncated) == (expected.is_greedy, expected.truncated)
        assert found.token_ids == tuple(continuation)
        assert found.mean == found.loglikelihood / len(continuation)


@given(wanted=pairs, beginning=st.sampled_from([0, 2, 20]))
@settings(max_examples=40, deadline=None)
def test_a_score_is_the_same_bit_by_bit_whatever_came_before(
    int4_session: Session, wanted: list[tuple[int, list[int], list[int]]], beginning: int
) -> None:
    def new() -> Scorer:
        return Scorer(int4_session, beginning=SHARED[:beginning])

    scorer = new()
    for shared, own, continuation in wanted:
        context = [*SHARED[:shared], *own] or [START]
        assert scorer.score(context, continuation) == new().score(context, continuation)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 100, 150, 160, 161, 400])
@pytest.mark.parametrize("count", [1, 2, 60, 160])
def test_what_does_not_fit_is_left_out_at_the_beginning(
    tiny_session: Session, length: int, count: int
) -> None:
    context = [(5 * i) % 290 for i in range(length)]
    continuation = [(11 * i) % 290 for i in range(count)]
    found = Scorer(tiny_session).score(context, continuation)
    expected = recomputed(tiny_session, context, continuation)
    assert found.loglikelihood == pytest.approx(expected.loglikelihood, abs=1e-3 * count)
    assert found.truncated == expected.truncated == max(0, length + count - 1 - CONTEXT)


def test_the_greedy_continuation_is_greedy(tiny_session: Session) -> None:
    cache = tiny_session.new_cache()
    logits, continuation = tiny_session.step([5, 6, 7], cache), []
    for _ in range(4):
        continuation.append(int(logits.argmax()))
        logits = tiny_session.step(continuation[-1:], cache)
    scorer = Scorer(tiny_session)
    assert scorer.score([5, 6, 7], continuation).is_greedy
    for i in range(4):
        other = [*continuation[:i], (continuation[i] + 1) % 299, *continuation[i + 1 :]]
        assert not scorer.score([5, 6, 7], other).is_greedy


@pytest.fixture
def fed(tiny_session: Session, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens the session computed, step by step."""
    found = list[int]()

    bind = BoundGraph._bind_one

    def counted(graph: BoundGraph, cache: Cache, ids: list[int]) -> None:
        found.append(len(ids))
        bind(graph, cache, ids)

    monkeypatch.setattr(BoundGraph, "_bind_one", counted)
    return found


def test_a_shared_context_is_computed_once(tiny_session: Session, fed: list[int]) -> None:
    scorer = Scorer(tiny_session)
    for choice in ([1, 2], [3], [4, 5, 6]):
        scorer.score(SHARED, choice)
    assert fed == [38, 3, 2, 4]


def test_a_beginning_is_computed_once_for_all_contexts(
    tiny_session: Session, fed: list[int]
) -> None:
    scorer = Scorer(tiny_session, beginning=SHARED[:20])
    for own in ([1, 2, 3, 4], [5, 6, 7, 8, 9]):
        for choice in ([1], [2]):
            scorer.score([*SHARED[:20], *own], choice)
    assert fed == [20, 2, 2, 2, 3, 2, 2]


def test_a_shorter_context_length_is_kept_to(tiny_session: Session) -> None:
    found = Scorer(tiny_session, 12).score(SHARED, [1, 2, 3])
    assert found.truncated == 40 + 3 - 1 - 12
    whole = Scorer(tiny_session).score(SHARED[-10:], [1, 2, 3])
    assert found.loglikelihood == whole.loglikelihood


@pytest.mark.parametrize("length", [0, CONTEXT + 1])
def test_a_context_length_the_model_lacks_is_refused(tiny_session: Session, length: int) -> None:
    with pytest.raises(RequestError, match=f"context length is {length}, expected 1 to 160"):
        Scorer(tiny_session, length)


def test_a_continuation_longer_than_the_context_is_refused(tiny_session: Session) -> None:
    with pytest.raises(ContextLengthError, match="161 tokens, expected at most 160 "):
        Scorer(tiny_session).score([1], [2] * 161)


def test_a_refused_pair_leaves_the_scorer_usable(tiny_session: Session) -> None:
    scorer = Scorer(tiny_session)
    expected = scorer.score(SHARED, [1, 2])
    with pytest.raises(RequestError, match="token id 300"):
        scorer.score([*SHARED[:30], 300, 5, 6], [1])
    assert scorer.score(SHARED, [1, 2]) == expected


# ---- the tokens of a text ----


@given(text=st.text(alphabet="ab thern.\n\té", min_size=1, max_size=40), top=st.integers(0, 8))
@settings(max_examples=30, deadline=None)
def test_logprobs_are_those_of_the_whole_softmax(
    tiny_model: pocketlm.Model, text: str, top: int
) -> None:
    ids = tiny_model.tokenizer.encode(text)
    session = tiny_model.session
    logits = session.all_logits([START, *ids], session.new_cache())[:-1].astype(np.float64)
    logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    found = tiny_model.logprobs(text, top=top)
    assert found.token_ids == tuple(ids)
    assert found.logprobs == pytest.approx(logs[np.arange(len(ids)), ids], abs=1e-3)
    assert found.top_ids.shape == found.top_logprobs.shape == (len(ids), top)
    np.testing.assert_allclose(found.top_logprobs, -np.sort(-logs)[:, :top], atol=1e-3)
    of_top = np.take_along_axis(logs, found.top_ids, -1)
    np.testing.assert_allclose(found.top_logprobs, of_top, atol=1e-3)


def test_a_text_of_several_chunks_has_the_logprobs_of_one_piece(
    tiny_model: pocketlm.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "the other rain " * 10
    whole = tiny_model.logprobs(text, top=3)
    monkeypatch.setattr("pocketlm.runtime.scoring.CHUNK_SIZE", 16)
    monkeypatch.setattr("pocketlm.runtime.logprobs.BLOCK_ROWS", 3)
    parts = tiny_model.logprobs(text, top=3)
    assert parts.logprobs == pytest.approx(whole.logprobs, abs=1e-4)
    assert len(whole.token_ids) > 4 * 16
    assert (parts.top_ids == whole.top_ids).all()


def test_logits_of_a_long_text_are_never_held_at_once(
    tiny_session: Session, fed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pocketlm.runtime.scoring.CHUNK_SIZE", 16)
    found = Scorer(tiny_session).logprobs(SHARED[:1], SHARED * 3, top=2)
    assert len(found.logprobs) == sum(fed) == 120
    assert max(fed) <= 17


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30), st.data())
def test_the_likeliest_are_sorted_and_of_equals_the_first(
    values: list[int], data: st.DataObject
) -> None:
    count = data.draw(st.integers(0, len(values)))
    expected = sorted(range(len(values)), key=lambda i: (-values[i], i))[:count]
    assert likeliest(np.array(values, np.float32), count).tolist() == expected


def test_continuations_of_texts_score_as_their_tokens(tiny_model: pocketlm.Model) -> None:
    scores = tiny_model.score("the other", [" rain", " rain and", "s"])
    for found, text in zip(scores, [" rain", " rain and", "s"], strict=True):
        pair = encode_pair(tiny_model.tokenizer, "the other", text, START)
        assert found == Scorer(tiny_model.session).score(*pair)
    assert tiny_model.score("the other", []) == ()


def test_a_text_scores_as_its_tokens_do(tiny_model: pocketlm.Model) -> None:
    (score,) = tiny_model.score("", ["the other rain"])
    found = tiny_model.logprobs("the other rain")
    assert score.token_ids == found.token_ids
    assert score.logprobs == tuple(found.logprobs)


def test_what_does_not_fit_into_the_context_is_refused_with_its_tokens(
    tiny_model: pocketlm.Model,
) -> None:
    # A token each.
    assert tiny_model.score("a" * 150, ["a" * 11])[0].truncated == 0
    with pytest.raises(
        ContextLengthError,
        match="has 150 tokens and the continuation 12, expected at most 161 in all",
    ):
        tiny_model.score("a" * 150, ["a" * 12])
    assert len(tiny_model.logprobs("a" * 160).logprobs) == 160
    with pytest.raises(ContextLengthError, match="the text has 161 tokens, expected at most 160"):
        tiny_model.logprobs("a" * 161)


@pytest.mark.parametrize("top", [-1, 301, 2.5, True, None])
def test_a_count_of_alternatives_outside_the_vocabulary_is_refused(
    tiny_model: pocketlm.Model, top: object
) -> None:
    with pytest.raises(RequestError, match=f"top is {top}, expected an integer from 0 to 300"):
        tiny_model.logprobs("a", top=top)  # type: ignore[arg-type]


def test_one_string_is_not_taken_for_several_continuations(tiny_model: pocketlm.Model) -> None:
    with pytest.raises(RequestError, match="continuations is 'yes', expected a sequence of str"):
        tiny_model.score("a", "yes")


def test_a_text_without_a_token_is_refused(tiny_model: pocketlm.Model) -> None:
    with pytest.raises(RequestError, match="text is '', expected at least one token"):
        tiny_model.logprobs("")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_without_a_softmax_are_refused(value: float) -> None:
    with pytest.raises(NumericsError, match="not finite"):
        logprobs(np.array([[0, value]], np.float32), np.array([[0]]))


def test_what_is_no_text_is_refused(tiny_model: pocketlm.Model) -> None:
    calls: list[tuple[Callable[[Any], Any], str]] = [
        (lambda no: tiny_model.score(no, [" a"]), "context is 3 of type int"),
        (lambda no: tiny_model.score("a", [no]), "continuation is 3 of type int"),
        (lambda no: tiny_model.score("a", no), "continuations is 3, expected a sequence"),
        (lambda no: tiny_model.logprobs(no), "text is 3 of type int"),
    ]
    for call, message in calls:
        with pytest.raises(RequestError, match=message):
            call(3)
