"""Calls of the command line in this process, and what is to be said of one that was refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Ended:
    """How a call of the command line ended, and what it printed."""

    code: int
    out: str
    err: str


Run = Callable[..., Ended]


def assert_refused(ended: Ended, message: str, code: int = 2) -> None:
    """One line on stderr that says what was expected; nothing on stdout."""
    assert ended.code == code
    assert ended.out == ""
    assert ended.err.startswith("pocketlm: ") and ended.err.endswith("\n")
    assert ended.err.count("\n") == 1
    assert re.search(message, ended.err), ended.err
