"""Where two texts part: the words that only one of them has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher

WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class Parting:
    """(start, end) of what only one side has: the first word of all, and then whole runs of words.

    What was not compared yet is not among them.
    """

    left: list[tuple[int, int]]
    right: list[tuple[int, int]]


def parting(left: str, right: str, *, complete: bool = True) -> Parting:
    """Compares word by word, in order.

    Unless ``complete``, one of the two is still being written: what the longer one has beyond the
    other's last word may yet come, and so may the rest of that word.
    """
    ours, theirs = list(WORD.finditer(left)), list(WORD.finditer(right))
    if not complete:
        ours, theirs = ours[:-1], theirs[:-1]
        shorter = min(len(ours), len(theirs))
        ours, theirs = ours[:shorter], theirs[:shorter]
    a, b = [word[0] for word in ours], [word[0] for word in theirs]
    found = Parting([], [])
    for kind, a0, a1, b0, b1 in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if kind != "equal":
            found.left.extend(_runs(ours[a0:a1], not found.left))
            found.right.extend(_runs(theirs[b0:b1], not found.right))
    return found


def _runs(words: list[re.Match[str]], first: bool) -> Iterator[tuple[int, int]]:
    """From the first to the last word; where it is the ``first`` run, its first word alone."""
    if words and first:
        yield words[0].span()
        words = words[1:]
    if words:
        yield words[0].start(), words[-1].end()
