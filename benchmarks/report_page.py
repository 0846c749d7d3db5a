"""What the HTML report shows of a bench's results (see ``report``): its words and its numbers.

Everything here is text ready to be shown; the template has the markup and the style sheet the looks.
What was not measured is a dash; a row of the table in which nothing was measured is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

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
from .visible_text import printable, prose, token

CONTEXT_LENGTH = 360  # characters of an example's context, at most
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
    share: float  # 0 to 1: the length of the bar
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
    checks: list[str]  # the first lines: what shows that the comparison works
    alarms: list[str]  # what makes the figures doubtful
    verdict: list[str]
    summary: str
    names: list[str]
    reference: str
    swatches: dict[str, str]
    groups: list[Group]
    details: list[list[str]]  # the speed rows in full; the first is the header
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
        checks=list(_checks(results)),
        alarms=list(_alarms(results)),
        verdict=[printable(sentence) for sentence in results.get("verdict") or []],
        summary=_summary(results),
        names=[printable(name) for name in names],
        reference=printable(results["reference"]),
        swatches={printable(name): svg for name, svg in charts.swatches(names).items()},
        groups=_groups(results),
        details=_details(results),
        tradeoffs=charts.tradeoffs(results),
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
    return f"{_listed(others)} against {reference}"


def _listed(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _checks(results: Results) -> Iterator[str]:
    quality = results.get("quality")
    check = (quality or {}).get("self_check")
    if check:
        yield (
            f"KL of {printable(check['model'])} against itself: {number(check['kl'])} "
            f"over {count(check['tokens'])} tokens"
        )
    elif quality is None:
        yield "Quality was not measured: no text was given"


def _alarms(results: Results) -> Iterator[str]:
    interrupted = results.get("interrupted") or results["circumstances"].get("interrupted")
    if interrupted:
        told = printable(interrupted) if isinstance(interrupted, str) else ""
        yield told or "The run was interrupted: this is what had been measured until then"
    busy = results["circumstances"].get("busy")
    if busy:
        yield printable(str(busy))
    check = (results.get("quality") or {}).get("self_check")
    if check and check["kl"] != 0:
        yield (
            f"The self-check failed: the KL divergence of {printable(check['model'])} against "
            f"itself is {number(check['kl'])}, not 0; the comparison below cannot be trusted"
        )


def _summary(results: Results) -> str:
    circumstances = results["circumstances"]
    parts = [
        printable(str(circumstances.get("cpu") or "")),
        f"{circumstances['threads']} threads" if circumstances.get("threads") else "",
        f"ONNX Runtime {circumstances['onnxruntime']}" if circumstances.get("onnxruntime") else "",
        printable(str(circumstances.get("started") or ""))[:10],
    ]
    return " · ".join(filter(None, parts))


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
            Row(printable(title), f"{_kind(tested)}tokens/s", [_speed_cell(row) for row in tested]),
            Row(
                f"{printable(title)}: roofline",
                "bytes read, of what the memory can",
                [Cell(percent(row.get("roofline"))) for row in tested],
            ),
            Row(
                f"{printable(title)}: energy",
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


QUALITY_ROWS: tuple[tuple[str, str, Callable[[Results], str]], ...] = (
    ("perplexity per token", "", lambda entry: _mean(entry["perplexity"].get("token"))),
    ("perplexity per byte", "", lambda entry: _mean(entry["perplexity"].get("byte"))),
    ("perplexity per word", "", lambda entry: _mean(entry["perplexity"].get("word"))),
    ("loss", "nats per token", lambda entry: _mean(entry.get("loss"))),
    ("bits per byte", "", lambda entry: number(entry.get("bits_per_byte"), 4)),
)
AGAINST_ROWS: tuple[tuple[str, str, Callable[[Results], str]], ...] = (
    ("KL divergence, mean", "nats", lambda against: _mean(against["kl"].get("mean"))),
    ("KL divergence, median", "nats", lambda against: _mean(against["kl"].get("median"))),
    ("KL divergence, 99th percentile", "nats", lambda against: _mean(against["kl"].get("p99"))),
    ("KL divergence, largest", "nats", lambda against: number(against["kl"].get("max"))),
    ("same first choice", "top-1 agreement", lambda a: _mean(a.get("top1_agreement"), percent)),
    ("same first five", "top-5 overlap", lambda a: _mean(a.get("top5_overlap"), percent)),
    ("Δp of the true token, mean", "", lambda against: _mean(against["delta_p"].get("mean"))),
    ("|Δp|, mean", "", lambda against: _mean(against["delta_p"].get("mean_absolute"))),
    ("|Δp|, 99th percentile", "", lambda against: _mean(against["delta_p"].get("p99_absolute"))),
)


def _mean(
    mean: dict[str, Any] | None,
    form: Callable[[float | None, float | None], str] = with_error,
) -> str:
    return form(mean.get("value"), mean.get("standard_error")) if mean else UNKNOWN


def _quality_title(results: Results) -> str:
    quality = results.get("quality") or {}
    texts = _listed([printable(str(text)) for text in quality.get("texts") or ["the text"]])
    return (
        f"Quality on {count(quality.get('tokens'))} tokens of {texts}, "
        f"window {count(quality.get('window'))}, stride {count(quality.get('stride'))}; "
        "± one standard error"
    )


def _quality_rows(results: Results) -> list[Row]:
    entries = {entry["model"]: entry for entry in (results.get("quality") or {}).get("models", [])}
    measured = [entries.get(model["name"]) for model in results["models"]]
    compared = [entry.get("against") if entry else None for entry in measured]
    rows = [
        Row(title, unit, [Cell(form(entry) if entry else UNKNOWN) for entry in of])
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
    context = example["context"]
    kept = context[-CONTEXT_LENGTH:]
    position = example.get("position")
    return Example(
        context=prose(kept if kept == context else f"…{kept}"),
        true=token(example["true"]),
        place="" if position is None else f"at {percent(position)} of the text",
        kl=number(example["kl"]),
        reference=_guesses(example["reference"], example["true"]),
        model=_guesses(example["model"], example["true"]),
    )


def _guesses(top: list[tuple[str, float]], true: str) -> list[Guess]:
    return [Guess(token(text), percent(p), max(0.0, min(1.0, p)), text == true) for text, p in top]


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
SHOWN_ELSEWHERE = {"command", "busy", "interrupted"}


def _circumstances(results: Results) -> Iterator[tuple[str, str]]:
    """Everything, known or not: (what it is, its value)."""
    for key, value in results["circumstances"].items():
        if key not in SHOWN_ELSEWHERE:
            label = LABELS.get(key, printable(key).replace("_", " "))
            yield label, _circumstance(key, value)
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
    return UNKNOWN if value is None else printable(str(value))
