"""The table of all figures: a column for each model, a row for each quantity, in groups.

What was not measured is a dash; a row in which nothing was measured is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from .charts import known_interval
from .quantities import UNKNOWN, count, duration, number, percent, size, times, with_error
from .results_by_test import by_test
from .visible_text import listed, printable

MOST_TEXTS = 3  # named in a heading
Results = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One model's figure, and below it what belongs to it: its interval, its ratio."""

    text: str
    details: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    """One quantity of every model."""

    title: str
    unit: str
    cells: list[Cell]


@dataclass(frozen=True)
class Group:
    """Rows under one heading."""

    title: str
    rows: list[Row]


def groups(results: Results) -> list[Group]:
    """The whole table."""
    groups = [
        Group("Size", _model_rows(results, SIZE_ROWS)),
        Group("Start and memory", _model_rows(results, START_ROWS)),
        Group("Speed", _speed_rows(results)),
        Group(_quality_title(results), _quality_rows(results)),
    ]
    return [group for group in groups if group.rows]


ModelRow = tuple[str, str, Callable[[Results, Results], Cell]]


def _estimate(estimate: dict[str, Any] | None, form: Callable[[float | None], str]) -> Cell:
    """A median over its confidence interval."""
    if not estimate:
        return Cell(UNKNOWN)
    return Cell(form(estimate["median"]), _between(estimate, form))


def _between(estimate: dict[str, Any], form: Callable[[float | None], str]) -> list[str]:
    interval = known_interval(estimate)
    if interval is None:
        return []
    low, high = (form(end) for end in interval)
    unit = low.rpartition(" ")[2]
    # One unit is enough, where it is the same.
    if " " in low and high.endswith(f" {unit}"):
        low = low.removesuffix(f" {unit}")
    return [f"{low.removesuffix('×')}–{high}"]


def _smaller(value: float | None, reference: float | None) -> list[str]:
    if not value or not reference or value == reference:
        return []
    if value < reference:
        return [f"{times(reference / value)} smaller"]
    return [f"{times(value / reference)} larger"]


def _sized(key: str) -> Callable[[Results, Results], Cell]:
    def cell(model: Results, reference: Results) -> Cell:
        return Cell(size(model.get(key)), _smaller(model.get(key), reference.get(key)))

    return cell


SIZE_ROWS: tuple[ModelRow, ...] = (
    ("precision", "", lambda model, _: Cell(printable(str(model.get("precision") or UNKNOWN)))),
    ("architecture", "", lambda m, _: Cell(printable(str(m.get("architecture") or UNKNOWN)))),
    ("parameters", "", lambda model, _: Cell(count(model.get("parameters")))),
    ("context length", "tokens", lambda model, _: Cell(count(model.get("context_length")))),
    ("on disk", "", _sized("disk_bytes")),
    ("weights", "", _sized("weights_bytes")),
    ("bits per weight", "", lambda model, _: Cell(number(model.get("bits_per_weight")))),
)
START_ROWS: tuple[ModelRow, ...] = (
    ("load", "fresh process", lambda model, _: _estimate(model.get("load"), duration)),
    (
        "first token",
        "from the start of a fresh process",
        lambda model, _: _estimate(model.get("first_token"), duration),
    ),
    ("peak memory", "resident, own process", _sized("peak_rss_bytes")),
)


def _model_rows(results: Results, rows: tuple[ModelRow, ...]) -> list[Row]:
    reference = next(m for m in results["models"] if m["name"] == results["reference"])
    made = [
        Row(title, unit, [cell(model, reference) for model in results["models"]])
        for title, unit, cell in rows
    ]
    return _with_figures(made)


def _with_figures(rows: list[Row]) -> list[Row]:
    return [row for row in rows if any(cell.text != UNKNOWN for cell in row.cells)]


def _speed_rows(results: Results) -> list[Row]:
    rows = []
    for title, by_model in by_test(results).items():
        tested = [by_model.get(model["name"], {}) for model in results["models"]]
        rows += [
            Row(title, f"{_kind(tested)}tokens/s", [_speed_cell(row) for row in tested]),
            Row(
                f"{title}: roofline",
                "of the memory's read bandwidth",
                [Cell(percent(row.get("roofline"))) for row in tested],
            ),
            Row(
                f"{title}: energy",
                "joules per token",
                [_estimate(row.get("joules_per_token"), number) for row in tested],
            ),
        ]
    return _with_figures(rows)


def _kind(rows: list[Results]) -> str:
    kinds = {"prefill": "prefill, ", "decode": "decode, ", "both": "prefill and decode, "}
    return next((kinds.get(str(row["kind"]), "") for row in rows if row.get("kind")), "")


def _speed_cell(row: Results) -> Cell:
    cell = _estimate(row.get("tokens_per_second"), number)
    ratio = row.get("ratio")
    if not ratio:
        return cell
    interval = "".join(f" ({text})" for text in _between(ratio, number))
    return Cell(cell.text, [*cell.details, f"{times(ratio['median'])}{interval}"])


def details(results: Results) -> list[list[str]]:
    """A row for each test of each model with all that is known; the first is the header."""
    header = ["test", "model", "prompt", "generation", "depth", "batch", "threads", "tokens/s"]
    header += ["interval", "coverage", "spread", "ratio", "bytes/token", "repetitions, s"]
    return [header, *(_detail(row) for row in results.get("speed") or [])]


def _detail(row: Results) -> list[str]:
    rate, ratio = row.get("tokens_per_second") or {}, row.get("ratio") or {}
    interval = known_interval(rate)
    return [
        printable(str(row["test"])),
        printable(str(row["model"])),
        *(count(row.get(key)) for key in ("prompt", "generation", "depth", "batch", "threads")),
        number(rate.get("median"), 4),
        f"{number(interval[0], 4)}–{number(interval[1], 4)}" if interval else UNKNOWN,
        percent(rate.get("confidence") or ratio.get("confidence")),
        percent(row.get("spread")),
        times(ratio.get("median")),
        size(row.get("bytes_per_token")),
        " ".join(number(seconds) for seconds in row.get("samples") or []),
    ]


QualityRow = tuple[str, str, Callable[[Results], "Cell"]]
QUALITY_ROWS: tuple[QualityRow, ...] = (
    ("perplexity per token", "", lambda entry: _mean(entry["perplexity"]["token"])),
    ("perplexity per byte", "", lambda entry: _mean(entry["perplexity"]["byte"])),
    ("perplexity per word", "", lambda entry: _mean(entry["perplexity"]["word"])),
    ("loss", "nats per token", lambda entry: _mean(entry["loss"])),
    ("bits per byte", "", lambda entry: Cell(number(entry["bits_per_byte"], 4))),
)
POINTS = "percentage points"
AGAINST_ROWS: tuple[QualityRow, ...] = (
    ("KL divergence, mean", "nats", lambda against: _mean(against["kl"]["mean"])),
    ("KL divergence, median", "nats", lambda against: _mean(against["kl"]["median"])),
    ("KL divergence, 99th percentile", "nats", lambda against: _mean(against["kl"]["p99"])),
    ("KL divergence, largest", "nats", lambda against: Cell(number(against["kl"]["max"]))),
    ("same first choice", "top-1 agreement", lambda against: _share(against["top1_agreement"])),
    ("same first five", "top-5 overlap", lambda against: _share(against["top5_overlap"])),
    ("Δp of the true token, mean", POINTS, lambda against: _share(against["delta_p"]["mean"])),
    ("|Δp|, mean", POINTS, lambda against: _share(against["delta_p"]["mean_absolute"])),
    ("|Δp|, 99th percentile", POINTS, lambda against: _share(against["delta_p"]["p99_absolute"])),
)


def _mean(mean: dict[str, Any] | None, scale: float = 1, unit: str = "") -> Cell:
    """A mean over its standard error."""
    if not mean or mean["value"] is None:
        return Cell(UNKNOWN)
    error = mean.get("standard_error")
    text, below = with_error(scale * mean["value"], scale * error if error else None)
    return Cell(f"{text}{unit}", [below] if below else [])


def _share(mean: dict[str, Any] | None) -> Cell:
    return _mean(mean, 100, " %")


def _quality_title(results: Results) -> str:
    quality = results.get("quality") or {}
    texts = [printable(PurePath(text).name) for text in quality.get("texts") or ["the text"]]
    where = listed(texts) if len(texts) <= MOST_TEXTS else f"{len(texts)} texts"
    documents = quality.get("documents") or 0
    divided = f" in {count(documents)} documents" if documents > len(texts) else ""
    return (
        f"Quality on {count(quality.get('tokens'))} tokens{divided} of {where}, "
        f"window {count(quality.get('window'))}, stride {count(quality.get('stride'))}; "
        "± one standard error"
    )


def _quality_rows(results: Results) -> list[Row]:
    entries = {entry["model"]: entry for entry in (results.get("quality") or {}).get("models", [])}
    measured = [entries.get(model["name"]) for model in results["models"]]
    compared = [entry.get("against") if entry else None for entry in measured]
    rows = [
        Row(title, unit, [form(entry) if entry else Cell(UNKNOWN) for entry in of])
        for table, of in ((QUALITY_ROWS, measured), (AGAINST_ROWS, compared))
        for title, unit, form in table
    ]
    return _with_figures(rows)
