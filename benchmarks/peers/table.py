"""Rows out of entries, and the Markdown table with its circumstances out of the results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...export.quantities import megabytes, number_text
from ..intervals import estimate, paired_ratio
from ..machine import load_sentence, machine_sentence
from ..quality.figures import text_sentence
from ..speed.measure import SpeedTest
from .measure import Entry

RATIO_LEGEND = (
    "× ours: a rate over pocketlm's of the same width in the same rounds, median and interval"
)
LEGEND = (
    "load s: from the start of its process; agrees: its greedy tokens that our fp32 finds the best"
)
QUALITY_COLUMNS = ["MB/token", "KL, 0.001 nats", "p99", "top-1", "perplexity"]
QUALITY_LEGEND = (
    "MB/token: weights that a token reads, where a runtime can tell; KL(pocketlm fp32 ‖ it) "
    "per token ± one standard error, its 99th percentile, and how often both find the same token "
    "the likeliest, all on the same tokens"
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
        "quality": entry.quality,
        "unscored": entry.unscored,
        "bytes_per_token": entry.bytes_per_token,
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
    return "\n\n".join(
        [
            *(f"**{text}**" for text in loud),
            peer_table(results["rows"], results["tests"]),
            caption(results),
        ]
    )


def caption(results: dict[str, Any]) -> str:
    """What stands below the table."""
    about = results["circumstances"]
    text = (
        f"{results['name']}, {number_text(results['parameters'] / 1e6)} M weights. "
        f"{machine_sentence(about)}. "
    )
    if rounds := about["repetitions"]:
        load = load_sentence(about["load_average"])
        text += f"{rounds} interleaved rounds{load}. {RATIO_LEGEND}; "
    text += f"{LEGEND}."
    if quality := results.get("quality"):
        text += f" {QUALITY_LEGEND}: {text_sentence(quality)}."
    return text


def peer_table(found: Sequence[dict[str, Any]], tests: Sequence[str]) -> str:
    """A line per row, with a rate and a ratio for each of ``tests``, by name."""
    head, *lines = peer_lines(found, tests)
    rules = [*["---"] * 3, *["--:"] * (len(head) - 4), "---"]
    escaped = [[cell.replace("|", "\\|") for cell in cells] for cells in lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rules, *escaped))


def peer_lines(found: Sequence[dict[str, Any]], tests: Sequence[str]) -> list[list[str]]:
    """The cells of the table, its head first; tests that nobody ran are left out."""
    tests = [test for test in tests if any(row["tests"][test] for row in found)]
    measured = [column for test in tests for column in (f"{test} tok/s", "× ours")]
    scored = any(row.get("quality") for row in found)
    head = ["runtime", "version", "precision", "weights MB", "bits/weight"]
    head += QUALITY_COLUMNS if scored else []
    head += ["load s", *measured, "peak RSS MB", "agrees", "note"]
    return [head, *([*_cells(row, tests, scored), "; ".join(_notes(row, found))] for row in found)]


def _cells(row: dict[str, Any], tests: Sequence[str], scored: bool) -> list[str]:
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
        *(_quality_cells(row) if scored else ()),
        _number(row["load_seconds"], 2),
        *figures,
        _megabytes(row["peak_rss_bytes"]),
        "" if agreement is None else f"{agreement:.0%}",
    ]


def _quality_cells(row: dict[str, Any]) -> list[str]:
    read = _megabytes(row["bytes_per_token"])
    if (quality := row["quality"]) is None:
        return [read, *[""] * (len(QUALITY_COLUMNS) - 1)]
    kl, top1 = quality["against"]["kl"], quality["against"]["top1_agreement"]
    return [
        read,
        with_error(kl["mean"], 1e3, 2),
        f"{1e3 * kl['p99']['value']:.1f}",
        f"{with_error(top1, 100, 1)} %",
        _number(quality["perplexity"]["token"]["value"], 2),
    ]


def with_error(mean: dict[str, Any], scale: float, decimals: int) -> str:
    """A mean with its standard error, if that is known."""
    text = f"{scale * mean['value']:.{decimals}f}"
    error = mean["standard_error"]
    return text if error is None else f"{text} ± {scale * error:.{decimals}f}"


def _notes(row: dict[str, Any], found: Sequence[dict[str, Any]]) -> list[str]:
    """Why it has no figures, what its adapter says, and its company if not all were together."""
    notes = [text for text in (row["failure"], row.get("unscored"), row["note"]) if text]
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
