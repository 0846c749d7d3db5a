"""How likely a model finds a text: texts or token ids in, log-likelihoods in nats out.

A pair of context and continuation becomes token ids as lm-evaluation-harness makes them, since
where the two are cut apart decides scores:

    whole        = ids of context + continuation; the context's trailing spaces go to the latter
    continuation = whole[n:], n the number of ids of the context alone
    context      = those n ids; of an empty one: the token a text begins with

``Scorer`` takes token ids; ``TextScorer``, the rung above it, takes texts. Logits are looked at one
chunk of tokens at a time: those of a whole text are never held. Letters: S tokens scored, V
vocabulary, N alternatives. Source: ``TemplateLM._encode_pair`` and ``loglikelihood`` in
lm_eval/api/model.py, and ``HFLM._loglikelihood_tokens`` in lm_eval/models/huggingface.py, of
lm-evaluation-harness 0.4.13.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..export.errors import ContextLengthError, RequestError
from ..export.folder import ModelFolder
from ..export.whole_number import brief, whole_number
from .chunks import CHUNK_SIZE, chunks
from .generation_config import GenerationConfig
from .logprobs import likeliest, logprobs
from .quoted_texts import Encode
from .session import Logits, Session
from .shared_beginning import shared_beginning
from .tokenizer import Tokenizer


@dataclass(frozen=True)
class Score:
    """Of one continuation.

    loglikelihood  nats: the sum over its tokens
    is_greedy      every token is the likeliest one at its place
    truncated      tokens of the context that did not fit
    token_ids      its S tokens
    logprobs       natural log of the probability of each
    """

    loglikelihood: float
    is_greedy: bool
    truncated: int
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Nats per token."""
        return self.loglikelihood / len(self.token_ids)


@dataclass(frozen=True, eq=False)
class TextLogprobs:
    """Of the tokens of a text, each after all those before it.

    token_ids     (S,), without the token that stands before a text
    logprobs      (S,): natural log of the probability of each
    top_ids       (S, N): the likeliest tokens at each place, the likeliest first; of equally likely
                  ones that with the smallest id
    top_logprobs  (S, N): natural log of theirs
    """

    token_ids: tuple[int, ...]
    logprobs: NDArray[np.float64]
    top_ids: NDArray[np.int64]
    top_logprobs: NDArray[np.float64]


def encode_pair(
    tokenizer: Tokenizer,
    context: str,
    continuation: str,
    start_id: int | None,
    encode: Encode | None = None,
) -> tuple[list[int], list[int]]:
    """Token ids of the context, at least one, and of the continuation, at least one.

    ``start_id`` is the token a text begins with; ``encode`` what is asked in the tokenizer's place,
    see ``quoting``. Raises RequestError for a continuation that adds no token, and for an empty
    context without a ``start_id``.
    """
    encode = encode or tokenizer.encode
    stripped = context.rstrip()
    continuation = context[len(stripped) :] + continuation
    if context:
        whole = encode(stripped + continuation)
        context_ids = encode(stripped)
        ids = whole[len(context_ids) :]
    else:
        context_ids, ids = [], encode(continuation, add_special_tokens=False)
        if ids[:1] == [start_id]:
            context_ids, ids = ids[:1], ids[1:]
    if not ids:
        raise RequestError(
            f"the continuation {continuation!r:.60} adds no token to its context, expected at "
            "least one; give it more text"
        )
    if context_ids:
        return context_ids, ids
    if start_id is None:
        raise RequestError(
            "the context is empty, expected text: this model has no token that a text begins with; "
            "give a context"
        )
    return [start_id], ids


def start_token(tokenizer: Tokenizer, folder: ModelFolder) -> int | None:
    """The id a text of this model folder begins with; None if its tokenizer has none.

    It is the one the tokenizer puts first, or else what an empty prompt begins with.
    """
    ids, plain = (tokenizer.encode("a", add_special_tokens=special) for special in (True, False))
    if ids[: len(plain)] != plain:
        return ids[0]
    file = folder.path / "generation_config.json"
    return GenerationConfig.read(file, folder.shape.vocab_size).start_id


def check_length(continuation: Sequence[int], context_length: int) -> None:
    """Raises RequestError for more tokens than ``context_length``: they cannot all be scored."""
    if len(continuation) > context_length:
        raise ContextLengthError(
            f"the continuation has {len(continuation)} tokens, expected at most {context_length} "
            "(the context length); shorten it"
        )


def check_text(name: str, text: object) -> None:
    """Raises RequestError for what is no string."""
    if not isinstance(text, str):
        raise RequestError(
            f"{name} is {brief(text)} of type {type(text).__name__}, expected a string; give text"
        )


class TextScorer:
    """Scores texts, one after another; for one thread at a time.

    What a context begins with like the one before is not computed again, and leaves no trace in a
    score: see ``Scorer``.
    """

    def __init__(
        self,
        session: Session,
        tokenizer: Tokenizer,
        start_id: int | None,
        beginning: Sequence[int] = (),
    ) -> None:
        """``start_id`` is the token a text begins with; ``beginning`` is that of ``Scorer``."""
        self._tokenizer = tokenizer
        self._start_id = start_id
        self._scorer = Scorer(session, beginning=beginning)
        self._vocab_size = session.shape.vocab_size

    def encode(
        self, context: str, continuation: str, encode: Encode | None = None
    ) -> tuple[list[int], list[int]]:
        """Token ids of both. Raises what ``encode_pair`` does, and for what does not fit."""
        check_text("context", context)
        check_text("continuation", continuation)
        pair = encode_pair(self._tokenizer, context, continuation, self._start_id, encode)
        most = self._scorer.context_length + 1  # the last token is predicted, not fed
        if sum(map(len, pair)) > most:
            raise ContextLengthError(
                f"the context has {len(pair[0])} tokens and the continuation {len(pair[1])}, "
                f"expected at most {most} in all (the context length and the token after it); "
                "shorten the text"
            )
        return pair

    def score(self, context: str, continuations: Sequence[str]) -> tuple[Score, ...]:
        """Of each continuation after ``context``, to which nothing is added.

        Raises RequestError, before anything runs, for what ``encode`` does not take; NumericsError
        for logits that are not finite.
        """
        if isinstance(continuations, str) or not isinstance(continuations, Iterable):
            raise RequestError(
                f"continuations is {continuations!r:.60}, expected a sequence of strings; put it "
                "in a list"
            )
        return self.score_pairs([self.encode(context, text) for text in continuations])

    def score_pairs(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> tuple[Score, ...]:
        """Of each of the pairs that ``encode`` made."""
        return tuple(self._scorer.score(*pair) for pair in pairs)

    def logprobs(self, text: str, top: int = 0) -> TextLogprobs:
        """Of every token of ``text``, with the ``top`` likeliest tokens at each place.

        Raises RequestError, before anything runs, for a text without a token or longer than the
        context, and for a ``top`` that is not from 0 to V; NumericsError for logits that are not
        finite.
        """
        check_text("text", text)
        wanted = whole_number(top)
        if wanted is None or not 0 <= wanted <= self._vocab_size:
            raise RequestError(
                f"top is {brief(top)}, expected an integer from 0 to {self._vocab_size} (the "
                "vocabulary); give how many alternatives"
            )
        if not text:
            raise RequestError("text is '', expected at least one token; give it more text")
        context, ids = encode_pair(self._tokenizer, "", text, self._start_id)
        if len(ids) > self._scorer.context_length:
            raise ContextLengthError(
                f"the text has {len(ids)} tokens, expected at most {self._scorer.context_length} "
                "(the context length); shorten it"
            )
        return self._scorer.logprobs(context, ids, wanted)


class Scorer:
    """Scores one pair after another; what a pair begins with like the one before is kept.

    So the choices of a question cost little more than its text. A score is the same, bit by bit,
    whatever was scored before: what is fed together depends on the pair alone, and only what was
    fed so is kept. That matters where activations are quantized, since the last bit of a row may
    depend on how many rows are computed at once (see ``chunks``).
    """

    def __init__(
        self,
        session: Session,
        context_length: int | None = None,
        beginning: Sequence[int] = (),
    ) -> None:
        """``context_length`` may be less than the model's, which it is unless given.

        ``beginning`` is what many contexts begin with, such as examples: always fed apart from what
        follows, it is computed once for all of them.

        Raises RequestError for a context length of more, and for less than 1.
        """
        longest = session.shape.context_length
        self.context_length = longest if context_length is None else context_length
        if not 1 <= self.context_length <= longest:
            raise RequestError(
                f"context length is {context_length!r:.40}, expected 1 to {longest}, the model's"
            )
        self._beginning = list(beginning)
        self._vocab_size = session.shape.vocab_size
        self._fed = _Fed(session)

    def score(self, context: Sequence[int], continuation: Sequence[int]) -> Score:
        """The likelihood of ``continuation`` after ``context``, neither of them empty.

        Raises RequestError for a continuation longer than the context length, NumericsError for
        logits that are not finite.
        """
        total, logs, is_greedy = 0.0, list[float](), True
        for rows, targets in self.rows(context, continuation):
            found = logprobs(rows, targets[:, None])[:, 0]
            total += float(found.sum())
            logs += found.tolist()
            is_greedy = is_greedy and bool((rows.argmax(axis=-1) == targets).all())
        truncated = self._excess(context, continuation)
        return Score(total, is_greedy, truncated, tuple(continuation), tuple(logs))

    def logprobs(
        self, context: Sequence[int], continuation: Sequence[int], top: int = 0
    ) -> TextLogprobs:
        """The same token by token, with the ``top`` likeliest tokens at each place."""
        logs, ids, top_logs = [], [], []
        for rows, targets in self.rows(context, continuation):
            best = np.array([likeliest(row, top) for row in rows])  # (n, N)
            found = logprobs(rows, np.column_stack([targets, best]))
            logs.append(found[:, 0])
            top_logs.append(found[:, 1:])
            ids.append(best)
        return TextLogprobs(
            tuple(continuation),
            np.concatenate(logs),
            np.concatenate(ids),
            np.concatenate(top_logs),
        )

    def _excess(self, context: Sequence[int], continuation: Sequence[int]) -> int:
        """How many tokens do not fit; the last one is predicted, not fed."""
        return max(0, len(context) + len(continuation) - 1 - self.context_length)

    def rows(
        self, context: Sequence[int], continuation: Sequence[int]
    ) -> Iterator[tuple[Logits, NDArray[np.int64]]]:
        """Logits (n, V) and the n tokens that come there, for successive parts of a continuation.

        The logits are valid until the next part is asked for. Raises what ``score`` does.
        """
        check_length(continuation, self.context_length)
        if max(continuation) >= self._vocab_size:
            raise RequestError(
                f"the text has the token id {max(continuation)}, expected 0 to "
                f"{self._vocab_size - 1}, for which the model has rows; leave out what spells it"
            )
        context = context[self._excess(context, continuation) :]
        fed, targets = [*context, *continuation[:-1]], np.array(continuation, np.int64)
        # One token more than needed: a continuation of one token would be fed alone.
        first = len(context) - 2 if len(context) > 3 else 0
        self._fed.rewind(self._cut(fed[:first]), len(fed))
        done = first - (len(context) - 1)  # below 0: rows that predict tokens of the context
        for chunk in chunks(fed[first:], CHUNK_SIZE):
            rows = self._fed.logits(chunk)[max(0, -done) :]
            yield rows, targets[max(0, done) :][: len(rows)]
            done += len(chunk)

    def _cut(self, ids: list[int]) -> list[Sequence[int]]:
        """The chunks in which ``ids`` are fed: it depends on nothing else."""
        apart = len(self._beginning) if ids[: len(self._beginning)] == self._beginning else 0
        return [*chunks(ids[:apart], CHUNK_SIZE), *chunks(ids[apart:], CHUNK_SIZE)]


class _Fed:
    """What a session was fed, in chunks; all that scoring asks of a session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._cache = session.new_cache()
        self._held: list[Sequence[int]] = []  # chunks of tokens whose rows the cache has

    def rewind(self, wanted: Sequence[Sequence[int]], text_length: int) -> None:
        """Leaves the cache with the rows of ``wanted``, keeping the chunks it begins with.

        The text that they begin has ``text_length`` tokens.
        """
        alike, longest = self._session.rotated_alike, max(text_length, self._cache.text_length)
        same = shared_beginning(self._held, wanted)
        if alike is not None and longest > alike and text_length != self._cache.text_length:
            same = 0
        self._cache.text_length = text_length
        del self._held[same:]
        self._cache.truncate(sum(map(len, self._held)))
        for chunk in wanted[same:]:
            self._session.step(chunk, self._cache)
            self._held.append(chunk)

    def logits(self, chunk: Sequence[int]) -> Logits:
        """(S, V): after every one of these tokens too, until the next ``rewind``."""
        return self._session.all_logits(chunk, self._cache)
