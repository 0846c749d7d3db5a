"""Rows out of entries, and the Markdown table with its circumstances out of the results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...export.quantities import megabytes, number_text
from ..intervals import estimate, paired_ratio
from ..machine import load_sentence, machine_sentence
from ..speed.measure import SpeedTest
from .measure import Entry

LEGEND = (
    "× ours: a rate over pocketlm's of the same width in the same rounds, median and interval; "
    "load s: from the start of its process; agrees: its greedy tokens that our fp32 finds the best"
)


def rows(
    entries: Sequence[Entry], tests: Sequence[SpeedTest], parameters: int
) -> list[dict[str, Any]]:
    """A dict per entry: sizes in bytes, seconds, tokens per second; unknown is None."""
    return [_row(entry, tests, parameters) for entry in entries]


def _row(entry: Entry, tests: Sequence[SpeedTest], parameters: int) -> dict[str, Any]:
    contender = entry.contender
    weights = entry.weights_bytes
    return {
        "peer": entry.peer,
        "version": entry.version,
        "precision": entry.precision,
        "level": entry.level,
        "weights_bytes": weights,
        "bits_per_weight": 8 * weights / parameters if weights is not None else None,
        "load_seconds": entry.load_seconds,
        "tests": {test.name: _figures(entry, test) for test in tests},
        "peak_rss_bytes": entry.peak_rss_bytes,
        "agreement": entry.agreement,
        "failure": entry.failure,
        "note": contender.note if contender is not None else "",
        "beside": entry.beside,
    }


def _figures(entry: Entry, test: SpeedTest) -> dict[str, Any] | None:
    """The rate, and how many times ours it is; None for what was not measured."""
    if not (seconds := entry.samples.get(test.name)):
        return None
    rates = [test.tokens / each for each in seconds]
    ratio = None
    if ours := entry.our_samples.get(test.name):
        ratio = paired_ratio(rates, [test.tokens / each for each in ours]).to_json()
    return {
        "tokens_per_second": estimate(rates).to_json(),
        "ratio": ratio,
        "samples": seconds,
    }


def markdown(results: dict[str, Any]) -> str:
    """The table, loud if others used the machine, and below it what a reader has to know."""
    about = results["circumstances"]
    loud = [about["busy"]] if about["busy"] else []
    if results["interrupted"]:
        loud.append("interrupted: the rounds that were complete")
    caption = (
        f"{results['name']}, {number_text(results['parameters'] / 1e6)} M weights. "
        f"{machine_sentence(about)}. {about['repetitions']} interleaved rounds"
        f"{load_sentence(about['load_average'])}. {LEGEND}."
    )
    return "\n\n".join(
        [*(f"**{text}**" for text in loud), peer_table(results["rows"], results["tests"]), caption]
    )


def peer_table(found: Sequence[dict[str, Any]], tests: Sequence[str]) -> str:
    """A line per row, with a rate and a ratio for each of ``tests``, by name."""
    measured = [column for test in tests for column in (f"{test} tok/s", "× ours")]
    head = ["runtime", "version", "precision", "weights MB", "bits/weight", "load s", *measured]
    head += ["peak RSS MB", "agrees", "note"]
    lines = [head, [*["---"] * 3, *["--:"] * (len(head) - 4), "---"]]
    lines += [[*_cells(row, tests), "; ".join(_notes(row, found))] for row in found]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cells(row: dict[str, Any], tests: Sequence[str]) -> list[str]:
    figures = []
    for test in tests:
        measured = row["tests"][test]
        figures.append(_number(measured and measured["tokens_per_second"]["median"], 1))
        figures.append(_ratio(measured and measured["ratio"]))
    agreement = row["agreement"]
    return [
        row["peer"],
        row["version"] or "",
        row["precision"],
        _megabytes(row["weights_bytes"]),
        _number(row["bits_per_weight"], 2),
        _number(row["load_seconds"], 2),
        *figures,
        _megabytes(row["peak_rss_bytes"]),
        "" if agreement is None else f"{agreement:.0%}",
    ]


def _notes(row: dict[str, Any], found: Sequence[dict[str, Any]]) -> list[str]:
    """Why it has no figures, what its adapter says, and its company if not all were together."""
    notes = [text.replace("|", "\\|") for text in (row["failure"], row["note"]) if text]
    measured = {
        f"{other['peer']} {other['precision']}"
        for other in found
        if other["level"] == row["level"] and other["beside"]
    }
    missing = measured - {*row["beside"], f"{row['peer']} {row['precision']}"}
    compared = any(figures and figures["ratio"] for figures in row["tests"].values())
    if compared and missing:
        notes.append(f"measured beside {', '.join(row['beside'])} only")
    return notes


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _megabytes(num_bytes: int | None) -> str:
    return "" if num_bytes is None else megabytes(num_bytes)


def _ratio(ratio: dict[str, float] | None) -> str:
    if ratio is None:
        return ""
    return f"{ratio['median']:.2f} ({ratio['low']:.2f}–{ratio['high']:.2f})"
