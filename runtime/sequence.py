"""One request under way: what is fed next, and what is made of the logits.

    sequence = Sequence(request, session.new_cache())
    while sequence.finish_reason is None:
        logits = session.step(sequence.feed(), sequence.cache)
        step = sequence.take(logits)        # None while the prompt is not at its end

All loops are made of these three lines: they differ in whose turn it is.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Sequence as AnySequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .arena import Cache
from .chunks import Chunked, cuts
from .constraint import Constraint
from .context_policy import SLIDE, window
from .logprobs import TopLogprobs, likeliest, logprobs
from .request import Request
from .sampling import make_sampler
from .session import Logits

NOTHING = Chunked((), ())


@dataclass(frozen=True)
class Step:
    """One generated token."""

    token: int
    logprob: float | None  # natural log, before any sampling option; None unless asked for
    seconds: float  # spent on it, the prompt included for the first
    top: AnySequence[tuple[int, float]] = ()
    """(token, logprob) of the likeliest in its place, as many as were asked for."""
    finish_reason: str | None = None
    """What ended the tokens with this one; several may come out of one step."""


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
        computed: Chunked | None = None,
    ) -> None:
        """``cache`` may hold the beginning of the prompt; all of it where its logits are known.

        ``computed`` is what of it was computed in chunks, as far as that is known. Raises
        RequestError as ``Request.seen``.
        """
        self.request = request
        self.cache = cache
        self.token_ids = list(request.prompt_ids)
        prompt = request.seen(context_length)
        self.seen = list(prompt.token_ids)
        """The tokens that the model sees: those in the cache, and those that are to be fed."""
        self.num_reused = cache.length
        """Tokens of the prompt that the cache had."""
        self.finish_reason: str | None = None
        self.num_guessed = self.num_right = 0
        """Tokens that were fed before they were chosen, and those that then were."""
        self._context_length = context_length
        # Weak, since it refers to this; once it is gone, it lends the cache to nobody else.
        self._lender = None if lender is None else weakref.ref(lender)
        self.num_slides = 0 if len(self.seen) == len(self.token_ids) else 1
        """How often the context was full and went on with a part of it; see ``context_policy``."""
        self.num_recomputed = 0
        """Tokens that were computed again because of that."""
        self._constraint: Constraint | None = None
        if request.grammar is not None:
            self._constraint = request.grammar.start(request.end_ids, request.prompt_ids)
        self.sampler = make_sampler(
            request.sampling,
            len(self.token_ids),
            request.end_ids,
            self._constraint,
            request.banned,
        )
        computed = computed or NOTHING
        whole = cache.length == len(self.seen)
        self.prompt_logits: Logits | None = computed.logits if whole else None
        """Those after the prompt, once they were computed."""
        self._plan(prompt.ends, computed)
        if request.stops_at_once(context_length):
            self.finish_reason = "context"
        self._started: float | None = None

    @property
    def num_new(self) -> int:
        """Tokens generated."""
        return len(self.token_ids) - len(self.request.prompt_ids)

    @property
    def in_prompt(self) -> bool:
        """Whether tokens are to be fed before the next is chosen: of the prompt, or after a slide.

        The tokens that are computed one at a time come after these.
        """
        return self.cache.length < self._cuts[-1]

    @property
    def known_logits(self) -> Logits | None:
        """Those after the prompt while nothing has to be computed for them: it was known whole."""
        return None if self.num_new else self.prompt_logits

    @property
    def computed(self) -> Chunked:
        """What was computed in chunks by now; a prompt of one token is computed as any new one."""
        ends = [end for end in self._ends if 1 < end <= self.cache.length]
        whole = ends[-1:] == self._cuts[-1:]
        logits = self.prompt_logits if whole else None
        return Chunked(self.seen, ends, logits, text_length=self._text_length)

    @property
    def constraint_seconds(self) -> float:
        """What finding out which tokens are allowed has taken."""
        return 0.0 if self._constraint is None else self._constraint.seconds

    def feed(self) -> AnySequence[int]:
        """What to append to the cache next: a chunk of the prompt, or the last token.

        The same again, as long as the cache holds what it held: after a step that failed.
        """
        lender = None if self._lender is None else self._lender()
        if lender is not None:
            lender.check_holds(self)
        if self._started is None:
            self._started = time.perf_counter()
        if not self.in_prompt:
            return self.seen[-1:]
        held = self.cache.length
        return self.seen[held : next(cut for cut in self._cuts if cut > held)]

    def take(self, logits: Logits) -> Step | None:
        """The token that follows what was fed, by the logits (V,) after it; None in the prompt.

        Raises NumericsError for logits that are not finite.
        """
        if self.in_prompt:
            return None
        token = self.sampler(logits, self.token_ids)
        asked = self.request.logprobs is not None
        chosen, top = self._logprobs(logits, token) if asked else (None, ())
        self.token_ids.append(token)
        self.seen.append(token)
        if self.num_new == 1:
            self.prompt_logits = logits
        if token in self.request.end_ids or self._must_end():
            self.finish_reason = "eos"
        elif self.num_new == self.request.max_tokens:
            self.finish_reason = "length"
        elif len(self.seen) > self._context_length:
            self._outgrow()
        now = time.perf_counter()
        started, self._started = self._started or now, None
        return Step(token, chosen, now - started, top, self.finish_reason)

    @property
    def room(self) -> int:
        """Tokens that can still come, beside the next one, before the context is full."""
        left = self.request.max_tokens - self.num_new
        return min(left, self._context_length + 1 - len(self.seen)) - 1

    def take_guessed(self, rows: Logits, guesses: AnySequence[int]) -> list[Step]:
        """The tokens that follow what was fed: ``feed``, and then these guesses.

        ``rows`` (1 + guesses, V) are the logits after each. As many steps come out as guesses are
        what the sampler chooses, and one more; the cache forgets the other guesses.
        """
        found: list[Step] = []
        for place, logits in enumerate(rows):
            step = self.take(logits)
            assert step is not None
            found.append(step)
            guessed = place < len(guesses) and guesses[place] == step.token
            self.num_right += guessed
            if not guessed or self.finish_reason is not None:
                break
        self.num_guessed += len(guesses)
        if not self.in_prompt:  # the context did not slide
            self.cache.truncate(len(self.seen) - 1)
        return found

    def _plan(self, whole: AnySequence[int], computed: Chunked) -> None:
        """Where what is to be fed is cut, ``computed`` being what the cache has of it.

        ``whole`` is where all of it would be cut.
        """
        held = self.cache.length
        self.cache.text_length = len(self.seen)
        self._text_length = max(len(self.seen), computed.text_length if held else 0)
        kept = [end for end in computed.ends if end <= held]
        if not held or held in kept and kept == list(whole[: len(kept)]):
            self._cuts = self._ends = whole
        else:
            rest = cuts(len(self.seen) - held, self.request.chunk_size)
            self._cuts, self._ends = [held + cut for cut in rest], kept

    def _outgrow(self) -> None:
        """The context is full."""
        if self.request.context != SLIDE:
            self.finish_reason = "context"
            return
        self.seen = window(self.seen, self.request.keep, self._context_length)
        self.cache.truncate(0)
        self.num_slides += 1
        self.num_recomputed += len(self.seen)
        self.prompt_logits = None
        self._plan(cuts(len(self.seen), self.request.chunk_size), NOTHING)

    def _logprobs(self, logits: Logits, token: int) -> tuple[float, AnySequence[tuple[int, float]]]:
        others = likeliest(logits, self.request.logprobs or 0)
        values = logprobs(logits[None], np.array([[token, *others]]))[0]
        return float(values[0]), TopLogprobs(others, values[1:]) if others.size else ()

    def _must_end(self) -> bool:
        if self._constraint is None:
            return False
        return self._constraint.must_end(self.token_ids[len(self.request.prompt_ids) :])
