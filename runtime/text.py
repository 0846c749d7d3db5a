"""Text in, text out: the rung of the ladder that the command line, ``Model`` and servers stand on.

A prompt becomes token ids once, tokens become printable pieces as they come, and everything that
can end a generation is decided here, each with its finish reason:

    "eos"        the model produced an end token, or a constraint lets nothing else follow
    "stop"       a stop string appeared; neither it nor what follows is returned
    "length"     ``max_tokens`` tokens were produced
    "context"    the context length was reached
    "cancelled"  ``cancel()`` was called
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..export.errors import RequestError
from ..export.whole_number import brief, whole_number
from .cancellation import Cancellation, Cancelled
from .constraint import Constraint, Grammar
from .generate import CHUNK_SIZE, Step, generate_tokens
from .reuse import ReusableCache
from .sampling import SamplingOptions, make_sampler
from .session import Session
from .stopping import StopMatcher
from .tokenizer import Detokenizer, Tokenizer

CHARACTERS_PER_TOKEN = 16  # a prompt with more than this per context token cannot fit


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """When a generation ends, and what is reported on the way."""

    max_tokens: int = 256
    stop: Sequence[str] = ()
    ignore_eos: bool = False  # for measuring: end tokens are produced like any other
    logprobs: bool = False
    chunk_size: int = CHUNK_SIZE  # tokens per prefill run

    def __post_init__(self) -> None:
        """Raises RequestError for a value outside its range."""
        for name in ("max_tokens", "chunk_size"):
            value = getattr(self, name)
            number = whole_number(value)
            if number is None or number < 1:
                raise RequestError(
                    f"{name} is {brief(value)}, expected an integer from 1 up; give how many tokens"
                )
            object.__setattr__(self, name, number)  # NumPy's becomes Python's
        for name in ("ignore_eos", "logprobs"):
            value = getattr(self, name)
            if not isinstance(value, bool | np.bool_):
                raise RequestError(
                    f"{name} is {brief(value)}, expected True or False: a truth value, no number; "
                    "leave it out for False"
                )


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
    constraint_seconds    of them, finding out which tokens a constraint allows
    """

    prompt_tokens: int = 0
    reused_tokens: int = 0
    new_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    first_token_seconds: float = 0.0
    constraint_seconds: float = 0.0

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens computed per second; 0 before the first token."""
        computed = self.prompt_tokens - self.reused_tokens
        return computed / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_rate(self) -> float:
        """Tokens per second after the first; 0 with fewer than two."""
        return (self.new_tokens - 1) / self.decode_seconds if self.decode_seconds else 0.0


@dataclass
class TextStream:
    """An iterator of pieces that knows, at any time, what has been produced so far.

        stream = model.stream("Once upon a time", max_tokens=20)
        text = "".join(piece.text for piece in stream)
        stream.finish_reason, stream.token_ids, stream.timings.decode_rate

    prompt_ids      the tokens of the prompt
    token_ids       those generated so far
    finish_reason   what ended it, see ``Result``; None while it goes on
    timings         seconds and rates: a ``Timings``
    cancellation    what ``cancel`` uses: the one that was given, or its own
    """

    prompt_ids: tuple[int, ...]
    cancellation: Cancellation
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    timings: Timings = field(default_factory=Timings)
    _pieces: Iterator[Piece] = field(default=iter(()), repr=False)
    _cache: ReusableCache | None = field(default=None, repr=False)

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        return next(self._pieces)

    def cancel(self) -> None:
        """Ends the stream from any thread, at the latest after the running graph node."""
        self.cancellation.cancel()


def stream_text(
    session: Session,
    tokenizer: Tokenizer,
    end_ids: frozenset[int],
    start_id: int | None,
    prompt: str | Sequence[int],
    sampling: SamplingOptions,
    options: TextOptions,
    cancellation: Cancellation | None = None,
    cache: ReusableCache | None = None,
    grammar: Grammar | None = None,
) -> TextStream:
    """Starts a generation; nothing runs before the first piece is asked for.

    ``start_id`` is what an empty prompt begins with; ``cache`` may hold part of the prompt. The
    pieces joined are the decoded ``token_ids``, up to a stop string. Raises RequestError for a
    prompt that is not text or ids, that is longer than the context, or empty without a start id.
    """
    requested = time.perf_counter()
    shape = session.shape
    prompt_ids = _encode(tokenizer, prompt, start_id, shape.vocab_size, shape.context_length)
    stream = TextStream(tuple(prompt_ids), cancellation or Cancellation(), _cache=cache)
    stream.timings.prompt_tokens = len(prompt_ids)
    stops = StopMatcher(options.stop)
    ends = frozenset[int]() if options.ignore_eos else end_ids
    constraint = None if grammar is None else grammar.start(ends, prompt_ids)
    steps = generate_tokens(
        session,
        prompt_ids,
        make_sampler(sampling, len(prompt_ids), ends, constraint),
        options.max_tokens,
        cache=cache,
        chunk_size=options.chunk_size,
        logprobs=options.logprobs,
        cancellation=stream.cancellation,
    )
    detokenizer = tokenizer.detokenizer(after=prompt_ids)
    stream._pieces = _pieces(
        stream, steps, detokenizer, stops, ends, options, requested, constraint
    )
    return stream


def _pieces(
    stream: TextStream,
    steps: Iterator[Step],
    detokenizer: Detokenizer,
    stops: StopMatcher,
    end_ids: frozenset[int],
    options: TextOptions,
    requested: float,
    constraint: Constraint | None,
) -> Iterator[Piece]:
    pending: list[Step] = []
    try:
        for step in steps:
            _count(stream, step, requested)
            pending.append(step)
            if stream.cancellation.cancelled:
                stream.finish_reason = "cancelled"
                break
            if step.token in end_ids:
                stream.finish_reason = "eos"
                break
            text, stopped = stops.add(detokenizer.add(step.token))
            if text:
                yield Piece(text, tuple(pending))
                pending.clear()
            if stopped:
                stream.finish_reason = "stop"
                break
            if constraint is not None and _ended_by(constraint, stream):
                stream.finish_reason = "eos"
                break
    except Cancelled:
        stream.finish_reason = "cancelled"
    if stream.finish_reason is None:
        full = stream.timings.new_tokens >= options.max_tokens
        stream.finish_reason = "length" if full else "context"
    rest, _ = stops.add(detokenizer.finish())
    rest += stops.finish()
    if stops.stopped:
        stream.finish_reason = "stop"
    if rest or pending:
        yield Piece(rest, tuple(pending))


def _ended_by(constraint: Constraint, stream: TextStream) -> bool:
    """Also finds out what may follow, in time that the next step does not count."""
    before = constraint.seconds
    ended = constraint.must_end(stream.token_ids)
    stream.timings.decode_seconds += constraint.seconds - before
    stream.timings.constraint_seconds = constraint.seconds
    return ended


def _count(stream: TextStream, step: Step, requested: float) -> None:
    timings = stream.timings
    stream.token_ids.append(step.token)
    timings.new_tokens += 1
    if timings.new_tokens == 1:
        timings.prefill_seconds = step.seconds
        timings.reused_tokens = stream._cache.num_reused if stream._cache else 0
        timings.first_token_seconds = time.perf_counter() - requested
    else:
        timings.decode_seconds += step.seconds


def _encode(
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    start_id: int | None,
    vocab_size: int,
    context_length: int,
) -> list[int]:
    if isinstance(prompt, str):
        ids = tokenizer.encode(prompt, max_characters=CHARACTERS_PER_TOKEN * context_length)
    else:
        ids = _check_ids(prompt, vocab_size)
    if not ids:
        if start_id is None:
            raise RequestError(
                "the prompt is empty, expected at least one token: this model has no end-of-text "
                "token to start from; give it a prompt"
            )
        ids = [start_id]
    if len(ids) > context_length:
        raise RequestError(
            f"the prompt has {len(ids)} tokens, expected at most {context_length} "
            "(the context length); shorten it"
        )
    return ids


def _check_ids(prompt: Any, vocab_size: int) -> list[int]:
    is_row = isinstance(prompt, np.ndarray) and prompt.ndim == 1
    if not is_row and (not isinstance(prompt, Sequence) or isinstance(prompt, (bytes, bytearray))):
        raise RequestError(
            f"prompt is {prompt!r:.40} of type {type(prompt).__name__}, expected a string or a "
            "sequence of token ids"
        )
    ids = []
    for value in prompt:
        number = whole_number(value)
        if number is None or not 0 <= number < vocab_size:
            raise RequestError(
                f"prompt has the token id {brief(value)}, expected 0 to {vocab_size - 1}; "
                "use ids of this model's tokenizer"
            )
        ids.append(number)
    return ids
