"""Tokens in, words and calls of functions out, as they come.

What a ``call_grammar`` holds a text to needs no guessing: its parts come in the order of the form.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from .text import Piece
from .tokenizer import Tokenizer
from .tool_forms import Form

ID_CHARACTERS = string.ascii_letters + string.digits
ID_LENGTH = 9  # templates of Mistral take no others


@dataclass(frozen=True)
class Words:
    """More of what is no call."""

    text: str


@dataclass(frozen=True)
class Begun:
    """A call begins: of the function ``name``."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class Arguments:
    """More of the arguments of the call ``index``, which are JSON when all are there."""

    index: int
    text: str


Change = Words | Begun | Arguments


class _Part(Enum):
    WORDS = auto()
    BEFORE = auto()  # what stands before a name
    NAME = auto()
    ARGUMENTS = auto()
    AFTER = auto()
    END = auto()


class CallReader:
    """Reads one text; ``num_calls`` is how many began."""

    def __init__(
        self,
        form: Form,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        end_ids: Collection[int],
    ) -> None:
        # Markers may be special tokens, which are no part of what a text says.
        self._spelled = tokenizer.detokenizer(after=prompt_ids, skip_special_tokens=False)
        self._end_ids = end_ids
        self._form = form
        self._part = _Part.WORDS
        self._text = ""  # that was not read yet, of what the tokens spell
        self._num_told = 0  # characters of words
        self._num_words = 0  # characters that the pieces had: less where a stop string ends them
        self._expected = form.begin + form.head
        self._depth, self._in_string, self._escaped = 0, False, False
        self.num_calls = 0

    def add(self, piece: Piece) -> Iterator[Change]:
        """What ``piece`` adds."""
        self._num_words += len(piece.text)
        for step in piece.steps:
            if step.token not in self._end_ids:
                self._text += self._spelled.add(step.token)
        yield from self._read()

    def finish(self) -> Iterator[Change]:
        """The rest, of a text that has ended."""
        self._text += self._spelled.finish()
        yield from self._read()
        if self._part is _Part.WORDS:
            yield from self._say(len(self._text), spaces=True)

    def _read(self) -> Iterator[Change]:
        part = None
        while part is not self._part:  # until nothing goes on
            part = self._part
            match part:
                case _Part.WORDS:
                    yield from self._words()
                case _Part.BEFORE:
                    self._before()
                case _Part.NAME:
                    yield from self._name()
                case _Part.ARGUMENTS:
                    yield from self._arguments()
                case _Part.AFTER:
                    self._after()

    def _words(self) -> Iterator[Change]:
        marker = self._form.marker
        if marker:
            found = self._text.find(marker)
            # Where a stop string may have begun, the words before it are still to come.
            is_call = 0 <= found <= self._num_words - self._num_told
            yield from self._say(found if found >= 0 else len(self._text) - self._held(marker))
            if is_call:
                self._text = self._text[self._text.find(marker) :]
                self._part = _Part.BEFORE
            return
        begin = self._text.lstrip()
        if not self._num_told and begin.startswith("{"):
            self._text, self._part = begin, _Part.BEFORE
        elif begin or self._num_told:
            yield from self._say(len(self._text))

    def _held(self, marker: str) -> int:
        """How many of the last characters may be the beginning of a marker."""
        longest = min(len(marker) - 1, len(self._text))
        ends = (length for length in range(longest, 0, -1) if self._text.endswith(marker[:length]))
        return next(ends, 0)

    def _say(self, count: int, spaces: bool = False) -> Iterator[Change]:
        """So many characters; ``spaces``: also where these are no words before a call."""
        text = self._text[: max(0, min(count, self._num_words - self._num_told))]
        if not text or not (self._num_told or text.strip() or spaces):
            return
        self._text = self._text[len(text) :]
        self._num_told += len(text)
        yield Words(text)

    def _before(self) -> None:
        marker = self._form.marker
        if self._form.is_spaced and self._text.startswith(f"{marker} "):
            self._text = marker + self._text[len(marker) + 1 :]
        if self._text.startswith(self._expected):
            self._text = self._text[len(self._expected) :]
            self._part = _Part.NAME

    def _name(self) -> Iterator[Change]:
        name, found, rest = self._text.partition(self._form.middle)
        if found:
            self._text, self._part = rest, _Part.ARGUMENTS
            self.num_calls += 1
            yield Begun(self.num_calls - 1, new_id(), name)

    def _arguments(self) -> Iterator[Change]:
        end = self._end_of_object()
        text = self._text if end is None else self._text[:end]
        self._text = self._text[len(text) :]
        if end is not None:
            self._part = _Part.AFTER
        if text:
            yield Arguments(self.num_calls - 1, text)

    def _end_of_object(self) -> int | None:
        """Behind the brace that closes the first, if it is there."""
        for index, character in enumerate(self._text):
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped = character == "\\"
                self._in_string = character != '"'
            elif character == '"':
                self._in_string = True
            elif character == "{":
                self._depth += 1
            elif character == "}":
                self._depth -= 1
                if not self._depth:
                    return index + 1
        return None

    def _after(self) -> None:
        between = self._form.between
        again = None if between is None else self._form.tail + between + self._form.head
        if again is not None and self._text.startswith(again):
            self._text = self._text[len(again) :]
            self._part = _Part.NAME


def new_id() -> str:
    """By which a client tells which call it answers."""
    return "".join(secrets.choice(ID_CHARACTERS) for _ in range(ID_LENGTH))
