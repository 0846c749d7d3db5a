"""Text of unknown origin made fit for one line of a page: nothing invisible, nothing endless.

It is not escaped here: that is left to whoever writes HTML or SVG.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

SPACES = {" ": "␣", "\n": "↵", "\t": "⇥"}


def printable(text: str) -> str:
    """The text, with what cannot be seen (controls, halves of characters) as Python escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def prose(text: str) -> str:
    """Text of several lines: as ``printable``, but with its line ends."""
    return "\n".join(printable(line) for line in text.split("\n"))


def token(text: str) -> str:
    """A token with its spaces and line ends drawn, so that ' a' and 'a' differ."""
    return printable("".join(SPACES.get(c, c) for c in text)) or "(nothing)"


def shortened(text: str, length: int) -> str:
    """The text in at most ``length`` characters; what is left out is in the middle."""
    text = printable(text)
    if len(text) <= length:
        return text
    end = (length - 1) // 2
    return f"{text[: length - 1 - end]}…{text[len(text) - end :]}"


def told_apart(names: Sequence[str], length: int) -> dict[str, str]:
    """{name: it in at most ``length`` characters}, without what all begin with where that is long.

    'llama-1b-int8' and 'llama-1b-int4' become '…int8' and '…int4' for a length of 10.
    """
    shown = [printable(name) for name in names]
    cut = 0
    if len(names) > 1 and max(map(len, shown)) > length:
        prefix = os.path.commonprefix(shown)
        # Whole words are left out, so that 'int4' and 'int8' do not become '4' and '8'.
        cut = max(prefix.rfind(separator) + 1 for separator in "-_./ ")
    return {
        name: shortened(f"…{text[cut:]}" if cut > 1 else text, length)
        for name, text in zip(names, shown, strict=True)
    }


def listed(words: Sequence[str]) -> str:
    """The words as a sentence has them: a, b and c."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
