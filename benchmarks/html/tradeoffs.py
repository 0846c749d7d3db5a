"""Charts that set size and speed against what is lost, with the models that no other beats."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .charts import (
    NAME_LENGTH,
    WHISKER,
    Chart,
    Look,
    Point,
    around,
    chart,
    known_interval,
    looks,
    loss_axis,
    names_of,
    tick_text,
)
from .inline_svg import MUTED, PAPER
from .quantities import number, size
from .results_by_test import main_test
from .visible_text import printable, shortened, told_apart

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEIGHT = 300
FRONT = "The line joins the models that no other beats in both."
# Directions from a mark to its label, the best first, with the label's alignment.
PLACES: tuple[tuple[float, float, Any, Any], ...] = (
    (1, 0, "left", "center"),
    (-1, 0, "right", "center"),
    (0, 1, "center", "bottom"),
    (0, -1, "center", "top"),
    (0.7, 0.7, "left", "bottom"),
    (-0.7, 0.7, "right", "bottom"),
    (0.7, -0.7, "left", "top"),
    (-0.7, -0.7, "right", "top"),
)


@dataclass(frozen=True)
class Spot:
    """A model in a chart of two quantities."""

    name: str
    x: float
    y: float
    label: str
    x_interval: tuple[float, float] | None = None
    y_error: float | None = None
    area: float = 75.0  # of the marker, in square pixels


@dataclass(frozen=True)
class Standing:
    """What is known of a model: its size, the speed of the main test, and what it lost."""

    name: str
    num_bytes: int | None
    speed: dict[str, float] | None  # Estimate, tokens/s
    loss: dict[str, Any] | None  # Mean, nats

    @property
    def megabytes(self) -> float:
        return (self.num_bytes or 0) / 1e6

    @property
    def rate(self) -> float:
        return self.speed["median"] if self.speed else 0.0

    @property
    def divergence(self) -> float:
        return float(self.loss["value"]) if self.loss else 0.0

    @property
    def divergence_error(self) -> float | None:
        return self.loss["standard_error"] if self.loss else None


def tradeoffs(results: dict[str, Any]) -> list[Chart]:
    """Size and speed, each against what was lost; without quality, one against the other.

    None for a single model, which has nothing to be compared with.
    """
    standings = _standings(results)
    if len(standings) < 2:
        return []
    if not any(standing.loss for standing in standings):
        known = [s for s in standings if s.num_bytes and s.speed]
        return [_size_and_speed(results, known)] if known else []
    sized = [s for s in standings if s.num_bytes and s.loss]
    timed = [s for s in standings if s.speed and s.loss]
    found = [_size_and_loss(results, sized)] if sized else []
    return [*found, _speed_and_loss(results, timed)] if timed else found


def _standings(results: dict[str, Any]) -> list[Standing]:
    found = main_test(results)
    rows = found[1] if found else {}
    entries = (results.get("quality") or {}).get("models", [])
    losses = {
        entry["model"]: entry["against"]["kl"]["mean"] for entry in entries if entry.get("against")
    }
    if losses:
        losses[results["reference"]] = {"value": 0.0, "standard_error": None}
    return [
        Standing(
            model["name"],
            model.get("disk_bytes"),
            rows.get(model["name"], {}).get("tokens_per_second"),
            losses.get(model["name"]),
        )
        for model in results["models"]
    ]


def _size_and_loss(results: dict[str, Any], standings: list[Standing]) -> Chart:
    fastest = max(standing.rate for standing in standings)
    spots = [
        Spot(
            s.name,
            s.megabytes,
            s.divergence,
            f"{number(s.rate)} tok/s" if s.speed else "",
            y_error=s.divergence_error,
            area=50 + 250 * s.rate / fastest if fastest else Spot.area,
        )
        for s in standings
    ]
    better = "Better is to the lower left"
    better += "; larger marks are faster." if fastest else "."
    return _loss_chart(results, spots, "Size and divergence", better, "MB on disk", -1)


def _speed_and_loss(results: dict[str, Any], standings: list[Standing]) -> Chart:
    spots = [
        Spot(
            s.name,
            s.rate,
            s.divergence,
            size(s.num_bytes) if s.num_bytes else "",
            known_interval(s.speed or {}),
            s.divergence_error,
        )
        for s in standings
    ]
    better = "Better is to the lower right."
    return _loss_chart(results, spots, "Speed and divergence", better, _speed_axis(results), +1)


def _loss_chart(
    results: dict[str, Any], spots: list[Spot], title: str, better: str, axis: str, direction: int
) -> Chart:
    def draw(axes: Axes) -> None:
        loss_axis(axes, [spot.y for spot in spots])
        axes.set(xlabel=axis, ylabel="mean KL divergence, nats")
        _scatter(axes, spots, looks(names_of(results)), (direction, -1))

    name = title.replace(" ", "-").lower()
    spoken = _spoken(spots, axis, "nats")
    return chart(name, title, f"{better} {FRONT}", spoken, draw, HEIGHT)


def _size_and_speed(results: dict[str, Any], standings: list[Standing]) -> Chart:
    spots = [
        Spot(s.name, s.megabytes, s.rate, f"{size(s.num_bytes)}, {number(s.rate)} tok/s")
        for s in standings
    ]

    def draw(axes: Axes) -> None:
        axes.set(xlabel="MB on disk", ylabel=_speed_axis(results))
        axes.set_ylim(0, 1.15 * max(spot.y for spot in spots))
        axes.yaxis.set_major_formatter(tick_text)
        _scatter(axes, spots, looks(names_of(results)), (-1, +1))

    caption = f"Better is to the upper left. {FRONT} What the smaller ones lose was not measured."
    spoken = _spoken(spots, "MB on disk", _speed_axis(results))
    return chart("size-and-speed", "Size and speed", caption, spoken, draw, HEIGHT)


def _speed_axis(results: dict[str, Any]) -> str:
    found = main_test(results)
    return f"tokens/s at {shortened(found[0], 24)}" if found else "tokens/s"


def _spoken(spots: list[Spot], x: str, y: str) -> str:
    """A chart of two quantities in words."""
    return "; ".join(
        f"{printable(spot.name)}: {number(spot.x)} {x}, {number(spot.y)} {y}" for spot in spots
    )


def _scatter(axes: Axes, spots: list[Spot], look: dict[str, Look], better: tuple[int, int]) -> None:
    """Marks with whiskers and labels, and the line of those that no other beats."""
    axes.xaxis.set_major_formatter(tick_text)
    axes.set_xlim(0, 1.15 * max((s.x_interval or (0, s.x))[1] for s in spots))
    front = pareto_front([(spot.x, spot.y) for spot in spots], better)
    axes.plot(*zip(*front, strict=True), color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    for spot in spots:
        axes.errorbar(
            spot.x,
            spot.y,
            xerr=around(spot.x, spot.x_interval) if spot.x_interval else None,
            yerr=spot.y_error or None,
            zorder=2,
            **(WHISKER | {"ecolor": MUTED, "elinewidth": 1.0, "capsize": 0}),
        )
        axes.scatter(
            [spot.x],
            [spot.y],
            s=spot.area,
            marker=look[spot.name].marker,
            color=look[spot.name].colour,
            edgecolor=PAPER,
            linewidth=0.5,
            clip_on=False,
            zorder=3,
        )
    label_spots(axes, spots)


def pareto_front(points: list[Point], better: tuple[int, int]) -> list[Point]:
    """The points that none beats in both, by x; ``better`` is the direction of each, +1 or -1."""

    def beats(one: Point, other: Point) -> bool:
        gains = [sign * (a - b) for sign, a, b in zip(better, one, other, strict=True)]
        return min(gains) >= 0 and max(gains) > 0

    return sorted(p for p in set(points) if not any(beats(other, p) for other in points))


def label_spots(axes: Axes, spots: list[Spot]) -> None:
    """Writes the labels where there is room: beside the mark, else above or below, else nowhere.

    A model without a label is still told by its mark, which the legend names.
    """
    from matplotlib.transforms import Bbox

    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # settles where the axes are
    # Beside the axes there is room to the right, but below them are the ticks.
    free = Bbox.from_extents(*axes.bbox.min, figure.bbox.x1 - 2, axes.bbox.y1 + 4)
    centres = [axes.transData.transform((spot.x, spot.y)) for spot in spots]
    taken = [
        Bbox.from_bounds(x - radius, y - radius, 2 * radius, 2 * radius)
        for (x, y), radius in zip(centres, [math.sqrt(s.area) / 2 for s in spots], strict=True)
    ]
    for spot in spots:
        if spot.x_interval:
            ends = [axes.transData.transform((x, spot.y)) for x in spot.x_interval]
            taken.append(Bbox(ends).padded(1))
    short = told_apart([spot.name for spot in spots], NAME_LENGTH)
    for spot in spots:
        away = math.sqrt(spot.area) / 2 + 4
        text = f"{short[spot.name]}\n{spot.label}".strip()
        for dx, dy, horizontal, vertical in PLACES:
            label = axes.annotate(
                text,
                (spot.x, spot.y),
                (dx * away, dy * away),
                textcoords="offset points",
                ha=horizontal,
                va=vertical,
                fontsize=9.5,
                linespacing=1.15,
            )
            label.set_in_layout(False)
            box = label.get_window_extent()
            inside = all(free.contains(*corner) for corner in box.corners())
            if inside and not box.count_overlaps(taken):
                taken.append(box)
                break
            label.remove()
