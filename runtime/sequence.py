"""One request under way: what is fed next, and what is made of the logits.

    sequence = Sequence(request, session.new_cache())
    while sequence.finish_reason is None:
        logits = session.step(sequence.feed(), sequence.cache)
        step = sequence.take(logits)        # None while the prompt is not at its end

All loops are made of these three lines: they differ in whose turn it is.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from collections.abc import Sequence as AnySequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .arena import Cache
from .chunks import chunks
from .constraint import Constraint
from .request import Request
from .sampling import logprob, make_sampler
from .session import Logits


@dataclass(frozen=True)
class Step:
    """One generated token."""

    token: int
    logprob: float | None  # natural log, before any sampling option; None unless asked for
    seconds: float  # spent on it, the prompt included for the first
    top: tuple[tuple[int, float], ...] = ()
    """(token, logprob) of the likeliest in its place, as many as were asked for."""


class Lender(Protocol):
    """Whose cache it is, if that outlives the sequence."""

    def check_holds(self, sequence: Sequence) -> None:
        """Raises RequestError if it has lent the cache to another sequence since."""


class Sequence:
    """The tokens of a request, its cache and its sampler, and what ended it on the level of tokens:

    "eos" (an end token, or a constraint lets nothing else follow), "length" (``max_tokens``) or
    "context" (the model's length is reached).
    """

    def __init__(
        self,
        request: Request,
        cache: Cache,
        context_length: int,
        lender: Lender | None = None,
    ) -> None:
        """``cache`` may hold the beginning of the prompt, but not all of it."""
        assert cache.length < len(request.prompt_ids)
        self.request = request
        self.cache = cache
        self.token_ids = list(request.prompt_ids)
        self.num_reused = cache.length
        """Tokens of the prompt that the cache had."""
        self.finish_reason: str | None = None
        self._context_length = context_length
        self._lender = lender
        self._constraint: Constraint | None = None
        if request.grammar is not None:
            self._constraint = request.grammar.start(request.end_ids, request.prompt_ids)
        self._sampler = make_sampler(
            request.sampling,
            len(self.token_ids),
            request.end_ids,
            self._constraint,
            request.banned,
        )
        rest = self.token_ids[cache.length :]
        self._prompt: Iterator[AnySequence[int]] = chunks(rest, request.chunk_size)
        self._started: float | None = None

    @property
    def num_new(self) -> int:
        """Tokens generated."""
        return len(self.token_ids) - len(self.request.prompt_ids)

    @property
    def in_prompt(self) -> bool:
        """Whether tokens of the prompt are still to be fed."""
        return self.cache.length < len(self.request.prompt_ids)

    @property
    def constraint_seconds(self) -> float:
        """What finding out which tokens are allowed has taken."""
        return 0.0 if self._constraint is None else self._constraint.seconds

    def feed(self) -> AnySequence[int]:
        """What to append to the cache next: a chunk of the prompt, or the last token."""
        if self._lender is not None:
            self._lender.check_holds(self)
        if self._started is None:
            self._started = time.perf_counter()
        return next(self._prompt) if self.in_prompt else self.token_ids[-1:]

    def take(self, logits: Logits) -> Step | None:
        """The token that follows what was fed, by the logits (V,) after it; None in the prompt.

        Raises NumericsError for logits that are not finite.
        """
        if self.in_prompt:
            return None
        token = self._sampler(logits, self.token_ids)
        chosen = None if self.request.logprobs is None else logprob(logits, token)
        top = () if not self.request.logprobs else likeliest(logits, self.request.logprobs)
        self.token_ids.append(token)
        if token in self.request.end_ids or self._must_end():
            self.finish_reason = "eos"
        elif self.num_new == self.request.max_tokens:
            self.finish_reason = "length"
        elif self.cache.length == self._context_length:
            self.finish_reason = "context"
        started, self._started = self._started, None
        assert started is not None
        return Step(token, chosen, time.perf_counter() - started, top)

    def _must_end(self) -> bool:
        if self._constraint is None:
            return False
        return self._constraint.must_end(self.token_ids[len(self.request.prompt_ids) :])


def likeliest(logits: Logits, count: int) -> tuple[tuple[int, float], ...]:
    """The ``count`` likeliest tokens of logits (V,), from the first on, each with its logprob."""
    count = min(count, logits.size)
    found = np.argpartition(-logits, count - 1)[:count]
    found = found[np.lexsort((found, -logits[found]))]
    first = logprob(logits, int(found[0]))
    below = logits[found].astype(np.float64) - float(logits[found[0]])
    values = zip(found, below, strict=True)
    return tuple((int(token), first + float(value)) for token, value in values)
