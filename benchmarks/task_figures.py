"""The figures of ``measure_tasks``, and the sentences that belong above and below them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .figures import Figure
from .task_files import LAST_WORD

SECTION = "tasks"


def task_sentences(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What each task is, and what of it did not fit."""
    for entry in results:
        if entry["model"] == results[0]["model"]:
            kind = "last word" if entry["kind"] == LAST_WORD else "multiple choice"
            yield (
                f"{Path(entry['file']).name}: {_items(entry['items'])}, {kind} "
                f"({', '.join(entry['fields'])}), no examples in the prompt"
            )
        if entry["truncated"]:
            yield (
                f"{Path(entry['file']).name}: the context of {entry['model']} was too short for "
                f"{_items(entry['truncated'])}, whose beginnings were left out"
            )


def _items(count: int) -> str:
    return f"{count:,} item{'s' * (count != 1)}"


def measure_sentence(results: Sequence[dict[str, Any]]) -> str:
    """What the measures are, and how to read the differences."""
    text = "normalised: the largest log p per character; ± one standard error, over the items"
    if any(entry["against"] for entry in results):
        reference = results[0]["model"]
        text += f"; difference: accuracy less that of {reference}, item by item"
    return text


def task_figures(results: Sequence[dict[str, Any]]) -> Iterator[Figure]:
    """All figures, task by task."""
    for entry in results:
        for measure, mean, percent in _means(entry):
            yield Figure.mean(SECTION, entry["task"], measure, entry["model"], mean, percent)


def _means(entry: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], bool]]:
    yield "accuracy", entry["accuracy"], True
    if entry["kind"] == LAST_WORD:
        yield "perplexity", {"value": entry["perplexity"], "standard_error": None}, False
    else:
        yield "accuracy, normalised", entry["accuracy_normalised"], True
    if against := entry["against"]:
        yield "difference", against["accuracy"], True
        if against["accuracy_normalised"]:
            yield "difference, normalised", against["accuracy_normalised"], True
        yield "same answer", against["same_answer"], True
