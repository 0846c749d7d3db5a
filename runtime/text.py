"""Text in, text out: the rung of the ladder that the command line, ``Model`` and servers stand on.

Tokens become printable pieces as they come, and everything that can end a generation is decided
here, each with its finish reason:

    "eos"        the model produced an end token, or a constraint lets nothing else follow
    "stop"       a stop string appeared; neither it nor what follows is returned
    "length"     ``max_tokens`` tokens were produced
    "context"    the context length was reached, see ``context_policy``
    "timeout"    ``max_seconds`` were over
    "cancelled"  ``cancel()`` was called
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as AnySequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ..export.later import later
from .cancellation import Cancellation, Cancelled
from .decode import Loop, begin, steps
from .prefix import Prefixes
from .request import Request
from .reuse import ReusableCache
from .sequence import Sequence, Step
from .session import Session
from .stopping import SpecialStops, StopMatcher
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from .prompt_cache import PromptCacheFile
else:
    PromptCacheFile = later("pocketlm.runtime.prompt_cache.PromptCacheFile")


@dataclass(frozen=True)
class Piece:
    """Printable text, and the tokens that completed it.

    text    never half a character, and nothing that may be the start of a stop string; may be
            empty on the last piece
    steps   a ``Step`` for each token: ``token``, ``logprob`` (None unless asked for), ``seconds``
    """

    text: str
    steps: tuple[Step, ...] = ()

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(step.token for step in self.steps)


@dataclass
class Timings:
    """What a generation took; grows while it runs.

    prompt_tokens         of the prompt
    reused_tokens         of these, how many were found in a cache and not computed
    new_tokens            generated so far
    prefill_seconds       from the first step to the first token: the prompt, and one sampling
    decode_seconds        of all tokens after the first
    first_token_seconds   from the request on: tokenizing the prompt included
    constraint_seconds    of all of them, finding out which tokens a constraint allows
    guessed_tokens        computed before they were chosen, by ``lookup`` or ``draft``
    right_guesses         of these, how many were chosen then
    slides                times that the context was full and slid, see ``Model.stream``
    recomputed_tokens     computed again because of that
    """

    prompt_tokens: int = 0
    reused_tokens: int = 0
    new_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    first_token_seconds: float = 0.0
    constraint_seconds: float = 0.0
    guessed_tokens: int = 0
    right_guesses: int = 0
    slides: int = 0
    recomputed_tokens: int = 0

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens computed per second; 0 before the first token."""
        computed = self.prompt_tokens - self.reused_tokens
        return computed / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_rate(self) -> float:
        """Tokens per second after the first; 0 with fewer than two."""
        return (self.new_tokens - 1) / self.decode_seconds if self.decode_seconds else 0.0


@dataclass(frozen=True)
class Result:
    """A finished generation, as ``Model.generate`` returns it.

    text            what was generated, without the prompt and without a stop string
    token_ids       the new tokens; an end token, if that ended it, included
    finish_reason   what ended it:
                      "eos"        the model produced an end token, or a constraint lets nothing
                                   else follow
                      "stop"       a stop string appeared; neither it nor what follows is returned
                      "length"     ``max_tokens`` tokens were produced
                      "context"    the context length was reached
                      "timeout"    ``max_seconds`` were over
                      "cancelled"  ``cancel()`` was called, or the process is ending
    timings         seconds and rates: a ``Timings``
    logprobs        natural log of each token's probability; None unless asked for
    tops            what ``top_logprobs`` is made of
    index           place among the requests that ``generate_many`` was given
    error           what it failed with, the finish reason being "error"; else None
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    timings: Timings
    logprobs: list[float] | None
    tops: list[AnySequence[tuple[int, float]]] | None = None
    index: int = 0
    error: Exception | None = None

    @property
    def top_logprobs(self) -> list[tuple[tuple[int, float], ...]] | None:
        """Of each token, (token, logprob) of the likeliest in its place.

        None unless a number of them was asked for. Made anew each time: it takes ten times the
        memory of ``tops``.
        """
        return None if self.tops is None else [tuple(top) for top in self.tops]


class Output:
    """What a request has produced so far: tokens become printable pieces as they come.

    prompt_ids      the tokens of the prompt
    token_ids       those generated so far
    finish_reason   what ended it, see ``Result``; None while it goes on
    timings         seconds and rates: a ``Timings``
    """

    def __init__(self, request: Request, tokenizer: Tokenizer) -> None:
        self.prompt_ids = tuple(request.prompt_ids)
        self.token_ids: list[int] = []
        self.finish_reason: str | None = None
        self.timings = Timings(prompt_tokens=len(self.prompt_ids))
        self._request = request
        self._requested = time.perf_counter()
        self._detokenizer = tokenizer.detokenizer(after=self.prompt_ids)
        self._special = SpecialStops(request.stop, tokenizer.special_tokens)
        self._stops = StopMatcher(self._special.stops)
        self._pending: list[Step] = []

    def add(self, step: Step, sequence: Sequence) -> Piece | None:
        """The text that ``step`` of ``sequence`` completes, if any; sets what ended it, if it did.

        An end token is no text.
        """
        self._count(step, sequence)
        self._pending.append(step)
        if step.token in self._request.end_ids:
            self.finish_reason = "eos"
            return None
        added = self._detokenizer.add(step.token)
        text, stopped = self._stops.add(self._special.through(added))
        if step.token in self._special:
            held = self._detokenizer.held
            self._special.wait(step.token, held)
            soon = copy(self._stops)  # what is held may yet change, unless this ends it
            more, stopped = soon.add(self._special.ahead(held))
            if stopped:
                self._stops, text = soon, text + more
        text = self._special.unmarked(text)
        self.finish_reason = "stop" if stopped else step.finish_reason
        return self._piece(text) if text else None

    @property
    def expired(self) -> bool:
        """Whether the time that the request had is over."""
        limit = self._request.max_seconds
        return limit is not None and time.perf_counter() - self._requested >= limit

    def end(self, reason: str) -> Piece | None:
        """What is left when all tokens are there; ``reason`` is what ended it if nothing else."""
        self.finish_reason = self.finish_reason or reason
        rest, _ = self._stops.add(self._special.through(self._detokenizer.finish()))
        rest = self._special.unmarked(rest + self._stops.finish())
        if self._stops.stopped:
            self.finish_reason = "stop"
        return self._piece(rest) if rest or self._pending else None

    def result_of(
        self, pieces: Iterable[Piece], index: int = 0, error: Exception | None = None
    ) -> Result:
        """The whole, of all its pieces."""
        pieces = list(pieces)
        steps = [step for piece in pieces for step in piece.steps]
        asked = self._request.logprobs
        logprobs = [step.logprob for step in steps if step.logprob is not None]
        return Result(
            text="".join(piece.text for piece in pieces),
            token_ids=self.token_ids,
            finish_reason=str(self.finish_reason),
            timings=self.timings,
            logprobs=None if asked is None else logprobs,
            tops=[step.top for step in steps] if asked else None,
            index=index,
            error=error,
        )

    def _piece(self, text: str) -> Piece:
        steps, self._pending = tuple(self._pending), []
        return Piece(text, steps)

    def _count(self, step: Step, sequence: Sequence) -> None:
        timings = self.timings
        self.token_ids.append(step.token)
        timings.new_tokens += 1
        timings.slides, timings.recomputed_tokens = sequence.num_slides, sequence.num_recomputed
        timings.guessed_tokens, timings.right_guesses = sequence.num_guessed, sequence.num_right
        timings.constraint_seconds = sequence.constraint_seconds
        if timings.new_tokens == 1:
            timings.prefill_seconds = step.seconds
            timings.reused_tokens = sequence.num_reused
            timings.first_token_seconds = time.perf_counter() - self._requested
        else:
            timings.decode_seconds += step.seconds


class TextStream(Output):
    """An iterator of pieces that knows, at any time, what has been produced so far.

        stream = model.stream("Once upon a time", max_tokens=20)
        text = "".join(piece.text for piece in stream)
        stream.finish_reason, stream.token_ids, stream.timings.decode_rate

    prompt_ids      the tokens of the prompt
    token_ids       those generated so far
    finish_reason   what ended it, see ``Result``; None while it goes on
    timings         seconds and rates: a ``Timings``
    cancellation    what ``cancel`` uses: the one that was given, or its own
    prompt_cache    the file that was asked for, a ``PromptCacheFile``; else None
    """

    def __init__(
        self,
        session: Session,
        tokenizer: Tokenizer,
        request: Request,
        cancellation: Cancellation | None = None,
        cache: ReusableCache | None = None,
        loop: Loop = steps,
        prefixes: Prefixes | None = None,
        exactly: bool = False,
        prompt_cache: PromptCacheFile | None = None,
    ) -> None:
        """Nothing runs before the first piece is asked for; ``cache`` may hold part of the prompt.

        ``loop`` is one of those of ``decode``; ``prefixes`` and ``exactly`` are those of ``begin``;
        ``prompt_cache`` are the prefixes where these are a file.
        The pieces joined are the decoded ``token_ids``, up to a stop string.
        """
        super().__init__(request, tokenizer)
        self.cancellation = cancellation or Cancellation()
        self.prompt_cache = prompt_cache
        begun = partial(begin, session, request, cache, prefixes, exactly)
        # Not a method: an unfinished stream would refer to itself, and outlive its last user.
        self._pieces = _generated(weakref.proxy(self), session, begun, loop, prefixes)

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        return next(self._pieces)

    def cancel(self) -> None:
        """Ends the stream from any thread, at the latest after the running graph node."""
        self.cancellation.cancel()


def _generated(
    stream: TextStream,
    session: Session,
    begun: Callable[[], Sequence],
    loop: Loop,
    prefixes: Prefixes | None,
) -> Iterator[Piece]:
    sequence = begun()
    stream.finish_reason = sequence.finish_reason  # of a prompt that is too long
    try:
        for step in loop(session, sequence, stream.cancellation):
            piece = stream.add(step, sequence)
            if piece is not None:
                yield piece
            if stream.finish_reason or stream.cancellation.cancelled or stream.expired:
                break
    except Cancelled:
        pass
    rest = stream.end("timeout" if stream.expired else "cancelled")
    if rest is not None:
        yield rest
    if prefixes is not None:
        prefixes.keep(sequence)
