"""Text of unknown origin made fit for one line of a page: nothing invisible, nothing endless.

It is not escaped here: that is left to whoever writes HTML or SVG.
"""

from __future__ import annotations

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
