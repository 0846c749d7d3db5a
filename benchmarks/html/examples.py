"""Places of the text where a model would go on differently than the reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .quantities import number, percent
from .visible_text import printable, prose, token

CONTEXT_LENGTH = 360  # characters before the place, at most


@dataclass(frozen=True)
class Guess:
    """One of the most probable tokens."""

    text: str
    percent: str
    length: float  # of the bar, 0 to 1
    is_true: bool


@dataclass(frozen=True)
class Example:
    """A place in the text where a model prefers another token than the reference."""

    context: str
    true: str
    place: str
    kl: str
    reference: list[Guess]
    model: list[Guess]


def examples(results: dict[str, Any]) -> dict[str, list[Example]]:
    """{model: its examples}, of the models that have any."""
    entries = (results.get("quality") or {}).get("models", [])
    return {
        printable(entry["model"]): [_example(example) for example in entry["examples"]]
        for entry in entries
        if entry.get("examples")
    }


def _example(example: dict[str, Any]) -> Example:
    context = example["context"].lstrip()
    kept = context[-CONTEXT_LENGTH:]
    position = example.get("position")
    return Example(
        context=prose(kept if kept == context else f"…{kept}"),
        true=token(example["true"]),
        place="" if position is None else f"at {100 * position:.0f} % of the text",
        kl=number(example["kl"]),
        reference=_guesses(example, "reference"),
        model=_guesses(example, "model"),
    )


def _guesses(example: dict[str, Any], of: str) -> list[Guess]:
    """The likeliest tokens; the longest bar of both models is that of the largest probability."""
    largest = max((p for _, p in example["reference"] + example["model"]), default=1.0) or 1.0
    return [
        Guess(token(text), percent(p), p / largest, text == example["true"])
        for text, p in example[of]
    ]
