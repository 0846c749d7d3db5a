"""Figures as text: as many digits as their errors have, and as tables, CSV and JSON lines."""

from __future__ import annotations

import json

import pytest

from pocketlm.benchmarks.figures import COLUMNS, Figure, figure_table, to_csv, to_jsonl

FIGURES = [
    Figure("tasks", "piqa", "accuracy", "fp32", 0.625, 0.0123, percent=True),
    Figure("tasks", "piqa", "accuracy", "int4", 0.5, None, percent=True),
    Figure("tasks", "lambada", "perplexity", "int4", None),
]


@pytest.mark.parametrize(
    ("value", "error", "percent", "text"),
    [
        (12345.678, 123.4, False, "12,346 ± 123"),
        (219.744, 18.56, False, "220 ± 19"),
        (5.39246, 0.0845, False, "5.392 ± 0.085"),
        (0.01808, 0.000846, False, "0.01808 ± 0.00085"),
        (0.88376, 0.00632, True, "88.38 ± 0.63 %"),
        (-0.00167, 0.000475, True, "-0.167 ± 0.048 %"),
        (0.25, None, True, "25 %"),
        (2.90712, None, False, "2.907"),
        (0.0, 0.0, False, "0"),
        (1.0, 0.0, True, "100 %"),
        (None, None, False, "-"),
    ],
)
def test_a_figure_has_the_digits_its_error_makes_sense_of(
    value: float | None, error: float | None, percent: bool, text: str
) -> None:
    assert Figure("", "", "", "", value, error, percent).text() == text


def test_tables_have_models_across_and_items_if_there_are_several() -> None:
    table = figure_table(FIGURES)
    assert list(table.columns) == ["item", "measure", "fp32", "int4"]
    assert [list(row) for row in table.rows] == [
        ["piqa", "accuracy", "62.5 ± 1.2 %", "50 %"],
        ["lambada", "perplexity", "-", "-"],
    ]
    assert list(figure_table(FIGURES[:2]).columns) == ["measure", "fp32", "int4"]


def test_lines_have_the_plain_numbers() -> None:
    assert to_csv(FIGURES).splitlines() == [
        ",".join(COLUMNS),
        "tasks,piqa,accuracy,fp32,0.625,0.0123,share",
        "tasks,piqa,accuracy,int4,0.5,,share",
        "tasks,lambada,perplexity,int4,,,",
    ]
    rows = [json.loads(line) for line in to_jsonl(FIGURES).splitlines()]
    assert rows[0] == dict(
        zip(COLUMNS, ("tasks", "piqa", "accuracy", "fp32", 0.625, 0.0123, "share"), strict=True)
    )
    assert rows[2]["value"] is None
