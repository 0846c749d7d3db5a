"""How rows are computed so that none shows in the others, or as fast as can be: found by trying.

The kernels of a step treat rows in groups, and a group that is not full by other code, whose last
bits differ. Which groups depends on the processor, on the number format and on the number of
threads: with AVX-512 quantized products take pairs. So it is tried on the opened model itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .arena import FIRST_CAPACITY, KVCache
from .chunks import chunks
from .crossing import FEWEST, crossing
from .prefill_choice import PROMPT_TOKENS
from .session import Logits, Session

# More gain little (benchmarks/NOTES.md), wait longer for each other, and have to be tried, too.
MOST_ROWS = 32
GROUPS = (1, 2, 4, 8)
COMPANIES = (3, 6, 9, 12, 23, MOST_ROWS)  # rows beside which each of LOOKED_AT is looked at
# Tokens before; the others are shorter. With one more it fills a first allocation, so that rows are
# not moved while it is tried: half the memory, a third of the time.
LONGEST = FIRST_CAPACITY - 1
LOOKED_AT = (0, 5, MOST_ROWS - 1)


@dataclass(frozen=True)
class RowSteps:
    """How a token for each of several sequences is computed.

    group    in multiples of so many rows; None: each by itself
    prefill  whether the weights for prompts take a step of so many rows
    """

    group: int | None = 1
    prefill: Callable[[int], bool] = lambda rows: False


PLAIN = RowSteps()


class RowRule:
    """What is known of the rows of a session, found when it is first asked for."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lock = threading.Lock()
        self._group: list[int | None] = []
        self._crossing: list[int | None] = []

    def reproducible(self) -> RowSteps:
        """So that a row's bits do not depend on its company. Raises what ``Session.step`` raises.

        One set of weights computes them however many there are: the one for prompts, if it can.
        """
        group = self._once(self._group, row_group)
        always = self._session.prefills_rows and group is not None
        return RowSteps(group, lambda rows: always)

    def fastest(self) -> RowSteps:
        """Each step with the weights that are faster at as many rows; which is measured once."""
        if not self._session.prefills_rows:
            return PLAIN
        return RowSteps(1, self._is_faster)

    def _is_faster(self, rows: int) -> bool:
        least = self._once(self._crossing, crossing) if rows >= FEWEST else None
        return least is not None and rows >= least

    def _once(self, found: list[int | None], find: Callable[[Session], int | None]) -> int | None:
        """What ``find`` finds, once for all threads."""
        self._session.check_usable()
        with self._lock:
            if not found:
                found.append(find(self._session))
            return found[0]


def row_group(session: Session) -> int | None:
    """The least number so that, in multiples of it, company changes no bit of a row's logits.

    Of the weights that ``RowRule.reproducible`` takes. None where none was found, caches cannot
    share a run, or the context is of one token: rows are then to be computed alone. It takes some
    twenty steps.
    """
    caches = _rows_of_different_lengths(session)
    if len(caches) < MOST_ROWS:
        return None
    return next((group for group in GROUPS if _is_enough(session, caches, group)), None)


def _rows_of_different_lengths(session: Session) -> list[KVCache]:
    first = session.new_caches()()  # whose rows are small
    count = min(LONGEST, session.shape.context_length - 1)
    if not isinstance(first, KVCache) or not first.arena.together or not count:
        return []
    ids = np.random.default_rng(0).integers(0, session.shape.vocab_size, count)
    for chunk in chunks(ids.tolist(), PROMPT_TOKENS - 2):  # too short to open what is not asked for
        session.step(chunk, first)
    caches = [first, *(first.copy() for _ in range(MOST_ROWS - 1))]
    for number, cache in enumerate(caches):
        cache.truncate(max(1, count * (MOST_ROWS - number) // MOST_ROWS))
    return caches


def _is_enough(session: Session, caches: list[KVCache], group: int) -> bool:
    alone = {number: _logits(session, [caches[number]], group)[0] for number in LOOKED_AT}
    for count in COMPANIES:
        others = [number for number in range(MOST_ROWS) if number not in LOOKED_AT]
        together = [*others[: count - len(LOOKED_AT)], *LOOKED_AT]
        rows = _logits(session, [caches[number] for number in together], group)
        for number, row in zip(together, rows, strict=True):
            if number in alone and not np.array_equal(alone[number], row):
                return False
    return True


def _logits(session: Session, caches: list[KVCache], group: int) -> Logits:
    """After one token more, which is forgotten again."""
    feeds = [(cache, [cache.length % session.shape.vocab_size]) for cache in caches]
    rows = session.step_together(feeds, multiple=group, prefill=session.prefills_rows)
    for cache in caches:
        cache.truncate(cache.length - 1)
    return rows
