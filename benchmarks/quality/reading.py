"""Goes through the windows of a plan, and counts what there is in them beside tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .plan import QualityPlan
from .text_windows import Window
from .unread import without_token


class Reading:
    """The windows of all texts, one after the other, and where in the texts the last one was."""

    def __init__(self, plan: QualityPlan) -> None:
        self._plan = plan
        self.goes_on = False  # whether the window is of the document of the one before
        self.share = 0.0  # of the texts, up to the window's end
        self._windows = self._documents = 0
        self._bytes = self._lost_bytes = self._lost_characters = 0
        self._reached = [0] * len(plan.texts)  # documents of each text, up to the last scored

    def __iter__(self) -> Iterator[Window]:
        """Yields each window after it was counted."""
        last, tokens = (-1, -1), 0
        for number, window in self._plan.all_windows():
            place = (number, window.document)
            self.goes_on = place == last
            tokens = window.num_scored + (not self.goes_on) + (tokens if number == last[0] else 0)
            last = place
            self._count(number, window)
            self.share = self._share(number, window.bytes_done, tokens)
            yield window

    def _count(self, text: int, window: Window) -> None:
        self._windows += 1
        self._documents += not self.goes_on
        self._reached[text] = window.document + 1
        self._bytes += window.num_bytes
        self._lost_bytes += window.lost_bytes
        self._lost_characters += window.lost_characters

    def _share(self, number: int, num_bytes: int, tokens: int) -> float:
        """After so many bytes and tokens of a text."""
        texts, limit = self._plan.texts, self._plan.limit
        share = num_bytes / texts[number].bytes
        if limit is not None:
            share = max(share, tokens / limit)
        before = sum(text.bytes for text in texts[:number])
        return (before + min(1.0, share) * texts[number].bytes) / sum(t.bytes for t in texts)

    def result(self) -> dict[str, Any]:
        """As it stands in results, once all is read.

        A document is skipped that has no token to score, as far as the limit reaches.
        """
        if self._plan.limit is None:
            reached = sum(text.documents for text in self._plan.texts)
        else:
            reached = sum(max(1, count) for count in self._reached)
        read = self._bytes + self._lost_bytes
        return {
            "windows": self._windows,
            "documents": self._documents,
            "skipped_documents": reached - self._documents,
            "without_token": without_token(self._lost_characters, self._lost_bytes, read),
        }
