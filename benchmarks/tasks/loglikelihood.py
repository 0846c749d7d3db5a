"""How likely a model finds a continuation: texts or token ids in, log-likelihoods in nats out.

A pair of context and continuation becomes token ids as lm-evaluation-harness makes them, since
where the two are cut apart decides scores:

    whole        = ids of context + continuation; the context's trailing spaces go to the latter
    continuation = whole[n:], n the number of ids of the context alone
    context      = those n ids; of an empty one: the token a text begins with

What is longer than the context length loses tokens at its beginning. Letters: S tokens fed, V
vocabulary. Source: ``TemplateLM._encode_pair`` and ``loglikelihood`` in lm_eval/api/model.py, and
``HFLM._loglikelihood_tokens`` in lm_eval/models/huggingface.py, of lm-evaluation-harness 0.4.13.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...export.errors import NumericsError, RequestError
from ...runtime.chunks import CHUNK_SIZE, chunks
from ...runtime.session import Logits, Session
from ...runtime.shared_beginning import shared_beginning
from ...runtime.tokenizer import Tokenizer


@dataclass(frozen=True)
class Score:
    """Of one continuation."""

    loglikelihood: float  # nats, the sum over its tokens
    is_greedy: bool  # every token is the likeliest one at its place
    truncated: int = 0  # tokens of the context that did not fit


def encode_pair(
    tokenizer: Tokenizer, context: str, continuation: str, start_id: int | None
) -> tuple[list[int], list[int]]:
    """Token ids of the context, at least one, and of the continuation, at least one.

    ``start_id`` is the token a text begins with. Raises RequestError for a continuation that adds
    no token, and for an empty context without a ``start_id``.
    """
    stripped = context.rstrip()
    continuation = context[len(stripped) :] + continuation
    if context:
        whole = tokenizer.encode(stripped + continuation)
        context_ids = tokenizer.encode(stripped)
        ids = whole[len(context_ids) :]
    else:
        context_ids, ids = [], tokenizer.encode(continuation, add_special_tokens=False)
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


def check_length(continuation: Sequence[int], context_length: int) -> None:
    """Raises RequestError for more tokens than ``context_length``: they cannot all be scored."""
    if len(continuation) > context_length:
        raise RequestError(
            f"the continuation has {len(continuation)} tokens, expected at most {context_length} "
            "(the context length); shorten it"
        )


class Scorer:
    """Scores one pair after another; what a pair begins with like the one before is kept.

    So the choices of a question cost little more than its text. A score is the same, bit by bit,
    whatever was scored before: what is fed together depends on the pair alone, and only what was
    fed so is kept. That matters where activations are quantized, since the last bit of a row may
    depend on how many rows are computed at once (see ``chunks``).
    """

    def __init__(self, session: Session, context_length: int | None = None) -> None:
        """``context_length`` may be less than the model's, which it is unless given.

        Raises RequestError for more, and for less than 1.
        """
        longest = session.shape.context_length
        self.context_length = longest if context_length is None else context_length
        if not 1 <= self.context_length <= longest:
            raise RequestError(
                f"context length is {context_length!r:.40}, expected 1 to {longest}, the model's"
            )
        self._session = session
        self._cache = session.new_cache()
        self._held: list[Sequence[int]] = []  # chunks of tokens whose rows the cache has

    def score(self, context: Sequence[int], continuation: Sequence[int]) -> Score:
        """The likelihood of ``continuation`` after ``context``, neither of them empty.

        Raises RequestError for a continuation longer than the context length, NumericsError for
        logits that are not finite.
        """
        check_length(continuation, self.context_length)
        # The last token is predicted, not fed.
        truncated = max(0, len(context) + len(continuation) - 1 - self.context_length)
        context = context[truncated:]
        fed, targets = [*context, *continuation[:-1]], np.array(continuation, np.int64)
        # One token more than needed: a continuation of one token would be fed alone.
        first = len(context) - 2 if len(context) > 3 else 0
        self._feed(fed[:first])
        total, is_greedy = 0.0, True
        for chunk in chunks(fed[first:], CHUNK_SIZE):
            done = self._cache.length - (len(context) - 1)
            rows = self._session.all_logits(chunk, self._cache)[max(0, -done) :]
            wanted = targets[max(0, done) :][: len(rows)]
            total += float(logprobs(rows, wanted).sum())
            is_greedy = is_greedy and bool((rows.argmax(axis=-1) == wanted).all())
        return Score(total, is_greedy, truncated)

    def _feed(self, ids: Sequence[int]) -> None:
        """Leaves the cache with the rows of ``ids``, keeping the chunks it begins with."""
        wanted = list(chunks(ids, CHUNK_SIZE))
        same = shared_beginning(self._held, wanted)
        del self._held[same:]
        self._cache.truncate(sum(map(len, self._held)))
        for chunk in wanted[same:]:
            self._session.step(chunk, self._cache)
            self._held.append(chunk)


def logprobs(logits: Logits, targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """Natural log of the probability of each row's target: logits (S, V), targets (S,) -> (S,).

    Raises NumericsError for logits that are not finite.
    """
    largest = logits.max(axis=-1)
    if not np.isfinite(largest).all():
        raise NumericsError(
            "the model's logits are not finite, expected numbers; export the checkpoint again, in "
            "another precision if it is quantized"
        )
    # Summed in float64: the float32 terms are good to 1e-7, and so is then their sum.
    total = np.exp(logits - largest[:, None]).sum(axis=-1, dtype=np.float64)
    found = logits[np.arange(len(targets)), targets]
    logs: NDArray[np.float64] = found.astype(np.float64) - largest - np.log(total)
    return logs
