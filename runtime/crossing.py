"""From how many rows on the weights for prompts are faster at a step than those that decode.

A step of one row is bound by the bytes that it reads, one of many by arithmetic: where the two sets
of weights cross depends on the processor, the model and its formats, so that it is measured.
"""

from __future__ import annotations

import time

from .arena import Cache
from .session import Session

COUNTS = (2, 3, 4, 6, 8, 12, 16, 24, 32)  # rows
FEWEST = COUNTS[0]
ROUNDS = 3  # of which the fastest counts, after one that warms up
DEPTH = 16  # tokens before: what attention takes is the same on both sides


def crossing(session: Session) -> int | None:
    """The least of ``COUNTS`` at which they are faster; None where they are at none.

    It halves the counts: what is faster at some rows is taken to be so at more. A context of one
    token has no rows after others.
    """
    depth = min(DEPTH, session.shape.context_length - 1)
    if not depth:
        return None
    first = session.new_caches()()  # whose rows are small
    session.step([0] * depth, first)
    caches = [first, *(first.copy() for _ in range(COUNTS[-1] - 1))]
    least, most = 0, len(COUNTS)
    while least < most:
        middle = (least + most) // 2
        if _prefill_wins(session, caches[: COUNTS[middle]]):
            most = middle
        else:
            least = middle + 1
    return COUNTS[least] if least < len(COUNTS) else None


def _prefill_wins(session: Session, caches: list[Cache]) -> bool:
    """They take turns, so that what else runs slows down both."""
    best = dict.fromkeys((False, True), float("inf"))
    for number in range(ROUNDS + 1):
        for prefill in best:
            started = time.perf_counter()
            session.step_together([(cache, [0]) for cache in caches], prefill=prefill)
            seconds = time.perf_counter() - started
            if number:
                best[prefill] = min(best[prefill], seconds)
            for cache in caches:
                cache.truncate(cache.length - 1)
    return best[True] < best[False]
