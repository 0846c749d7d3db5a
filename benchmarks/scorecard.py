"""What the precisions have to reach: for each shape that has bars, the figures and the bars.

A figure is a ratio, a share, megabytes or seconds, from the results that ``precisions`` writes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .intervals import paired_ratio

SHORT, MIDDLE, LONG = "tg32 @ d32", "tg32 @ d128", "tg32 @ d512"
PREFILL = "pp128"
# Those of the bars, and the two that every bench has.
TESTS = ("pp512", "tg128", PREFILL, SHORT, MIDDLE, LONG)


@dataclass(frozen=True)
class Line:
    """A figure that must be at least (≥) or at most (≤) its bar."""

    what: str
    figure: float
    relation: str
    bar: float

    @property
    def met(self) -> bool:
        return self.figure >= self.bar if self.relation == "≥" else self.figure <= self.bar


def gpt2_124m(results: dict[str, Any]) -> list[Line]:
    """GPT-2 124M: every precision against fp32, and what a run and an export take."""
    memory = results["memory"]
    head = "int4 b128, int4 head"
    return [
        _faster(results, MIDDLE, "int4 b128", "fp32", 4.2),
        _faster(results, MIDDLE, head, "fp32", 5.5),
        _faster(results, MIDDLE, "int8", "fp32", 2.4),
        _faster(results, PREFILL, "int8", "fp32", 1.8),
        *(
            Line(f"{model['name']}: decode rate at 512 / at 32", figure, "≥", 0.55)
            for model in results["models"]
            for figure in [_ratio(results, (model["name"], LONG), (model["name"], SHORT))]
        ),
        Line(
            "Python's share of an int4 step",
            _row(results, "int4 b128", MIDDLE)["outside_kernel"]["median"],
            "≤",
            0.10,
        ),
        Line(
            "run int4: peak RSS above weights and KV, MB",
            (memory["run"] - memory["weights"] - memory["kv"]) / 1e6,
            "≤",
            150,
        ),
        Line("export int4: peak RSS, MB", memory["export"] / 1e6, "≤", 700),
        Line("import pocketlm, s", results["import_seconds"], "≤", 0.35),
    ]


def llama_1b(results: dict[str, Any]) -> list[Line]:
    """Llama 3.2 1B: int4 for decode and memory, int8 for prefill."""
    memory = results["memory"]
    return [
        _faster(results, MIDDLE, "int4 b128", "int8-weight", 1.4),
        _faster(results, PREFILL, "int8", "int4 b128", 4.0),  # of a processor with AMX
        Line(
            "run int4: peak RSS less 100 MB / (weights + KV)",
            (memory["run"] - 100e6) / (memory["weights"] + memory["kv"]),
            "≤",
            1.25,
        ),
    ]


SCORECARDS: dict[str, Callable[[dict[str, Any]], list[Line]]] = {
    "gpt2-124m": gpt2_124m,
    "llama-1b": llama_1b,
}


def _faster(results: dict[str, Any], test: str, fast: str, slow: str, bar: float) -> Line:
    return Line(f"{fast} / {slow} at {test}", _ratio(results, (fast, test), (slow, test)), "≥", bar)


def _ratio(results: dict[str, Any], fast: tuple[str, str], slow: tuple[str, str]) -> float:
    """How many times the rate: the median of the rounds' ratios, of tests of as many tokens."""
    seconds = [_row(results, *row)["samples"] for row in (slow, fast)]
    return paired_ratio(*seconds).median


def _row(results: dict[str, Any], model: str, test: str) -> dict[str, Any]:
    found: dict[str, Any] = next(
        row for row in results["speed"] if (row["model"], row["test"]) == (model, test)
    )
    return found
