"""Strings that a text never contains: which tokens would complete one of them.

Told by the bytes of the tokens, so that it does not matter into which tokens a model cuts a string.
Only the token that completes one is removed: the beginning of a string may come, and something else
after it. What the prompt ends with does not count.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..export.errors import RequestError
from ..export.whole_number import brief

TokenIds: TypeAlias = NDArray[np.intp]

MOST_STRINGS = 64
MOST_CHARACTERS = 4096


class TokenTexts:
    """The bytes of the tokens 0 to V - 1, and in order: those that begin alike side by side."""

    def __init__(self, texts: Sequence[bytes]) -> None:
        self.texts = texts

    def beginning_with(self, beginning: bytes) -> TokenIds:
        """Tokens whose bytes begin so."""
        ids, texts = self._sorted

        def start(text: bytes) -> bytes:
            return text[: len(beginning)]

        first = bisect_left(texts, beginning, key=start)
        return ids[first : bisect_right(texts, beginning, lo=first, key=start)]

    def containing(self, part: bytes) -> TokenIds:
        """Tokens in whose bytes it is."""
        return np.array([i for i, text in enumerate(self.texts) if part in text], np.intp)

    @cached_property
    def longest(self) -> int:
        """Bytes of the longest of them."""
        return max(map(len, self.texts), default=0)

    @cached_property
    def _sorted(self) -> tuple[TokenIds, list[bytes]]:
        ids = sorted(range(len(self.texts)), key=self.texts.__getitem__)
        return np.array(ids, np.intp), [self.texts[i] for i in ids]


class BannedStrings:
    """Which tokens would complete a string that the text must not contain.

    Raises RequestError for what is no list of strings of 1 to 4096 characters, at most 64.
    """

    def __init__(self, tokens: TokenTexts, strings: Sequence[str]) -> None:
        banned = [string.encode("utf-8") for string in dict.fromkeys(check_banned(strings))]
        self._texts = tokens.texts
        self._longest = max(map(len, banned), default=0)
        self._at_once = [tokens.containing(string) for string in banned]
        """Tokens that contain one as a whole."""
        self._after = [
            (string[:cut], ids)
            for string in banned
            # No token holds more of its end than the longest does.
            for cut in range(max(1, len(string) - tokens.longest), len(string))
            if (ids := tokens.beginning_with(string[cut:])).size
        ]
        """A beginning of one, and the tokens that begin with all the rest of it."""

    def completed_by(self, generated: Sequence[int]) -> TokenIds:
        """Tokens after which the text of what was generated would contain one; some twice."""
        end = self._end_of(generated)
        completing = [ids for beginning, ids in self._after if end.endswith(beginning)]
        return np.concatenate([*self._at_once, *completing, np.empty(0, np.intp)])

    def _end_of(self, generated: Sequence[int]) -> bytes:
        """Its last bytes, as many as a string may have begun with."""
        end = b""
        for token in reversed(generated):
            end = self._texts[token] + end
            if len(end) >= self._longest:
                break
        return end


def check_banned(strings: object) -> Sequence[str]:
    """``strings``; RequestError for what is no list of them: see ``BannedStrings``."""
    if isinstance(strings, str | bytes) or not isinstance(strings, Sequence):
        raise RequestError(
            f"banned_strings is {brief(strings)} of type {type(strings).__name__}, expected a list "
            "of strings; give one, or leave it out"
        )
    if len(strings) > MOST_STRINGS:
        raise RequestError(
            f"banned_strings has {len(strings)} strings, expected at most {MOST_STRINGS}; "
            "give fewer"
        )
    for string in strings:
        if not isinstance(string, str) or not 1 <= len(string) <= MOST_CHARACTERS:
            raise RequestError(
                f"banned_strings has {brief(string)} of type {type(string).__name__}, expected "
                f"strings of 1 to {MOST_CHARACTERS} characters; correct it, or leave it out"
            )
        if any("\ud800" <= character <= "\udfff" for character in string):
            raise RequestError(
                f"banned_strings has {brief(string)} with a lone surrogate, expected Unicode text; "
                "remove it, or join it with its pair"
            )
    return strings
