"""The speed rows of a bench's results (see ``report``), one group for each test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .quantities import counted
from .visible_text import printable

Row = dict[str, Any]
# What a test's name does not say; it is told where the results hold several values of it.
CIRCUMSTANCES: tuple[tuple[str, Callable[[Any], str]], ...] = (
    ("threads", lambda threads: counted(threads, "thread")),
    ("batch", lambda batch: f"batch {batch}"),
)


def by_test(results: dict[str, Any]) -> dict[str, dict[str, Row]]:
    """{title of a test: {model: its row}}, in the order of the results.

    The title is the test's name, with threads and batch where tests differ in them.
    """
    rows = results.get("speed") or []
    varying = [
        (key, form) for key, form in CIRCUMSTANCES if len({row.get(key) for row in rows}) > 1
    ]
    tests: dict[str, dict[str, Row]] = {}
    for row in rows:
        parts = [str(row["test"]), *(form(row.get(key)) for key, form in varying)]
        tests.setdefault(printable(", ".join(parts)), {})[row["model"]] = row
    return tests


def main_test(results: dict[str, Any]) -> tuple[str, dict[str, Row]] | None:
    """The test a model's speed is known by: the first of decoding, or else the first."""
    tests = list(by_test(results).items())
    decoding = [
        (title, rows)
        for title, rows in tests
        if any(row.get("kind") == "decode" for row in rows.values())
    ]
    return next(iter(decoding or tests), None)
