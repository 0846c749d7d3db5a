"""The figures of ``measure_recitation``, and the sentences that belong above and below them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .figures import Figure

SECTION = "recitation"


def passage_sentences(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What each text was asked for."""
    for entry in results:
        count = len(entry["models"][0]["passages"])
        yield (
            f"{Path(entry['file']).name}: {count:,} passage{'s' * (count != 1)} at even distances; "
            f"{entry['prompt_tokens']:,} tokens given, {entry['continuation_tokens']:,} to recite, "
            "greedily"
        )


MEASURE_SENTENCE = (
    "exact match: before the first difference; edit distance: tokens to change per token of the "
    "text, 0 is word for word; by chance: against what follows the next passage; ± one standard "
    "error, over the passages"
)


def recitation_figures(results: Sequence[dict[str, Any]]) -> Iterator[Figure]:
    """All figures, text by text."""
    for entry in results:
        for model in entry["models"]:
            item = Path(entry["file"]).name
            for measure, mean, percent in _means(model):
                yield Figure.mean(SECTION, item, measure, model["model"], mean, percent)


def _means(model: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], bool]]:
    chance = model["chance"]
    yield "exact match, tokens", model["exact_match_tokens"], False
    if chance:
        yield "by chance, tokens", chance["exact_match_tokens"], False
    yield "exact match, characters", model["exact_match_characters"], False
    yield "longest, tokens", {"value": model["longest"], "standard_error": None}, False
    yield "word for word", model["complete"], True
    yield "edit distance", model["edit_distance"], False
    if chance:
        yield "by chance, distance", chance["edit_distance"], False
