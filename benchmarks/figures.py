"""Figures of an evaluation as tables: a row per measure, a column per model, ± standard errors.

A ``Figure`` is one number of one model. The same figures are drawn, written as Markdown, and listed
one a line as CSV or JSON, so that what a section of ``pocketlm eval`` has to say is said once.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .tables import NOTHING, Table

COLUMNS = ("section", "item", "measure", "model", "value", "standard_error", "unit")


@dataclass(frozen=True)
class Figure:
    """``value`` of ``measure`` for ``model``; ``item`` is the task or text it is of."""

    section: str
    item: str
    measure: str
    model: str
    value: float | None
    standard_error: float | None = None
    percent: bool = False  # a share, shown as a percentage

    def row(self) -> dict[str, Any]:
        """By the names of COLUMNS, as a program reads it: a share is one, not a percentage."""
        fields = {name: getattr(self, name) for name in COLUMNS[:-1]}
        return fields | {"unit": "share" if self.percent else None}

    @staticmethod
    def mean(
        section: str,
        item: str,
        measure: str,
        model: str,
        mean: dict[str, Any],
        percent: bool = False,
    ) -> Figure:
        """Of a {"value", "standard_error"}."""
        value, error = mean["value"], mean["standard_error"]
        return Figure(section, item, measure, model, value, error, percent)

    def text(self) -> str:
        """As many digits as the standard error makes sense of, which itself has two."""
        if self.value is None:
            return NOTHING
        scale, unit = (100, " %") if self.percent else (1, "")
        value = scale * self.value
        if not self.standard_error:
            return f"{value:.4g}{unit}"
        error = scale * self.standard_error
        digits = max(0, 1 - math.floor(math.log10(error)))
        return f"{value:,.{digits}f} ± {error:,.{digits}f}{unit}"


def figure_table(figures: Sequence[Figure]) -> Table:
    """Measures down, models across, both in order of appearance; items too if there are several."""
    models = list(dict.fromkeys(figure.model for figure in figures))
    items = list(dict.fromkeys(figure.item for figure in figures))
    cells = {(figure.item, figure.measure, figure.model): figure.text() for figure in figures}
    rows = [
        [*([item] if len(items) > 1 else []), measure]
        + [cells.get((item, measure, model), NOTHING) for model in models]
        for item, measure in dict.fromkeys((figure.item, figure.measure) for figure in figures)
    ]
    labels = ["item", "measure"] if len(items) > 1 else ["measure"]
    return Table([*labels, *models], rows, labels=len(labels))


def to_csv(figures: Sequence[Figure]) -> str:
    """A line per figure, under a line of names; unknown is empty."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(figure.row() for figure in figures)
    return stream.getvalue().rstrip("\n")


def to_jsonl(figures: Sequence[Figure]) -> str:
    """A JSON object per figure."""
    return "\n".join(json.dumps(figure.row()) for figure in figures)
