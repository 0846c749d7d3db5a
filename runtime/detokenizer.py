"""Token ids in, printable pieces of text out, one token at a time; from ``Tokenizer.detokenizer``.

The pieces join to what ``Tokenizer.decode`` gives for all ids, and no piece has half a character.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from os.path import commonprefix
from typing import Protocol

UNFINISHED_BYTES = 3  # at most, of a character


class Detokenizer(Protocol):
    """What becomes of tokens as they come."""

    @property
    def strips_leading_spaces(self) -> int:
        """How many spaces will still be dropped, if the text begins with them."""

    @property
    def held(self) -> str:
        """What ``finish`` would give now."""

    def add(self, token_id: int) -> str:
        """The text that this token completes; "" when it ends inside a character."""

    def finish(self) -> str:
        """The rest: U+FFFD for a character that was never finished, else mostly ""."""


class ByteDetokenizer:
    """Where tokens stand for bytes: at most the three bytes of an unfinished character are held."""

    def __init__(self, bytes_of: Callable[[int, bool], bytes | None], strip: int, first: bool):
        """``bytes_of`` a token, that is the first one or not; None for one that is no text.

        ``first``: the first token is to be told from the others, and loses a space.
        """
        self._bytes_of = bytes_of
        self._strip = strip
        self._first = first
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    @property
    def strips_leading_spaces(self) -> int:
        """So many still, if they come."""
        return self._strip or int(self._first)

    @property
    def held(self) -> str:
        """As ``Detokenizer.held``."""
        state = self._decoder.getstate()
        held = self._decoder.decode(b"", final=True)
        self._decoder.setstate(state)
        return held

    def add(self, token_id: int) -> str:
        """As ``Detokenizer.add``."""
        added = self._bytes_of(token_id, self._first)
        if added is None:
            return ""
        self._first = False
        if self._strip and added:
            added, self._strip = strip_start(added, self._strip)
        return self._decoder.decode(added)

    def follow(self, token_ids: Sequence[int]) -> None:
        """Goes on after these as if each had been added, however many there are.

        The first of them may lose a space; what the others leave behind is an unfinished character,
        which is in the last bytes.
        """
        place = 0
        while place < len(token_ids) and (self._first or self._strip):
            self.add(token_ids[place])
            place += 1
        ending: list[int] = []
        lengths: dict[int, int] = {}  # a prompt may end with thousands that are no text
        start, num_bytes = len(token_ids), 0
        while start > place and num_bytes < UNFINISHED_BYTES:
            start -= 1
            token_id = token_ids[start]
            if token_id not in lengths:
                lengths[token_id] = len(self._bytes_of(token_id, False) or b"")
            if lengths[token_id]:
                ending.append(token_id)
                num_bytes += lengths[token_id]
        for token_id in reversed(ending):
            self.add(token_id)

    def finish(self) -> str:
        """As ``Detokenizer.finish``."""
        return self._decoder.decode(b"", final=True)


class TextDetokenizer:
    """Where they do not: the library decodes all tokens anew, and what may yet change is held.

    That is what the last token changed, half a character, and the ``held`` characters before: as
    many as the decoder looks back from the end of a text.
    """

    strips_leading_spaces = 0

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        is_text: Callable[[int], bool],
        is_open: Callable[[int], bool],
        held: int,
        after: Sequence[int],
    ) -> None:
        """``is_open``: whether what follows a token may change what becomes of it altogether.

        ``is_text``: whether it is one for the decoder at all.
        """
        self._decode = decode
        self._is_text = is_text
        self._is_open = is_open
        self._held = held
        self._ids = list(after)
        self._text = decode(self._ids)
        self._shown = len(self._text)

    @property
    def held(self) -> str:
        """As ``Detokenizer.held``."""
        return self._text[self._shown :]

    def add(self, token_id: int) -> str:
        """As ``Detokenizer.add``."""
        if not self._is_text(token_id):
            return ""
        before = self._text
        self._ids.append(token_id)
        self._text = self._decode(self._ids)
        if self._is_open(token_id):
            return ""
        certain = commonprefix([before, self._text])
        return self._show(len(certain[: len(certain) - self._held].rstrip("\ufffd")))

    def finish(self) -> str:
        """As ``Detokenizer.finish``."""
        return self._show(len(self._text))

    def _show(self, end: int) -> str:
        piece = self._text[self._shown : end]
        self._shown = max(self._shown, end)
        return piece


def strip_start(text: bytes, spaces: int) -> tuple[bytes, int]:
    """Drops up to ``spaces`` leading spaces; also returns how many may still follow."""
    stripped = text.lstrip(b" ") if spaces else text
    dropped = min(spaces, len(text) - len(stripped))
    rest = text[dropped:]
    return rest, 0 if rest else spaces - dropped
