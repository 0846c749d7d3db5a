"""Loops over sequences: who takes a step when."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator

import numpy as np

from ..export.errors import PocketLMError, RequestError
from ..export.memory import memory_errors
from .arena import SHORTER, Cache
from .cancellation import Cancellation
from .chunks import CHUNK_SIZE
from .prefix import Prefixes, resumed
from .request import Request
from .reuse import ReusableCache
from .row_rule import PLAIN, RowRule, RowSteps
from .sequence import Sequence, Step
from .session import Logits, Session
from .speculation import MOST_GUESSES, Drafter, DraftModel, Pace, PromptLookup

Loop = Callable[[Session, Sequence, Cancellation], Iterator[Step]]


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
    session: Session,
    request: Request,
    cache: Cache | ReusableCache | None = None,
    prefixes: Prefixes | None = None,
    exactly: bool = False,
) -> Sequence:
    """The sequence of ``request``; raises RequestError for a prompt that does not fit.

    What ``prefixes`` have of the prompt is not computed again where there is no ``cache``, of which
    ``exactly`` is that of ``ReusableCache.start``.
    """
    session.check_usable()
    with memory_errors("beginning with a request", advice=SHORTER):
        context_length = session.shape.context_length
        if isinstance(cache, ReusableCache):
            sequence = cache.start(request, exactly)
        elif cache is not None:
            sequence = Sequence(request, cache, context_length)
        else:
            prompt = request.seen(context_length, session.rotated_alike)
            prefix = None if prefixes is None else prefixes.find(prompt)
            sequence = resumed(request, session.new_cache(), context_length, prefix)
        if sequence.finish_reason is None and sequence.prompt_logits is None:
            session.check_step(sequence.seen[sequence.cache.length :], sequence.cache)
    return sequence


def steps(
    session: Session,
    sequence: Sequence,
    cancellation: Cancellation | None = None,
    rows: RowSteps = PLAIN,
) -> Iterator[Step]:
    """One sequence by itself, as in company whose steps are those of ``rows``."""
    # One of each for all steps, which would make their own. The sequence keeps the prompt's logits.
    cancellation = cancellation or Cancellation()
    again = np.empty(session.shape.vocab_size, np.float32)
    while sequence.finish_reason is None:
        out = again if sequence.num_new else None
        step = sequence.take(_logits(session, sequence, cancellation, rows, out))
        if step is not None:
            yield step


def _logits(
    session: Session,
    sequence: Sequence,
    cancellation: Cancellation | None,
    rows: RowSteps,
    out: Logits | None = None,
) -> Logits:
    """(V,) after what a sequence is fed; a prompt of one token, too, is a row of a group.

    They may go to ``out``.
    """
    known = sequence.known_logits
    if known is not None:
        return known
    ids, cache = sequence.feed(), sequence.cache
    prefill = rows.prefill(1)
    if rows.group is None or (rows.group == 1 and not prefill):
        return session.step(ids, cache, cancellation, out)
    feeds = [(cache, ids)]
    logits: Logits = session.step_together(
        feeds, cancellation, multiple=rows.group, prefill=prefill
    )[0]
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
        if sequence.in_prompt or sequence.known_logits is not None:
            step = sequence.take(_logits(session, sequence, cancellation, PLAIN))
            if step is not None:
                yield step
            continue
        started = time.perf_counter()
        available, sure = drafter.outlook(sequence, min(MOST_GUESSES, sequence.room))
        count = pace.num_guesses(sure, available)
        guesses = _known(drafter.guess(sequence, count), session) if count else []
        if guesses:
            ids = [*sequence.feed(), *guesses]
            rows = session.all_logits(ids, sequence.cache, cancellation=cancellation)
            found = sequence.take_guessed(rows, guesses)
        else:
            step = sequence.take(session.step(sequence.feed(), sequence.cache, cancellation))
            found = [] if step is None else [step]
        pace.took(1 + count, time.perf_counter() - started)
        pace.came_out(sure, len(guesses), len(found) - 1)
        yield from found


def choose_loop(
    request: Request, rule: RowRule, *, lookup: bool, draft: Session | None, reproducible: bool
) -> Loop:
    """The loop of a text that runs alone, by what its user asked for: see ``Model.stream``.

    Raises RequestError for two that exclude each other.
    """
    options = {"lookup": lookup, "draft": draft is not None, "reproducible": reproducible}
    asked = [name for name, given in options.items() if given]
    if len(asked) > 1:
        raise RequestError(
            f"found {' and '.join(asked)}, expected one of them: tokens that are guessed are "
            "computed several at once, whose last bits are others; leave one out"
        )
    if reproducible:
        return lambda session, sequence, cancellation: steps(
            session, sequence, cancellation, rule.reproducible()
        )
    if lookup or draft is not None:
        return lambda session, sequence, cancellation: speculate(
            session,
            sequence,
            PromptLookup() if draft is None else DraftModel(draft, request),
            cancellation,
        )
    return steps


def _known(guesses: list[int], session: Session) -> list[int]:
    """Those before the first that the vocabulary does not have: a drafter's may be larger."""
    size = session.shape.vocab_size
    return list(itertools.takewhile(lambda token: token < size, guesses))


class Batch:
    """Several sequences, which join and leave between any two steps.

    A step is a token for each of those that run, and of prompts as many tokens as a chunk has at
    most: of one that is long, or of several that join at once. A prompt that is another's is
    copied, and one that begins alike as far as both are cut into the same chunks. Nothing of a
    sequence depends on its company where ``rows`` are those of ``RowRule.reproducible``.
    """

    def __init__(
        self, session: Session, rows: RowSteps = PLAIN, prefixes: Prefixes | None = None
    ) -> None:
        """``rows`` says how a token for each is computed.

        ``prefixes`` are asked for what nobody in the batch has, and get what those that leave had.
        """
        self._session = session
        self._prefixes = prefixes
        self._rows = rows
        self._new_cache = session.new_caches()
        self._joining: Sequence | None = None
        self._running: list[Sequence] = []
        self._logits: Logits = np.empty((0, session.shape.vocab_size), np.float32)  # of a step

    def __len__(self) -> int:
        return len(self._running) + (self._joining is not None)

    @property
    def most_tokens(self) -> int:
        """The length that the longest of the sequences may come to."""
        return max(map(self.longest, self._requests), default=0)

    def longest(self, request: Request) -> int:
        """The tokens that a cache may come to hold for ``request``."""
        whole = len(request.prompt_ids) + request.max_tokens - 1
        return min(whole, self._session.shape.context_length)

    def join(self, request: Request) -> Sequence:
        """Begins with a request; its prompt is computed by the next steps, before any other's."""
        assert self._joining is None
        self._joining = self._begun(request)
        return self._joining

    def leave(self, sequence: Sequence, failed: bool = False) -> None:
        """Takes a sequence out, if it is still in; what a ``failed`` one has computed is lost."""
        is_in = sequence is self._joining or sequence in self._running
        if is_in and self._prefixes is not None and not failed:
            self._prefixes.keep(sequence)
        if sequence is self._joining:
            self._joining = None
        elif sequence in self._running:
            self._running.remove(sequence)

    def step(
        self,
        joins: Callable[[], bool] = lambda: False,
        cancellation: Cancellation | None = None,
    ) -> list[tuple[Sequence, Step | PocketLMError]]:
        """The tokens of one step, or what went wrong with one sequence alone; that has left then.

        Whenever a prompt is there, ``joins`` may call ``join`` for the next, and says whether it
        did. Sequences that are finished have left. Raises what ends a step of all, after which
        they can take it again.
        """
        running = list(self._running)
        # First what can fail for all: then no token has been taken yet.
        rows = self._step(running, cancellation) if running else []
        found = self._prompts(joins, cancellation)
        found += [
            (sequence, _taken(sequence, row)) for sequence, row in zip(running, rows, strict=True)
        ]
        for sequence, step in found:
            failed = isinstance(step, PocketLMError)
            if sequence.finish_reason is not None or failed:
                self.leave(sequence, failed)
        return [(sequence, step) for sequence, step in found if step is not None]

    def _step(self, running: list[Sequence], cancellation: Cancellation | None) -> list[Logits]:
        # In the order of rows, where there is one: logits need no copy then.
        running.sort(key=lambda sequence: getattr(sequence.cache, "row", 0))
        feeds = [(sequence.cache, sequence.feed()) for sequence in running]
        if self._rows.group is None:
            return [self._session.step(ids, cache, cancellation) for cache, ids in feeds]
        if self._logits.shape[0] < len(feeds):
            self._logits = np.empty((2 * len(feeds), self._session.shape.vocab_size), np.float32)
        return list(
            self._session.step_together(
                feeds,
                cancellation,
                multiple=self._rows.group,
                prefill=self._rows.prefill(len(feeds)),
                out=self._logits,
            )
        )

    def _prompts(
        self, joins: Callable[[], bool], cancellation: Cancellation | None
    ) -> list[tuple[Sequence, Step | PocketLMError | None]]:
        """Computes chunks of prompts, together no more tokens than one that is long has."""
        found: list[tuple[Sequence, Step | PocketLMError | None]] = []
        left = CHUNK_SIZE
        while self._joining is not None or joins():
            sequence = self._joining
            assert sequence is not None
            left -= 0 if sequence.known_logits is not None else len(sequence.feed())
            if found and left < 0:
                break
            step = self._further(sequence, cancellation)
            found.append((sequence, step))
            if self._joining is not None:  # it goes on, or failed
                break
        return found

    def _further(
        self, sequence: Sequence, cancellation: Cancellation | None
    ) -> Step | PocketLMError | None:
        try:
            logits = _logits(self._session, sequence, cancellation, self._rows)
        except PocketLMError as error:
            return error
        step = _taken(sequence, logits)
        if not sequence.in_prompt:
            self._joining = None
            self._running.append(sequence)
        return step

    @property
    def _requests(self) -> list[Request]:
        joining = [] if self._joining is None else [self._joining]
        return [sequence.request for sequence in (*self._running, *joining)]

    def _begun(self, request: Request) -> Sequence:
        """It, with what another one has computed of the same prompt, or of its first chunks."""
        context_length = self._session.shape.context_length
        prompt = request.seen(context_length, self._session.rotated_alike)
        best = max(self._running, key=lambda other: other.computed.shared(prompt), default=None)
        kept = 0 if best is None else best.computed.shared(prompt)
        all_there = kept == len(prompt.token_ids)
        prefix = None if self._prefixes is None or all_there else self._prefixes.find(prompt)
        if best is None or kept <= (0 if prefix is None else prefix.length):
            return resumed(request, self._new_cache(), context_length, prefix)
        computed, cache = best.computed, best.cache.copy()
        cache.truncate(kept)
        return Sequence(request, cache, context_length, computed=computed)


def _taken(sequence: Sequence, logits: Logits) -> Step | PocketLMError | None:
    try:
        return sequence.take(logits)
    except PocketLMError as error:
        return error
