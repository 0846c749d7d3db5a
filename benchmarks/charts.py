"""Charts of a bench's results (see ``report``) as SVG, to stand inside an HTML page.

No chart tells models apart by colour alone: each has a marker and a line style too, or its name
beside it. Every chart says its numbers in words for those who do not see it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .inline_svg import COLOUR, FG, MUTED, NUM_COLOURS, PAPER, draw_svg
from .quantities import number, percent, size, times
from .results_by_test import by_test, main_test
from .visible_text import printable, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 400  # of a chart, in CSS pixels at its natural size
MARKERS = "os^DvPX*<>h"
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (9, 3)))
Point = tuple[float, float]


@dataclass(frozen=True)
class Look:
    """How one model is drawn in every chart."""

    colour: str
    marker: str
    dash: Any


@dataclass(frozen=True)
class Chart:
    """An SVG element with what a page says beside it."""

    title: str
    caption: str
    svg: str


def looks(names: Sequence[str]) -> dict[str, Look]:
    """A look for each model, the first given being the reference. Eleven differ in shape alone."""
    return {
        name: Look(
            COLOUR[f"--model-{place % NUM_COLOURS}"],
            MARKERS[place % len(MARKERS)],
            DASHES[place % len(DASHES)],
        )
        for place, name in enumerate(names)
    }


def swatches(names: Sequence[str]) -> dict[str, str]:
    """A piece of each model's line, to stand before its name in a legend."""

    def swatch(place: int, look: Look) -> str:
        def draw(axes: Axes) -> None:
            axes.set_axis_off()
            axes.set(xlim=(0, 1), ylim=(0, 1))
            axes.plot([0.05, 0.95], [0.5, 0.5], color=look.colour, linestyle=look.dash)
            axes.plot([0.5], [0.5], look.marker, color=look.colour)

        return draw_svg(f"swatch-{place}", draw, (34, 12))

    return {name: swatch(i, look) for i, (name, look) in enumerate(looks(names).items())}


@dataclass(frozen=True)
class Spot:
    """A model in a chart of two quantities."""

    name: str
    x: float
    y: float
    label: str
    x_interval: tuple[float, float] | None = None
    y_error: float | None = None
    area: float = 60.0  # of the marker, in square pixels


def tradeoffs(results: dict[str, Any]) -> list[Chart]:
    """Size and speed, each against what was lost; without quality, one against the other."""
    speeds, losses = _speeds(results), _losses(results)
    sizes = {model["name"]: model.get("disk_bytes") for model in results["models"]}
    known = [name for name in sizes if name in speeds and sizes[name]]
    if not losses:
        return [_size_against_speed(results, known, sizes, speeds)] if known else []
    largest = max((estimate["median"] for estimate in speeds.values()), default=1.0)
    small = [
        Spot(
            name,
            sizes[name] / 1e6,
            losses[name]["value"],
            _rate(speeds[name]["median"]) if name in speeds else "",
            y_error=losses[name].get("standard_error"),
            area=40 + 260 * speeds[name]["median"] / largest if name in speeds else 60.0,
        )
        for name in sizes
        if name in losses and sizes[name]
    ]
    fast = [
        Spot(
            name,
            speeds[name]["median"],
            losses[name]["value"],
            size(sizes[name]),
            interval(speeds[name]),
            losses[name].get("standard_error"),
        )
        for name in known
        if name in losses
    ]
    return [
        *_against_loss(results, "size", small, "Size against loss", "on disk, MB", -1),
        *_against_loss(results, "speed", fast, "Speed against loss", _speed_axis(results), +1),
    ]


def _against_loss(
    results: dict[str, Any], name: str, spots: list[Spot], title: str, axis: str, better: int
) -> list[Chart]:
    if not spots:
        return []
    side = "right" if better > 0 else "left"
    also = "; larger marks are faster" if name == "size" and _speeds(results) else ""
    caption = (
        f"Better is to the lower {side}{also}. "
        "The line joins the models that no other beats in both."
    )

    def draw(axes: Axes) -> None:
        _loss_axis(axes, [spot.y for spot in spots])
        axes.set(xlabel=axis, ylabel="mean KL divergence, nats")
        _scatter(axes, spots, looks(_names(results)), (better, -1))

    return [_chart(f"{name}-loss", title, caption, _spoken(spots, axis, "KL"), draw, 300)]


def _size_against_speed(
    results: dict[str, Any],
    names: list[str],
    sizes: dict[str, Any],
    speeds: dict[str, dict[str, float]],
) -> Chart:
    spots = [
        Spot(
            name,
            sizes[name] / 1e6,
            speeds[name]["median"],
            f"{size(sizes[name])}, {_rate(speeds[name]['median'])}",
        )
        for name in names
    ]

    def draw(axes: Axes) -> None:
        axes.set(xlabel="on disk, MB", ylabel=_speed_axis(results))
        axes.set_ylim(0, 1.15 * max(spot.y for spot in spots))
        _scatter(axes, spots, looks(_names(results)), (-1, +1))

    caption = (
        "Better is to the upper left. The line joins the models that no other beats in both. "
        "No text was given, so what the smaller ones lose was not measured."
    )
    return _chart(
        "size-speed",
        "Size against speed",
        caption,
        _spoken(spots, "MB on disk", "tokens/s"),
        draw,
        300,
    )


def speed_bars(results: dict[str, Any]) -> list[Chart]:
    """One chart for each test: a bar for each model, with its interval and its ratio."""
    return [
        _speed_chart(f"speed-{place}", title, rows, looks(_names(results)))
        for place, (title, rows) in enumerate(by_test(results).items())
    ]


def _speed_chart(
    name: str, title: str, rows: dict[str, dict[str, Any]], look: dict[str, Look]
) -> Chart:
    models = [model for model, row in rows.items() if row.get("tokens_per_second")]
    rates = [rows[model]["tokens_per_second"] for model in models]
    intervals = [interval(rate) for rate in rates]
    labels = [_bar_label(rows[model]) for model in models]
    ends = [
        interval[1] if interval else rate["median"]
        for rate, interval in zip(rates, intervals, strict=True)
    ]

    def draw(axes: Axes) -> None:
        places = list(range(len(models)))[::-1]
        colours = [look[model].colour for model in models]
        axes.barh(places, [rate["median"] for rate in rates], 0.62, color=colours, alpha=0.85)
        for place, rate, interval, end, label in zip(
            places, rates, intervals, ends, labels, strict=True
        ):
            if interval:
                axes.errorbar(
                    rate["median"], place, xerr=_around(rate["median"], interval), **WHISKER
                )
            axes.annotate(label, (end, place), (7, 0), textcoords="offset points", va="center")
        axes.set_yticks(places, [shortened(model, 18) for model in models], color=FG, size=10.5)
        axes.tick_params("y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(False, axis="y")
        axes.set(xlim=(0, 1.55 * max(ends, default=1.0) or 1.0), xlabel="tokens/s")
        axes.locator_params("x", nbins=5)

    spoken = "; ".join(
        f"{printable(model)}: {label}" for model, label in zip(models, labels, strict=True)
    )
    return _chart(name, title, "", spoken, draw, 62 + 26 * len(models))


def loss_along(results: dict[str, Any]) -> list[Chart]:
    """The KL divergence of each model along the text; none where nothing was compared."""
    lines = {
        entry["model"]: [
            (100 * bucket["position"], bucket["kl"])
            for bucket in entry.get("along") or []
            if bucket.get("kl") is not None
        ]
        for entry in (results.get("quality") or {}).get("models", [])
    }
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return []

    def draw(axes: Axes) -> None:
        _loss_axis(axes, [y for points in lines.values() for _, y in points])
        axes.set(xlabel="of the text, %", ylabel="KL divergence, nats", xlim=(0, 100))
        _lines(axes, lines, looks(_names(results)))

    spoken = "; ".join(
        f"{printable(name)}: from {number(min(y for _, y in points))} "
        f"to {number(max(y for _, y in points))} nats"
        for name, points in lines.items()
    )
    caption = f"Against {printable(results['reference'])}, mean of each stretch of the text."
    return [_chart("along", "KL divergence along the text", caption, spoken, draw, 280)]


def error_per_layer(results: dict[str, Any]) -> list[Chart]:
    """The relative error of each layer's weights; none where no model is quantized."""
    errors = {
        model["name"]: {
            entry["layer"]: 100 * entry["relative_error"] for entry in model["weight_errors"]
        }
        for model in results["models"]
        if model.get("weight_errors")
    }
    if not errors:
        return []
    # A layer that only some models have goes where it stands in them.
    layers = list(dict.fromkeys(layer for model in errors.values() for layer in model))
    if any("head" in model for model in errors.values()):
        layers.sort(key=lambda layer: layer == "head")
    lines = {
        name: [(float(layers.index(layer)), error) for layer, error in model.items()]
        for name, model in errors.items()
    }

    def draw(axes: Axes) -> None:
        _layer_axis(axes, layers)
        axes.set(ylabel="‖W − Q‖ / ‖W‖, %")
        _lines(axes, lines, looks(_names(results)))
        axes.set_ylim(0, 1.1 * max(y for points in lines.values() for _, y in points) or 1.0)

    spoken = "; ".join(
        f"{printable(name)}: from {percent(min(model.values()) / 100)} "
        f"to {percent(max(model.values()) / 100)}"
        for name, model in errors.items()
    )
    caption = "What rounding changed in the weights of each layer. Weights left alone do not count."
    return [_chart("layers", "Weight error per layer", caption, spoken, draw, 280)]


WHISKER: dict[str, Any] = {"fmt": "none", "ecolor": FG, "elinewidth": 1.3, "capsize": 3.5}


def _names(results: dict[str, Any]) -> list[str]:
    return [model["name"] for model in results["models"]]


def _speeds(results: dict[str, Any]) -> dict[str, dict[str, float]]:
    """{model: Estimate} of the main test."""
    found = main_test(results)
    rows = found[1] if found else {}
    return {
        model: row["tokens_per_second"]
        for model, row in rows.items()
        if row.get("tokens_per_second")
    }


def _speed_axis(results: dict[str, Any]) -> str:
    found = main_test(results)
    return f"{found[0] if found else 'speed'}, tokens/s"


def _losses(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """{model: Mean of the KL divergence}; 0 for the reference. Empty where nothing was compared."""
    entries = (results.get("quality") or {}).get("models", [])
    found = {
        entry["model"]: entry["against"]["kl"]["mean"] for entry in entries if entry.get("against")
    }
    reference = {"value": 0.0, "standard_error": None}
    return {results["reference"]: reference} | found if found else {}


def _rate(rate: float) -> str:
    return f"{number(rate)} tok/s"


def _bar_label(row: dict[str, Any]) -> str:
    ratio = row.get("ratio")
    label = number(row["tokens_per_second"]["median"])
    return f"{label}  ({times(ratio['median'])})" if ratio else label


def interval(estimate: dict[str, Any]) -> tuple[float, float] | None:
    """(low, high), where there were enough repetitions to know them."""
    low, high = estimate.get("low"), estimate.get("high")
    return (low, high) if low is not None and high is not None and low < high else None


def _around(middle: float, interval: tuple[float, float]) -> list[list[float]]:
    """The interval as Matplotlib wants it: distances to both sides."""
    return [[max(0.0, middle - interval[0])], [max(0.0, interval[1] - middle)]]


def _spoken(spots: list[Spot], x: str, y: str) -> str:
    """A chart of two quantities in words."""
    return "; ".join(
        f"{printable(spot.name)}: {number(spot.x)} {x}, {number(spot.y)} {y}" for spot in spots
    )


def _loss_axis(axes: Axes, values: list[float]) -> None:
    """Logarithmic over whole decades, with a 0 of its own below them where it is needed."""
    positive = [value for value in values if value > 0]
    if not positive:
        axes.set_ylim(-0.0001, 0.001)
        axes.set_yticks([0], ["0"])
        return
    first = math.floor(math.log10(min(positive)))
    last = max(first + 1, math.ceil(math.log10(max(positive))))
    ticks = [10.0**exponent for exponent in range(first, last + 1)]
    if min(values) <= 0:
        axes.set_yscale("symlog", linthresh=ticks[0], linscale=0.6)
        ticks = [0.0, *ticks]
        axes.set_ylim(0, ticks[-1])
    else:
        axes.set_yscale("log")
        axes.set_ylim(ticks[0], ticks[-1])
    axes.set_yticks(ticks, [number(tick, 1) for tick in ticks])
    axes.set_yticks([], minor=True)


def _layer_axis(axes: Axes, layers: list[str]) -> None:
    """Names the layers: all numbers where they fit, and what has no number at the ends."""
    short = [layer.rpartition(".")[2] if layer[-1:].isdigit() else layer for layer in layers]
    step = max(1, math.ceil(len(layers) / 12))
    numbered = [place for place, text in enumerate(short) if text.isdigit()]
    shown = {
        place
        for order, place in enumerate(numbered)
        if order % step == 0 and not (len(numbered) - order <= step // 2)
    }
    shown |= {place for place, text in enumerate(short) if text in ("embedding", "head")}
    if not numbered:
        shown = set(range(0, len(layers), step))
    axes.set_xticks(sorted(shown), [shortened(short[place], 9) for place in sorted(shown)])
    axes.set(xlabel="layer")
    axes.margins(x=0.06)


def _lines(axes: Axes, lines: dict[str, list[Point]], look: dict[str, Look]) -> None:
    """A line for each model, with a dozen of its markers."""
    for place, (name, points) in enumerate(lines.items()):
        every = max(1, len(points) // 12)
        axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            color=look[name].colour,
            linestyle=look[name].dash,
            marker=look[name].marker,
            markersize=5,
            # Not all at the same places, where lines run close to each other.
            markevery=(place * every // max(1, len(lines)), every),
            clip_on=False,
        )


def _scatter(axes: Axes, spots: list[Spot], look: dict[str, Look], better: tuple[int, int]) -> None:
    """Marks with whiskers and labels, and the line of those that no other beats."""
    axes.set_xlim(0, 1.15 * max((s.x_interval or (0, s.x))[1] for s in spots))
    front = _frontier([(spot.x, spot.y) for spot in spots], better)
    axes.plot(*zip(*front, strict=True), color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    for spot in spots:
        axes.errorbar(
            spot.x,
            spot.y,
            xerr=_around(spot.x, spot.x_interval) if spot.x_interval else None,
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
            clip_on=False,
            zorder=3,
        )
    _label(axes, spots)


def _frontier(points: list[Point], better: tuple[int, int]) -> list[Point]:
    """The points that none beats in both, by x; ``better`` is the direction of each, +1 or -1."""

    def beats(one: Point, other: Point) -> bool:
        gains = [sign * (a - b) for sign, a, b in zip(better, one, other, strict=True)]
        return min(gains) >= 0 and max(gains) > 0

    return sorted(p for p in set(points) if not any(beats(other, p) for other in points))


def _label(axes: Axes, spots: list[Spot]) -> None:
    """Writes the labels where there is room: beside the mark, else above or below, else nowhere.

    A model without a label is still told by its mark, which the legend names.
    """
    from matplotlib.transforms import Bbox

    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # settles where the axes are
    page = figure.bbox.padded(-2)
    centres = [axes.transData.transform((spot.x, spot.y)) for spot in spots]
    taken = [
        Bbox.from_bounds(x - radius, y - radius, 2 * radius, 2 * radius)
        for (x, y), radius in zip(centres, [math.sqrt(s.area) / 2 for s in spots], strict=True)
    ]
    for spot in spots:
        away = math.sqrt(spot.area) / 2 + 4
        text = f"{shortened(spot.name, 18)}\n{spot.label}".strip()
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
            inside = Bbox.intersection(box, page)
            if inside is not None and inside == box and not box.count_overlaps(taken):
                taken.append(box)
                break
            label.remove()


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


def _chart(
    name: str,
    title: str,
    caption: str,
    spoken: str,
    draw: Callable[[Axes], None],
    height: float,
) -> Chart:
    title = printable(title)
    return Chart(title, caption, draw_svg(name, draw, (WIDTH, height), title, f"{spoken}."))
