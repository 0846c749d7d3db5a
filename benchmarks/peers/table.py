"""Rows out of entries, and the Markdown table with its circumstances out of the results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...export.quantities import megabytes, number_text
from ..intervals import estimate, paired_ratio
from ..machine import load_sentence, machine_sentence
from ..quality.figures import text_sentence
from .measure import Entry
from .trials import FIRST_TOKEN, Trial

RATIO_LEGEND = (
    "× ours: a rate over pocketlm's of the same width in the same rounds, median and interval"
)
LEGEND = (
    "load s: from the start of its process; agrees: its greedy tokens that our fp32 finds the best"
)
START_LEGEND = (
    "first token s: from the start of a process to the token after a prompt of 8, files in the "
    "page cache; of ours in brackets until pocketlm run prints; × ours: ours over its seconds"
)
OWN_LEGEND = "own bench: rate measured here over that of its own benchmark's loop"
QUALITY_COLUMNS = ["MB/token", "KL, 0.001 nats", "p99", "top-1", "perplexity"]
QUALITY_LEGEND = (
    "MB/token: weights that a token reads, where a runtime can tell; KL(pocketlm fp32 ‖ it) "
    "per token ± one standard error, its 99th percentile, and how often both find the same token "
    "the likeliest, all on the same tokens"
)


def rows(entries: Sequence[Entry], tests: Sequence[Trial], parameters: int) -> list[dict[str, Any]]:
    """A dict per entry: sizes in bytes, seconds, tokens per second; unknown is None."""
    return [_row(entry, tests, parameters) for entry in entries]


def _row(entry: Entry, tests: Sequence[Trial], parameters: int) -> dict[str, Any]:
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
        "first_token": _first_token(entry),
        "tests": {test.name: _figures(entry, test) for test in tests},
        "settings": entry.settings,
        "peak_rss_bytes": entry.peak_rss_bytes,
        "agreement": entry.agreement,
        "quality": entry.quality,
        "unscored": entry.unscored,
        "bytes_per_token": entry.bytes_per_token,
        "failure": entry.failure,
        "note": contender.note if contender is not None else "",
        "beside": entry.beside,
    }


def _figures(entry: Entry, test: Trial) -> dict[str, Any] | None:
    """The rate, and how many times ours it is; None for what was not measured."""
    if not (seconds := entry.samples.get(test.name)):
        return None
    own = entry.own_samples.get(test.name)
    return {
        "tokens_per_second": estimate([test.tokens / each for each in seconds]).to_json(),
        **_beside_ours(entry, test.name),
        "own_bench": paired_ratio(own, seconds).to_json() if own else None,
    }


def _first_token(entry: Entry) -> dict[str, Any] | None:
    """Seconds from the start of a process; None where it was not measured."""
    if not (seconds := entry.samples.get(FIRST_TOKEN)):
        return None
    command = entry.command_samples
    return {
        "seconds": estimate(seconds).to_json(),
        "command": estimate(command).to_json() if command else None,
        **_beside_ours(entry, FIRST_TOKEN),
    }


def _beside_ours(entry: Entry, name: str) -> dict[str, Any]:
    """The seconds, ours of the same rounds, and how many times as fast as ours that is."""
    seconds, ours = entry.samples[name], entry.our_samples.get(name)
    return {
        "ratio": paired_ratio(ours, seconds).to_json() if ours else None,
        "samples": seconds,
        "our_samples": ours,
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
    about, found = results["circumstances"], results["rows"]
    text = (
        f"{results['name']}, {number_text(results['parameters'] / 1e6)} M weights. "
        f"{machine_sentence(about)}. "
    )
    if rounds := about["repetitions"]:
        load = load_sentence(about["load_average"])
        text += f"{rounds} interleaved rounds{load}. {RATIO_LEGEND}; "
    legends = [LEGEND]
    legends += [START_LEGEND] if _started(found) else []
    legends += [OWN_LEGEND] if any(_has_own(found, test) for test in results["tests"]) else []
    text += f"{'; '.join(legends)}."
    if quality := results.get("quality"):
        text += f" {QUALITY_LEGEND}: {text_sentence(quality)}."
    if settings := settings_text(found):
        text += f" Settings: {settings}."
    return text


def settings_text(found: Sequence[dict[str, Any]]) -> str:
    """What each runtime runs with; one that does not run all its precisions alike, with these."""
    said: dict[tuple[str, str], list[str]] = {}
    for row in found:
        if settings := row.get("settings"):
            said.setdefault((row["peer"], settings), []).append(row["precision"])
    kinds = [peer for peer, _ in said]

    def who(peer: str, names: list[str]) -> str:
        return f"{peer} {', '.join(names)}" if kinds.count(peer) > 1 else peer

    return "; ".join(f"{who(peer, names)}: {text}" for (peer, text), names in said.items())


def _started(found: Sequence[dict[str, Any]]) -> bool:
    return any(row.get("first_token") for row in found)


def _has_own(found: Sequence[dict[str, Any]], test: str) -> bool:
    figures = [row["tests"][test] for row in found if row["tests"][test]]
    return any(one.get("own_bench") for one in figures)


def peer_table(found: Sequence[dict[str, Any]], tests: Sequence[str]) -> str:
    """A line per row, with a rate and a ratio for each of ``tests``, by name."""
    head, *lines = peer_lines(found, tests)
    rules = [*["---"] * 3, *["--:"] * (len(head) - 4), "---"]
    return markdown_lines([head, rules, *lines])


def markdown_lines(lines: Sequence[Sequence[str]]) -> str:
    """Cells as lines of a Markdown table."""
    escaped = [[cell.replace("|", "\\|") for cell in cells] for cells in lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in escaped)


def peer_lines(found: Sequence[dict[str, Any]], tests: Sequence[str]) -> list[list[str]]:
    """The cells of the table, its head first; tests that nobody ran are left out."""
    tests = [test for test in tests if any(row["tests"][test] for row in found)]
    own = {test: _has_own(found, test) for test in tests}
    measured = [
        column
        for test in tests
        for column in (f"{test} tok/s", "× ours", *(["÷ own bench"] if own[test] else []))
    ]
    scored, started = any(row.get("quality") for row in found), _started(found)
    head = ["runtime", "version", "precision", "weights MB", "bits/weight"]
    head += QUALITY_COLUMNS if scored else []
    head += ["load s", *(["first token s", "× ours"] if started else []), *measured]
    head += ["peak RSS MB", "agrees", "note"]
    lines = []
    for row in found:
        figures = [cell for test in tests for cell in _figure_cells(row["tests"][test], own[test])]
        starts = _start_cells(row["first_token"]) if started else []
        quality = _quality_cells(row) if scored else []
        cells = [*_cells(row), *quality, _number(row["load_seconds"], 2), *starts, *figures]
        agreement = row["agreement"]
        cells += [_megabytes(row["peak_rss_bytes"])]
        cells += ["" if agreement is None else f"{agreement:.0%}", "; ".join(_notes(row, found))]
        lines.append(cells)
    return [head, *lines]


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["peer"],
        row["version"] or "",
        row["precision"],
        _megabytes(row["weights_bytes"]),
        _number(row["bits_per_weight"], 2),
    ]


def _figure_cells(measured: dict[str, Any] | None, own: bool) -> list[str]:
    if measured is None:
        return ["", "", *([""] if own else [])]
    cells = [f"{measured['tokens_per_second']['median']:.1f}", ratio_text(measured["ratio"])]
    return [*cells, ratio_text(measured.get("own_bench"))] if own else cells


def _start_cells(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return ["", ""]
    seconds, command = found["seconds"]["median"], found["command"]
    told = f"{seconds:.2f}" + (f" ({command['median']:.2f})" if command else "")
    return [told, ratio_text(found["ratio"])]


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


def ratio_text(ratio: dict[str, float] | None) -> str:
    """A median and its interval, "" for none."""
    if ratio is None:
        return ""
    return f"{ratio['median']:.2f} ({ratio['low']:.2f}–{ratio['high']:.2f})"
