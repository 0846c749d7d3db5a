"""Which tokens made which characters of a text: so that a click finds what else they could be.

Positions are those of a text document (UTF-16 units), in the order in which they were written.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from messages import Choice


@dataclass(frozen=True)
class Passage:
    """The characters from ``start`` to ``end``, and the tokens that completed them."""

    start: int
    end: int
    choices: tuple[Choice, ...]


def num_positions(text: str) -> int:
    """How many a text takes in a document."""
    return len(text.encode("utf-16-le")) // 2


class Passages:
    """Those of a text, each found by any position in it."""

    def __init__(self) -> None:
        self._passages: list[Passage] = []

    def add(self, start: int, end: int, choices: tuple[Choice, ...]) -> None:
        """What was written last."""
        if end > start and choices:
            self._passages.append(Passage(start, end, choices))

    def at(self, position: int) -> Passage | None:
        """The one with the character at ``position``; None where nobody generated it."""
        place = bisect_right(self._passages, position, key=lambda passage: passage.start)
        if not place or position >= self._passages[place - 1].end:
            return None
        return self._passages[place - 1]

    def clear(self) -> None:
        """Forgets all."""
        self._passages.clear()
