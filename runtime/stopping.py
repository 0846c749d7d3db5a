"""Pieces of text in, the text before the first stop string out, as soon as it is safe to show.

Works on characters, above the tokenizer: a stop string may begin in one token and end in another.
The result does not depend on how the text was cut into pieces.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..export.errors import RequestError

MAX_STOPS = 64
MAX_STOP_CHARACTERS = 4096


class StopMatcher:
    """Passes text on until the first stop string, and holds back what may be the start of one.

    The match with the leftmost start wins; of several at one start, the first to complete. Held
    back is only the longest suffix that is a proper prefix of a stop string. With the stops "abcd"
    and "bc" that means: after "abc" the decision waits for one more character.

    Raises RequestError for more than 64 stops, or one that is no string, empty, or longer than
    4096 characters.

        >>> matcher = StopMatcher(["END"])
        >>> matcher.add("the E")
        ('the ', False)
        >>> matcher.add("ast. EN"), matcher.add("D of it")
        (('East. ', False), ('', True))
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = _checked(stops)
        self._held = ""
        self.stopped = False
        """Whether a stop string was found; ``finish`` may be what decides it."""

    def add(self, piece: str) -> tuple[str, bool]:
        """Takes the next piece; returns the text that is safe to show, and whether to stop.

        Once stopped, it returns ("", True) whatever comes.
        """
        if self.stopped:
            return "", True
        text = self._held + piece
        match = self._first_match(text)
        pending = self._first_pending(text)
        if match <= pending and match < len(text):
            self.stopped = True
            self._held = ""
            return text[:match], True
        self._held = text[pending:]
        return text[:pending], False

    def finish(self) -> str:
        """The rest, when no more text comes: what was held back, up to a stop string in it."""
        if self.stopped:
            return ""
        text, self._held = self._held, ""
        match = self._first_match(text)
        self.stopped = match < len(text)
        return text[:match]

    def _first_match(self, text: str) -> int:
        """Where the leftmost stop string starts, or len(text)."""
        starts = (text.find(stop) for stop in self._stops)
        return min((start for start in starts if start >= 0), default=len(text))

    def _first_pending(self, text: str) -> int:
        """Where the longest suffix starts that is a proper prefix of a stop, or len(text)."""
        longest = max(map(len, self._stops), default=0)
        for start in range(max(0, len(text) - longest + 1), len(text)):
            length = len(text) - start
            for stop in self._stops:
                if length < len(stop) and text.startswith(stop[:length], start):
                    return start
        return len(text)


def stop_strings(given: str | Sequence[str] | None, more: Sequence[str] = ()) -> Sequence[str]:
    """What a caller gave, one, several or none, and ``more``; RequestError for other things."""
    if given is None:
        return more
    return [*_checked([given] if isinstance(given, str) else given), *more]


class SpecialStops:
    """Stop strings that spell special tokens, which have no text themselves.

    In what ``StopMatcher`` sees each of these tokens is one character that no text can have, a lone
    surrogate; and each such stop string is looked for as it is spelled, and with them in it. Where
    text is held back when a token comes, its mark waits until that has passed.
    """

    def __init__(self, stops: Sequence[str], special: Mapping[int, str]) -> None:
        """``special``: the spellings of the special tokens."""
        stops = _checked(stops)
        longest_first = sorted(special.items(), key=lambda item: -len(item[1]))
        spelled = [item for item in longest_first if any(item[1] in stop for stop in stops)]
        self._marks = {
            token: chr(FIRST_MARK + index) for index, (token, _) in enumerate(spelled[:MOST_MARKS])
        }
        marked = []
        for stop in stops:
            for token, spelling in spelled[:MOST_MARKS]:
                stop = stop.replace(spelling, self._marks[token])
            marked.append(stop)
        self.stops: tuple[str, ...] = tuple(dict.fromkeys([*stops, *marked]))
        self._passed = 0  # characters of text
        self._waiting: list[tuple[int, str]] = []  # marks, by the characters before them

    def __contains__(self, token: int) -> bool:
        """Whether a stop string spells it."""
        return token in self._marks

    def wait(self, token: int, held: str) -> None:
        """Puts the mark of ``token`` behind the text that is ``held``."""
        self._waiting.append((self._passed + len(held), self._marks[token]))

    def ahead(self, held: str) -> str:
        """The text that is ``held``, with all marks that wait."""
        parts, start = [], 0
        for place, mark in self._waiting:
            end = max(start, place - self._passed)
            parts += [held[start:end], mark]
            start = end
        return "".join([*parts, held[start:]])

    def through(self, piece: str) -> str:
        """The next piece of text, with the marks that belong into it."""
        if not self._waiting:
            self._passed += len(piece)
            return piece
        end = self._passed + len(piece)
        later = [(place, mark) for place, mark in self._waiting if place > end]
        self._waiting = self._waiting[: len(self._waiting) - len(later)]
        marked = self.ahead(piece)
        self._passed, self._waiting = end, later
        return marked

    def unmarked(self, text: str) -> str:
        """``text`` as it is shown."""
        return text.translate(_UNMARKED) if self._marks else text


FIRST_MARK, MOST_MARKS = 0xD800, 0x800
_UNMARKED = dict.fromkeys(range(FIRST_MARK, FIRST_MARK + MOST_MARKS))


def _checked(stops: Sequence[str]) -> tuple[str, ...]:
    if isinstance(stops, (str, bytes)) or not isinstance(stops, Iterable):
        raise RequestError(
            f"stop is a single {type(stops).__name__}, expected a list of strings; "
            "put it into a list"
        )
    checked = tuple(stops)
    if len(checked) > MAX_STOPS:
        raise RequestError(
            f"stop has {len(checked)} strings, expected at most {MAX_STOPS}; give fewer"
        )
    for index, stop in enumerate(checked):
        if not isinstance(stop, str):
            raise RequestError(
                f"stop[{index}] is of type {type(stop).__name__}, expected a string; "
                "give the text at which to stop"
            )
        if not 1 <= len(stop) <= MAX_STOP_CHARACTERS:
            raise RequestError(
                f"stop[{index}] has {len(stop)} characters, expected 1 to "
                f"{MAX_STOP_CHARACTERS}; leave it out or shorten it"
            )
    return checked
