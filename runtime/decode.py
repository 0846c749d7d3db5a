"""Loops over sequences: who takes a step when."""

from __future__ import annotations

from collections.abc import Iterator

from .arena import Cache
from .cancellation import Cancellation
from .request import Request
from .reuse import ReusableCache
from .sequence import Sequence, Step
from .session import Session


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
    session: Session, sequence: Sequence, cancellation: Cancellation | None = None
) -> Iterator[Step]:
    """One sequence by itself."""
    while sequence.finish_reason is None:
        logits = session.step(sequence.feed(), sequence.cache, cancellation)
        step = sequence.take(logits)
        if step is not None:
            yield step
