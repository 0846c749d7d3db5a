"""The standard streams of a program, as they may be found: closed, full, or read by nobody.

And what may be written to them.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import TextIO


class _BestEffort(io.TextIOWrapper):
    """From the first text on that cannot be written, all is lost without an error."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            discard(self)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            discard(self)


def prepare() -> None:
    """Python leaves a stream that the caller closed (``>&-``) None; here it is an empty one.

    And what cannot be told on stderr, full or gone, is lost without an error: a note that nobody
    reads takes nothing from what the program does, and an error has its exit code.
    """
    sys.stdin = sys.stdin or open(os.devnull)
    sys.stdout = sys.stdout or open(os.devnull, "w")
    sys.stderr = sys.stderr or open(os.devnull, "w")
    found = sys.__stderr__
    if found is not None and sys.stderr is found:  # not where somebody put another
        sys.stderr = _BestEffort(found.buffer, found.encoding, found.errors, line_buffering=True)


def discard(stream: TextIO) -> None:
    """What it still holds cannot be written; without this Python tries, and fails, at exit."""
    with contextlib.suppress(OSError, ValueError):  # not a file: a test's buffer
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def printable(text: str) -> str:
    """Control characters but newline and tab as U+FFFD: a model may not drive the terminal."""
    return "".join(
        "\ufffd" if (ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 else c for c in text
    )
