"""What the HTML report shows of a bench's results (see ``report``): its words and its numbers.

Everything here is text ready to be shown; the template has the markup, the style sheet the looks.
The table comes from ``figures``, the charts from ``charts`` and ``tradeoffs``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .. import tables
from .charts import Chart, error_per_layer, loss_along, speed_bars, swatches
from .circumstances import circumstances
from .examples import Example, examples
from .figures import Group, details, groups
from .quantities import count, counted, number
from .tradeoffs import tradeoffs
from .visible_text import listed, printable

MOST_NAMES = 4  # in the title
Results = dict[str, Any]


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
    tradeoffs: list[Chart]
    speed: list[Chart]
    losses: list[Chart]
    examples: dict[str, list[Example]]
    circumstances: list[tuple[str, str]]
    command: str


def page(results: Results) -> Page:
    """The page of the results."""
    names = [model["name"] for model in results["models"]]
    return Page(
        title=_title(results, names),
        check=_check(results),
        alarms=list(_alarms(results)),
        verdict=[printable(sentence) for sentence in results.get("verdict") or []],
        summary=_summary(results),
        names=[printable(name) for name in names],
        reference=printable(results["reference"]),
        tradeoffs_legend=swatches(names, "tradeoffs"),
        losses_legend=swatches(names, "losses"),
        groups=groups(results),
        details=details(results),
        tradeoffs=tradeoffs(results),
        speed=speed_bars(results),
        losses=loss_along(results) + error_per_layer(results),
        examples=examples(results),
        circumstances=list(circumstances(results)),
        command=printable(str(results["circumstances"].get("command", ""))),
    )


def _title(results: Results, names: list[str]) -> str:
    others = [printable(name) for name in names if name != results["reference"]]
    reference = printable(results["reference"])
    if not others:
        return reference
    if len(others) > MOST_NAMES:
        return f"{len(others)} models against {reference}"
    return f"{listed(others)} against {reference}"


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
    about = results["circumstances"]
    parts = [
        str(about.get("cpu") or ""),
        counted(about["threads"], "thread") if about.get("threads") else "",
        f"ONNX Runtime {about['onnxruntime']}" if about.get("onnxruntime") else "",
        str(about.get("started") or "")[:10],
    ]
    lines = [printable(" · ".join(filter(None, parts)))]
    if about.get("repetitions") == 1:
        lines.append("Measured once: there are no intervals.")
    if not results.get("quality"):
        lines.append("Quality was not measured.")
    return lines
