"""Charts of a bench's results (see ``report``) as SVG, to stand inside an HTML page.

No chart tells models apart by colour alone: each has a marker of its own too, or its name beside
it. Every chart says its numbers in words for those who do not see it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .inline_svg import COLOUR, FG, NUM_COLOURS, draw_svg
from .quantities import number, percent, times
from .results_by_test import by_test
from .visible_text import printable, shortened, told_apart

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 400  # of a chart, in CSS pixels at its natural size
MARKERS = "os^DvPX*<>h"
NAME_LENGTH = 18  # of a model's name, in characters
WHISKER: dict[str, Any] = {"fmt": "none", "ecolor": FG, "elinewidth": 1.3, "capsize": 3.5}
Point = tuple[float, float]


@dataclass(frozen=True)
class Look:
    """How one model is drawn in every chart."""

    colour: str
    marker: str


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
        )
        for place, name in enumerate(names)
    }


def swatches(names: Sequence[str], legend: str) -> list[str]:
    """A piece of each model's line, to stand before its name in a legend of that name."""

    def swatch(place: int, look: Look) -> str:
        def draw(axes: Axes) -> None:
            axes.set_axis_off()
            axes.set(xlim=(0, 1), ylim=(0, 1))
            axes.plot(
                [0.05, 0.5, 0.95], [0.5] * 3, look.marker + "-", color=look.colour, markevery=[1]
            )

        return draw_svg(f"{legend}-{place}", draw, (34, 12))

    return [swatch(place, look) for place, look in enumerate(looks(names).values())]


def chart(
    name: str,
    title: str,
    caption: str,
    spoken: str,
    draw: Callable[[Axes], None],
    height: float,
) -> Chart:
    """What ``draw`` draws; ``spoken`` has its numbers in words."""
    return Chart(title, caption, draw_svg(name, draw, (WIDTH, height), title, f"{spoken}."))


def speed_bars(results: dict[str, Any]) -> list[Chart]:
    """One chart for each test: a bar for each model, with its interval and its ratio."""
    return [
        _speed_chart(f"speed-{place}", title, rows, looks(names_of(results)))
        for place, (title, rows) in enumerate(by_test(results).items())
    ]


def _speed_chart(
    name: str, title: str, rows: dict[str, dict[str, Any]], look: dict[str, Look]
) -> Chart:
    models = [model for model, row in rows.items() if row.get("tokens_per_second")]
    rates = [rows[model]["tokens_per_second"] for model in models]
    intervals = [known_interval(rate) for rate in rates]
    labels = [_bar_label(rows[model]) for model in models]
    ends = [
        known[1] if known else rate["median"] for rate, known in zip(rates, intervals, strict=True)
    ]

    def draw(axes: Axes) -> None:
        places = list(range(len(models)))[::-1]
        colours = [look[model].colour for model in models]
        axes.barh(places, [rate["median"] for rate in rates], 0.62, color=colours, alpha=0.85)
        for place, rate, known, end, label in zip(
            places, rates, intervals, ends, labels, strict=True
        ):
            if known:
                axes.errorbar(rate["median"], place, xerr=around(rate["median"], known), **WHISKER)
            axes.annotate(label, (end, place), (7, 0), textcoords="offset points", va="center")
        axes.set_yticks(places, list(told_apart(models, NAME_LENGTH).values()), color=FG, size=10.5)
        axes.tick_params("y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(False)
        axes.set(xlim=(0, 1.55 * max(ends, default=1.0) or 1.0), xlabel="tokens/s")
        axes.locator_params("x", nbins=5)
        axes.xaxis.set_major_formatter(tick_text)

    spoken = "; ".join(
        f"{printable(model)}: {label}" for model, label in zip(models, labels, strict=True)
    )
    return chart(name, title, "", spoken, draw, 62 + 26 * len(models))


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
        loss_axis(axes, [y for points in lines.values() for _, y in points])
        axes.set(xlabel="of the text, %", ylabel="KL divergence, nats", xlim=(0, 100))
        _lines(axes, lines, looks(names_of(results)))

    spoken = "; ".join(
        f"{printable(name)}: from {number(min(y for _, y in points))} "
        f"to {number(max(y for _, y in points))} nats"
        for name, points in lines.items()
    )
    caption = f"Against {printable(results['reference'])}, mean of each stretch of the text."
    return [chart("along", "KL divergence along the text", caption, spoken, draw, 280)]


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
        _lines(axes, lines, looks(names_of(results)))
        axes.set_ylim(0, 1.1 * max(y for points in lines.values() for _, y in points) or 1.0)

    spoken = "; ".join(
        f"{printable(name)}: from {percent(min(model.values()) / 100)} "
        f"to {percent(max(model.values()) / 100)}"
        for name, model in errors.items()
    )
    caption = "What rounding changed in the weights of each layer. Weights left alone do not count."
    return [chart("layers", "Weight error per layer", caption, spoken, draw, 280)]


def names_of(results: dict[str, Any]) -> list[str]:
    """The models, the reference first."""
    return [model["name"] for model in results["models"]]


def _bar_label(row: dict[str, Any]) -> str:
    ratio = row.get("ratio")
    label = number(row["tokens_per_second"]["median"])
    return f"{label} ({times(ratio['median'])})" if ratio else label


def tick_text(tick: float, place: float) -> str:
    """A tick as it is, with commas."""
    return f"{tick:,.10g}"


def known_interval(estimate: dict[str, Any]) -> tuple[float, float] | None:
    """(low, high), where there were enough repetitions to know them."""
    low, high = estimate.get("low"), estimate.get("high")
    return (low, high) if low is not None and high is not None and low < high else None


def around(middle: float, ends: tuple[float, float]) -> list[list[float]]:
    """An interval as Matplotlib wants it: distances to both sides."""
    return [[max(0.0, middle - ends[0])], [max(0.0, ends[1] - middle)]]


def loss_axis(axes: Axes, values: list[float]) -> None:
    """Logarithmic, with a 0 of its own below where it is needed."""
    positive = [value for value in values if value > 0]
    if not positive:
        axes.set_ylim(-0.0001, 0.001)
        axes.set_yticks([0], ["0"])
        return
    lowest, highest = min(positive) / 1.5, max(positive) * 1.5
    if min(values) > 0:
        axes.set_yscale("log")
        axes.set_ylim(lowest, highest)
        ticks = _round_numbers(lowest, highest)
    else:
        decade = 10.0 ** math.floor(math.log10(min(positive)))
        axes.set_yscale("symlog", linthresh=decade, linscale=0.6)
        axes.set_ylim(-0.3 * decade, highest)  # room for the marks at 0
        ticks = [0.0, *_round_numbers(decade, highest)]
    axes.set_yticks(ticks, [number(tick, 1) for tick in ticks])
    axes.set_yticks([], minor=True)


def _round_numbers(low: float, high: float) -> list[float]:
    """Powers of ten in a range; with 2 and 5 times them where there are but few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1,) if high / low > 100 else (1, 2, 5)
    numbers = [float(f"{step}e{decade}") for decade in decades for step in steps]
    return [number for number in numbers if low <= number <= high]


def _layer_axis(axes: Axes, layers: list[str]) -> None:
    """Names as many layers as there is room for: words first, then numbers from the left."""
    names = [
        shortened(layer.rpartition(".")[2] if layer[-1:].isdigit() else layer, 9)
        for layer in layers
    ]
    pixels = 300 / max(1, len(layers) - 1)  # from one to the next, about
    widths = [6.2 * len(name) + 6 for name in names]
    shown: list[int] = []
    for place in sorted(range(len(layers)), key=lambda place: (names[place].isdigit(), place)):
        if all(
            abs(place - other) * pixels >= (widths[place] + widths[other]) / 2 for other in shown
        ):
            shown.append(place)
    axes.set_xticks(shown, [names[place] for place in shown])
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
            marker=look[name].marker,
            markersize=5,
            # Not all at the same places, where lines run close to each other.
            markevery=(place * every // max(1, len(lines)), every),
            clip_on=False,
        )
