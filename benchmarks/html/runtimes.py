"""Ours and other runtimes on one checkpoint: what is lost, over bytes per token and over speed.

A mark's shape and colour are its runtime's, its label is the precision. Both axes are logarithmic:
formats that are worth choosing lie decades apart in what they lose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..peers.standing import LEGEND, standing_lines
from ..peers.table import caption, peer_lines
from .charts import Chart, Look, looks, loss_axis, tick_text
from .inline_svg import MUTED, PAPER, draw_svg
from .quantities import number
from .tradeoffs import Spot, label_spots, pareto_front
from .visible_text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]
SIZE = (460, 380)  # CSS pixels
FULL = "fp32"
FRONT = "The line joins those that no other beats in both; full precision is left out."
DECODING = "tg"  # what a test's name begins with
MARGIN = 1.2  # of an axis beyond its outermost mark


@dataclass(frozen=True)
class Section:
    """One checkpoint."""

    name: str
    runtimes: list[str]
    legend: list[str]
    charts: list[Chart]
    lines: list[list[str]]  # the table, its head first
    caption: str
    alarm: str


@dataclass(frozen=True)
class Page:
    """All that the template shows."""

    title: str
    sections: list[Section]
    standings: list[list[str]]  # a table, its head first; empty without figures
    legend: str


def page(results: Sequence[dict[str, Any]]) -> Page:
    """The page of what ``peers`` measured, a section for each checkpoint."""
    names = ", ".join(printable(one["name"]) for one in results)
    return Page(
        f"{names} beside other runtimes",
        [_section(*item) for item in enumerate(results)],
        standing_lines(results),
        LEGEND,
    )


def _section(place: int, results: dict[str, Any]) -> Section:
    runtimes = list(dict.fromkeys(row["peer"] for row in results["rows"]))
    return Section(
        printable(results["name"]),
        [printable(name) for name in runtimes],
        legend(runtimes, f"runtimes-{place}"),
        loss_charts(results, f"{place}"),
        peer_lines(results["rows"], results["tests"]),
        printable(caption(results)),
        printable(results["circumstances"]["busy"] or ""),
    )


def _looks(runtimes: Sequence[str]) -> dict[str, Look]:
    """A colour for each; the first, grey, is that of a reference."""
    return looks(["", *runtimes])


def legend(runtimes: Sequence[str], name: str) -> list[str]:
    """The mark of each runtime."""

    def swatch(place: int, runtime: str) -> str:
        def draw(axes: Axes) -> None:
            axes.set_axis_off()
            axes.set(xlim=(0, 1), ylim=(0, 1))
            look = _looks(runtimes)[runtime]
            axes.plot([0.5], [0.5], look.marker, color=look.colour, markersize=8)

        return draw_svg(f"{name}-{place}", draw, (14, 14))

    return [swatch(*item) for item in enumerate(runtimes)]


def loss_charts(results: dict[str, Any], name: str) -> list[Chart]:
    """KL over bytes read per token, and over tokens/s of decoding; none without quality."""
    lost = [row for row in results["rows"] if row.get("quality") and row["level"] != FULL]
    runtimes = list(dict.fromkeys(row["peer"] for row in results["rows"]))
    found = []
    if lost:
        spots = [_spot(row, (row["bytes_per_token"] or row["weights_bytes"]) / 1e6) for row in lost]
        rows = list(zip(lost, spots, strict=True))
        title, axis = "Divergence over bytes", "MB of weights read per token"
        found.append(_chart(f"bytes-{name}", title, axis, "left", rows, runtimes))
    test = next((test for test in results["tests"] if test.startswith(DECODING)), None)
    timed = [row for row in lost if test and row["tests"][test]]
    if timed:
        rates = [row["tests"][test]["tokens_per_second"]["median"] for row in timed]
        rows = [(row, _spot(row, rate)) for row, rate in zip(timed, rates, strict=True)]
        title, axis = "Divergence over speed", f"tokens/s at {test}"
        found.append(_chart(f"speed-{name}", title, axis, "right", rows, runtimes))
    return found


def _spot(row: Row, x: float) -> Spot:
    kl = row["quality"]["against"]["kl"]["mean"]
    return Spot(row["precision"], x, kl["value"], "", y_error=kl["standard_error"], area=45)


def _chart(
    name: str,
    title: str,
    axis: str,
    better: str,
    rows: Sequence[tuple[Row, Spot]],
    runtimes: Sequence[str],
) -> Chart:
    look = _looks(runtimes)
    spots = [spot for _, spot in rows]

    def draw(axes: Axes) -> None:
        loss_axis(axes, [spot.y for spot in spots])
        axes.set(xscale="log", xlabel=axis, ylabel="mean KL divergence, nats")
        low, high = min(s.x for s in spots) / MARGIN, max(s.x for s in spots) * MARGIN
        axes.set_xlim(low, high)
        ticks = _ticks(low, high)
        axes.set_xticks(ticks, [tick_text(tick, 0) for tick in ticks])
        axes.set_xticks([], minor=True)
        front = pareto_front([(s.x, s.y) for s in spots], (-1 if better == "left" else 1, -1))
        line: dict[str, Any] = {"color": MUTED, "linewidth": 1, "linestyle": (0, (4, 3))}
        axes.plot(*zip(*front, strict=True), zorder=1, **line)
        for row, spot in rows:
            mark = look[row["peer"]]
            style: dict[str, Any] = {"marker": mark.marker, "color": mark.colour, "s": spot.area}
            axes.scatter([spot.x], [spot.y], edgecolor=PAPER, linewidth=0.5, zorder=3, **style)
        label_spots(axes, spots)

    spoken = "; ".join(
        f"{printable(row['peer'])} {printable(spot.name)}: {number(spot.x)} {axis}, "
        f"{number(spot.y)} nats"
        for row, spot in rows
    )
    said = f"Better is to the lower {better}. {FRONT}"
    if any(row["bytes_per_token"] is None for row, _ in rows) and better == "left":
        said += " Where a runtime does not tell, all of its file is taken for read."
    return Chart(title, said, draw_svg(name, draw, SIZE, title, f"{spoken}."))


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers in a range: 1, 2 and 5 times powers of ten, or all where it is narrow."""
    steps = (1, 2, 5) if high / low > 10 else (1, 1.5, 2, 3, 4, 5, 6, 8)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{step}e{decade}") for decade in decades for step in steps]
    return [tick for tick in ticks if low <= tick <= high]
