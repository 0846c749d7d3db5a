"""Loops over sequences: who takes a step when."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import numpy as np

from ..export.errors import PocketLMError
from .arena import Cache
from .cancellation import Cancellation
from .chunks import cuts
from .request import Request
from .reuse import ReusableCache
from .sequence import Sequence, Step
from .session import Logits, Session
from .shared_beginning import shared_beginning
from .speculation import MOST_GUESSES, Drafter, Pace


def generate(
    session: Session,
    request: Request,
    cache: Cache | ReusableCache | None = None,
    cancellation: Cancellation | None = None,
) -> Iterator[Step]:
    """Yields the tokens that follow the prompt of ``request``, one at a time as they are computed.

    ``cache`` may hold the beginning of the prompt, but not all of it. Closing the iterator stops
    the work. Raises RequestError when the prompt does not fit, NumericsError when logits are not
    finite.
    """
    yield from steps(session, begin(session, request, cache), cancellation)


def begin(
    session: Session, request: Request, cache: Cache | ReusableCache | None = None
) -> Sequence:
    """The sequence of ``request``; raises RequestError for a prompt that does not fit."""
    if isinstance(cache, ReusableCache):
        sequence = cache.start(request)
    else:
        cache = session.new_cache() if cache is None else cache
        sequence = Sequence(request, cache, session.shape.context_length)
    session.check_step(sequence.token_ids[sequence.cache.length :], sequence.cache)
    return sequence


def steps(
    session: Session,
    sequence: Sequence,
    cancellation: Cancellation | None = None,
    group: int | None = 1,
) -> Iterator[Step]:
    """One sequence by itself, in steps of ``group`` rows: see ``row_group``."""
    while sequence.finish_reason is None:
        step = sequence.take(_logits(session, sequence, cancellation, group))
        if step is not None:
            yield step


def _logits(
    session: Session, sequence: Sequence, cancellation: Cancellation | None, group: int | None
) -> Logits:
    """(V,) after what a sequence is fed; a prompt of one token, too, is a row of a group."""
    feed = [(sequence.cache, sequence.feed())]
    logits: Logits = session.step_together(feed, cancellation, multiple=group or 1)[0]
    return logits


def speculate(
    session: Session,
    sequence: Sequence,
    drafter: Drafter,
    cancellation: Cancellation | None = None,
) -> Iterator[Step]:
    """One sequence by itself, several tokens at once where that is faster: see ``speculation``."""
    pace = Pace()
    while sequence.finish_reason is None:
        if sequence.in_prompt:
            step = sequence.take(session.step(sequence.feed(), sequence.cache, cancellation))
            if step is not None:
                yield step
            continue
        started = time.perf_counter()
        available, sure = drafter.outlook(sequence, min(MOST_GUESSES, sequence.room))
        count = pace.num_guesses(sure, available)
        guesses = _known(drafter.guess(sequence, count), session) if count else []
        ids = [*sequence.feed(), *guesses]
        if guesses:
            rows = session.all_logits(ids, sequence.cache, cancellation=cancellation)
        else:
            rows = session.step_together([(sequence.cache, ids)], cancellation)
        found = sequence.take_guessed(rows, guesses)
        pace.took(1 + count, time.perf_counter() - started)
        pace.came_out(sure, len(guesses), len(found) - 1)
        yield from found


def _known(guesses: list[int], session: Session) -> list[int]:
    """Those before the first that the vocabulary does not have: a drafter's may be larger."""
    size = session.shape.vocab_size
    return list(itertools.takewhile(lambda token: token < size, guesses))


class Batch:
    """Several sequences, which join and leave between any two steps.

    A step is a chunk of the prompt that joined last, and a token for each of the others: whose
    prompt is long delays them by a chunk at most. A prompt that is another's is copied, and one
    that begins alike as far as both are cut into the same chunks. Nothing of a sequence depends on
    its company where ``group`` is the one of ``row_group``.
    """

    def __init__(self, session: Session, group: int | None = 1) -> None:
        """In every step a multiple of ``group`` rows is computed; None: each by itself."""
        self._session = session
        self._group = group
        self._new_cache = session.new_caches()
        self._joining: Sequence | None = None
        self._running: list[Sequence] = []
        self._logits: Logits = np.empty((0, session.shape.vocab_size), np.float32)  # of a step

    def __len__(self) -> int:
        return len(self._running) + (self._joining is not None)

    @property
    def is_joining(self) -> bool:
        """Whether a prompt is still under way: no other can join before it has."""
        return self._joining is not None

    @property
    def most_tokens(self) -> int:
        """The length that the longest of the sequences may come to."""
        return max(map(self.longest, self._requests), default=0)

    def longest(self, request: Request) -> int:
        """The tokens that a cache may come to hold for ``request``."""
        whole = len(request.prompt_ids) + request.max_tokens - 1
        return min(whole, self._session.shape.context_length)

    def join(self, request: Request) -> Sequence:
        """Begins with a request; its prompt is computed by the next steps."""
        assert self._joining is None
        self._joining = self._begun(request) or self._sequence(request, self._new_cache())
        return self._joining

    def leave(self, sequence: Sequence) -> None:
        """Takes a sequence out, if it is still in."""
        if sequence is self._joining:
            self._joining = None
        elif sequence in self._running:
            self._running.remove(sequence)

    def step(
        self, cancellation: Cancellation | None = None
    ) -> list[tuple[Sequence, Step | PocketLMError]]:
        """The tokens of one step, or what went wrong with one sequence alone; that has left then.

        Sequences that are finished have left, too. Raises what ends a step of all, after which
        they can take it again.
        """
        running = list(self._running)
        # First what can fail for all: then no token has been taken yet.
        rows = self._rows(running, cancellation) if running else []
        found = self._join_further(cancellation) if self._joining is not None else []
        found += [
            (sequence, _taken(sequence, row)) for sequence, row in zip(running, rows, strict=True)
        ]
        for sequence, step in found:
            if sequence.finish_reason is not None or isinstance(step, PocketLMError):
                self.leave(sequence)
        return [(sequence, step) for sequence, step in found if step is not None]

    def _rows(self, running: list[Sequence], cancellation: Cancellation | None) -> list[Logits]:
        feeds = [(sequence.cache, sequence.feed()) for sequence in running]
        if self._group is None:
            return [self._session.step(ids, cache, cancellation) for cache, ids in feeds]
        if self._logits.shape[0] < len(feeds):
            self._logits = np.empty((2 * len(feeds), self._session.shape.vocab_size), np.float32)
        step = self._session.step_together
        return list(step(feeds, cancellation, multiple=self._group, out=self._logits))

    def _join_further(
        self, cancellation: Cancellation | None
    ) -> list[tuple[Sequence, Step | PocketLMError | None]]:
        sequence = self._joining
        assert sequence is not None
        try:
            logits = sequence.prompt_logits
            if logits is None:
                logits = _logits(self._session, sequence, cancellation, self._group)
        except PocketLMError as error:
            return [(sequence, error)]
        step = _taken(sequence, logits)
        if not sequence.in_prompt:
            self._joining = None
            self._running.append(sequence)
        return [(sequence, step)]

    @property
    def _requests(self) -> list[Request]:
        joining = [] if self._joining is None else [self._joining]
        return [sequence.request for sequence in (*self._running, *joining)]

    def _sequence(self, request: Request, cache: Cache) -> Sequence:
        return Sequence(request, cache, self._session.shape.context_length)

    def _begun(self, request: Request) -> Sequence | None:
        """It, with what another one has computed of the same prompt, or of its first chunks."""
        best = max(
            self._running, key=lambda other: _same_chunks(other.request, request), default=None
        )
        kept = 0 if best is None else _same_chunks(best.request, request)
        if best is None or not kept:
            return None
        cache = best.cache.copy()
        cache.truncate(kept)
        sequence = self._sequence(request, cache)
        if kept == len(request.prompt_ids):
            sequence.prompt_logits = best.prompt_logits
        return sequence


def _same_chunks(first: Request, second: Request) -> int:
    """The tokens that two prompts begin with alike and that are computed in the same chunks."""
    shared = shared_beginning(first.prompt_ids, second.prompt_ids)
    ends, others = (cuts(len(one.prompt_ids), one.chunk_size) for one in (first, second))
    alike = ends[: shared_beginning(ends, others)]
    return max((end for end in alike if end <= shared), default=0)


def _taken(sequence: Sequence, logits: Logits) -> Step | PocketLMError | None:
    try:
        return sequence.take(logits)
    except PocketLMError as error:
        return error
