"""What was found of one thing, whether it is well, and what to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pocketlm.export.frozen import is_frozen

OK, WARNING, WRONG, UNKNOWN = "ok", "warning", "wrong", "unknown"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    name     of the thing, always the same
    state    "ok"; "warning": works, but not as well as it could; "wrong"; "unknown": could not be
             checked
    found    what is there, in words
    advice   what to type or to do; None where there is nothing to do
    figures  numbers and names that ``found`` tells, for programs; bytes, seconds
    """

    name: str
    state: str
    found: str
    advice: str | None = None
    figures: dict[str, Any] = field(default_factory=dict)


def of_error(name: str, state: str, error: Exception) -> Finding:
    """An error of ours ("found, expected; what to do") as a finding."""
    found, _, advice = str(error).partition("; ")
    return Finding(name, state, found, advice or None)


def unchecked(name: str, error: Exception) -> Finding:
    """Of a check that could not be made."""
    if isinstance(error, ImportError) and is_frozen():
        return Finding(
            name,
            UNKNOWN,
            f"could not be checked: {error}",
            "nothing: this application comes without it",
        )
    kind = "" if type(error).__module__.startswith("pocketlm.") else f"{type(error).__name__}: "
    told = of_error(name, UNKNOWN, error)
    return Finding(name, UNKNOWN, f"could not be checked: {kind}{told.found}", told.advice)
