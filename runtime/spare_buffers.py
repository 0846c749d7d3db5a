"""The buffers of a KV cache that nobody uses any more, kept for the next one.

What is written to new memory costs a page fault for every 4 KB: of GPT-2 124M the keys and values
of 512 tokens, 38 MB, made a prompt a tenth slower. So a session keeps one set of buffers.
"""

from __future__ import annotations

import sys
from collections import deque
from typing import Any

MOST_BYTES = 128 << 20  # that are kept while nobody uses them


class SpareBuffers:
    """At most one set of buffers, those of an arena of one row; safe to share between threads."""

    def __init__(self) -> None:
        # Of one set; it is put in, and taken out, at one blow: two threads never get the same.
        self._kept: deque[list[Any]] = deque(maxlen=1)
        self._most_bytes = MOST_BYTES

    def take(self) -> list[Any]:
        """What is kept, which is the caller's from then on; an empty list for nothing."""
        try:
            return self._kept.pop()
        except IndexError:
            return []

    def keep(self, buffers: list[Any]) -> None:
        """Keeps ``buffers`` (1, K, C, E) if they are not many, instead of what was kept.

        Not those that are of several sizes, because there was no memory for the last to grow, nor
        those of which somebody has a view: it stays what it is for as long as it is held.
        """
        if any(buffer is None or len(buffer) != 1 for buffer in buffers):
            return
        even = len({buffer.shape for buffer in buffers}) == 1
        few = sum(buffer.nbytes for buffer in buffers) <= self._most_bytes
        if even and few and not _are_viewed(buffers):
            self._kept.append(buffers)

    def give_up(self) -> None:
        """Keeps none from now on: memory has run out, and who needs it next may be anybody."""
        self._most_bytes = 0
        self._kept.clear()


def _are_viewed(buffers: list[Any]) -> bool:
    """Whether anything but the list refers to one of them, as each view does."""
    (nothing_else,) = map(sys.getrefcount, [object()])
    return max(map(sys.getrefcount, buffers)) > nothing_else
