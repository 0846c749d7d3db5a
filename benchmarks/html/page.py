"""What the HTML report shows of a bench's results (see ``report``): its words and its numbers.

Everything here is text ready to be shown; the template has the markup, the style sheet the looks.
What was not measured is a dash; a row of the table in which nothing was measured is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from .. import tables
from . import charts
from .quantities import (
    UNKNOWN,
    count,
    duration,
    number,
    percent,
    size,
    times,
    with_error,
)
from .results_by_test import by_test
from .tradeoffs import tradeoffs
from .visible_text import printable, prose, token

CONTEXT_LENGTH = 360  # characters of an example's context, at most
MOST_NAMES = 4  # in the title
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


@dataclass(frozen=True)
class Guess:
    """One of the most probable tokens."""

    text: str
    percent: str
    length: float  # of the bar, 0 to 1
    is_true: bool


@dataclass(frozen=True)
class Example:
    """A place in the text where a model prefers another token than the reference."""

    context: str
    true: str
    place: str
    kl: str
    reference: list[Guess]
    model: list[Guess]


@dataclass(frozen=True)
class Page:
    """All that the template shows."""

    title: str
    check: str  # the first line: what shows that the comparison works
    alarms: list[str]  # what makes the figures doubtful
    verdict: list[str]
    summary: list[str]
    names: list[str]
    reference: str
    groups: list[Group]
    details: list[list[str]]  # the speed rows in full; the first is the header
    # A piece of each model's line, in the order of the names: ids may stand but once in a page.
    tradeoffs_legend: list[str]
    losses_legend: list[str]
    tradeoffs: list[charts.Chart]
    speed: list[charts.Chart]
    losses: list[charts.Chart]
    examples: dict[str, list[Example]]
    circumstances: list[tuple[str, str]]
    command: str


def page(results: Results) -> Page:
    """The page of the results."""
    names = [model["name"] for model in results["models"]]
    circumstances = results.get("circumstances") or {}
    return Page(
        title=_title(results, names),
        check=_check(results),
        alarms=list(_alarms(results)),
        verdict=[printable(sentence) for sentence in results.get("verdict") or []],
        summary=_summary(results),
        names=[printable(name) for name in names],
        reference=printable(results["reference"]),
        tradeoffs_legend=charts.swatches(names, "tradeoffs"),
        losses_legend=charts.swatches(names, "losses"),
        groups=_groups(results),
        details=_details(results),
        tradeoffs=tradeoffs(results),
        speed=charts.speed_bars(results),
        losses=charts.loss_along(results) + charts.error_per_layer(results),
        examples=_examples(results),
        circumstances=list(_circumstances(results)),
        command=printable(str(circumstances.get("command", ""))),
    )


def _title(results: Results, names: list[str]) -> str:
    others = [printable(name) for name in names if name != results["reference"]]
    reference = printable(results["reference"])
    if not others:
        return reference
    if len(others) > MOST_NAMES:
        return f"{len(others)} models against {reference}"
    return f"{_listed(others)} against {reference}"


def _listed(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _check(results: Results) -> str:
    """The self-check, if it was made and passed."""
    check = (results.get("quality") or {}).get("self_check")
    return _self_check(check) if check and check["kl"] == 0 else ""


def _self_check(check: dict[str, Any]) -> str:
    return (
        f"KL of {printable(check['model'])} against itself: {number(check['kl'])} "
        f"over {count(check['tokens'])} tokens"
    )


def _alarms(results: Results) -> Iterator[str]:
    check = (results.get("quality") or {}).get("self_check")
    if check and check["kl"] != 0:
        yield f"{_self_check(check)}, not 0: the comparison is broken, do not trust its figures"
    yield from map(printable, tables.warnings(results))


def _summary(results: Results) -> list[str]:
    circumstances = results["circumstances"]
    parts = [
        str(circumstances.get("cpu") or ""),
        f"{circumstances['threads']} threads" if circumstances.get("threads") else "",
        f"ONNX Runtime {circumstances['onnxruntime']}" if circumstances.get("onnxruntime") else "",
        str(circumstances.get("started") or "")[:10],
    ]
    lines = [printable(" · ".join(filter(None, parts)))]
    if circumstances.get("repetitions") == 1:
        lines.append("Measured once: there are no intervals.")
    if not results.get("quality"):
        lines.append("Quality was not measured: no text was given.")
    return lines


# The table ------------------------------------------------------------------------------------


def _groups(results: Results) -> list[Group]:
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
    interval = charts.interval(estimate)
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
                "bytes read, of what the memory can",
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


def _details(results: Results) -> list[list[str]]:
    header = ["test", "model", "prompt", "generation", "depth", "batch", "threads", "tokens/s"]
    header += ["interval", "coverage", "spread", "ratio", "bytes/token", "repetitions, s"]
    return [header, *(_detail(row) for row in results.get("speed") or [])]


def _detail(row: Results) -> list[str]:
    rate, ratio = row.get("tokens_per_second") or {}, row.get("ratio") or {}
    interval = charts.interval(rate)
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
AGAINST_ROWS: tuple[QualityRow, ...] = (
    ("KL divergence, mean", "nats", lambda against: _mean(against["kl"]["mean"])),
    ("KL divergence, median", "nats", lambda against: _mean(against["kl"]["median"])),
    ("KL divergence, 99th percentile", "nats", lambda against: _mean(against["kl"]["p99"])),
    ("KL divergence, largest", "nats", lambda against: Cell(number(against["kl"]["max"]))),
    ("same first choice", "top-1 agreement", lambda against: _share(against["top1_agreement"])),
    ("same first five", "top-5 overlap", lambda against: _share(against["top5_overlap"])),
    ("Δp of the true token, mean", "", lambda against: _mean(against["delta_p"]["mean"])),
    ("|Δp|, mean", "", lambda against: _mean(against["delta_p"]["mean_absolute"])),
    ("|Δp|, 99th percentile", "", lambda against: _mean(against["delta_p"]["p99_absolute"])),
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
    where = _listed(texts) if len(texts) <= MOST_NAMES else f"{len(texts)} texts"
    return (
        f"Quality on {count(quality.get('tokens'))} tokens of {where}, "
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


# Where the models part ways -------------------------------------------------------------------


def _examples(results: Results) -> dict[str, list[Example]]:
    """{model: its examples}, of the models that have any."""
    entries = (results.get("quality") or {}).get("models", [])
    return {
        printable(entry["model"]): [_example(example) for example in entry["examples"]]
        for entry in entries
        if entry.get("examples")
    }


def _example(example: dict[str, Any]) -> Example:
    context = example["context"].lstrip()
    kept = context[-CONTEXT_LENGTH:]
    position = example.get("position")
    return Example(
        context=prose(kept if kept == context else f"…{kept}"),
        true=token(example["true"]),
        place="" if position is None else f"at {100 * position:.0f} % of the text",
        kl=number(example["kl"]),
        reference=_guesses(example, "reference"),
        model=_guesses(example, "model"),
    )


def _guesses(example: dict[str, Any], of: str) -> list[Guess]:
    """The likeliest tokens; the longest bar of both models is that of the largest probability."""
    largest = max((p for _, p in example["reference"] + example["model"]), default=1.0) or 1.0
    return [
        Guess(token(text), percent(p), p / largest, text == example["true"])
        for text, p in example[of]
    ]


# Circumstances --------------------------------------------------------------------------------

LABELS = {
    "cpu": "processor",
    "features": "instruction sets used",
    "memory_bytes": "memory",
    "onnxruntime": "ONNX Runtime",
    "numpy": "NumPy",
    "python": "Python",
    "load_average": "load average",
    "read_bandwidth": "memory read bandwidth",
    "other_cores_busy": "cores busy with other work",
    "warmup": "warm-up runs",
}
TEXT_LABELS = {
    "tokens": "tokens scored",
    "bytes": "bytes scored",
    "words": "words scored",
    "start_token": "first token of a text",
    "limit": "limit of tokens per text",
}
SHOWN_ELSEWHERE = {"command", "busy"}


def _circumstances(results: Results) -> Iterator[tuple[str, str]]:
    """Everything, known or not: (what it is, its value)."""
    for key, value in results["circumstances"].items():
        if key not in SHOWN_ELSEWHERE:
            label = LABELS.get(key, printable(key).replace("_", " "))
            yield label, _circumstance(key, value)
    for key, value in (results.get("quality") or {}).items():
        if key not in ("models", "self_check"):
            yield TEXT_LABELS.get(key, printable(key).replace("_", " ")), _circumstance("", value)
    for model in results["models"]:
        if model.get("path"):
            yield f"folder of {printable(model['name'])}", printable(str(model["path"]))


def _circumstance(key: str, value: Any) -> str:
    if key == "read_bandwidth" and isinstance(value, dict):
        return ", ".join(
            f"{number(rate / 1e9)} GB/s with {printable(threads)} threads"
            for threads, rate in value.items()
            if rate
        )
    if key.endswith("_bytes") and isinstance(value, int):
        return size(value)
    if isinstance(value, dict):
        return ", ".join(f"{printable(name)} {_circumstance('', v)}" for name, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_circumstance("", item) for item in value) or UNKNOWN
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return count(value)
    return UNKNOWN if value is None else printable(str(value))
