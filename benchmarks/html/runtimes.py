"""Ours and other runtimes on one checkpoint: what is lost, over bytes per token and over speed.

A mark's shape and colour are its runtime's, its label is the precision. Both axes are logarithmic:
formats that are worth choosing lie decades apart in what they lose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..peers.table import caption, peer_lines
from .charts import Chart, looks, tick_text
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
MARGIN = 1.35  # of an axis beyond its outermost mark


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


def page(results: Sequence[dict[str, Any]]) -> Page:
    """The page of what ``peers`` measured, a section for each checkpoint."""
    names = ", ".join(printable(one["name"]) for one in results)
    return Page(f"{names} beside other runtimes", [_section(*item) for item in enumerate(results)])


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


def legend(runtimes: Sequence[str], name: str) -> list[str]:
    """The mark of each runtime."""

    def swatch(place: int, runtime: str) -> str:
        def draw(axes: Axes) -> None:
            axes.set_axis_off()
            axes.set(xlim=(0, 1), ylim=(0, 1))
            look = looks(runtimes)[runtime]
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
    look = looks(runtimes)
    spots = [spot for _, spot in rows]

    def draw(axes: Axes) -> None:
        axes.set(xscale="log", yscale="log", xlabel=axis, ylabel="mean KL divergence, nats")
        axes.set_xlim(*_limits([spot.x for spot in spots]))
        axes.set_ylim(*_limits([spot.y for spot in spots]))
        axes.xaxis.set_major_formatter(tick_text)
        axes.xaxis.set_minor_formatter(tick_text)
        axes.yaxis.set_major_formatter(tick_text)
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
    return Chart(title, said, draw_svg(name, draw, SIZE, title, f"{spoken}."))


def _limits(values: Sequence[float]) -> tuple[float, float]:
    return min(values) / MARGIN, max(values) * MARGIN
