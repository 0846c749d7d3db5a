"""The report's charts: the front of models that no other beats, what is drawn and what is said."""

from __future__ import annotations

import re
from itertools import product

import pytest
from bench_results import MODELS, bench_results, estimate
from hypothesis import given
from hypothesis import strategies as st

from pocketlm.benchmarks.html.charts import error_per_layer, looks, loss_along, speed_bars
from pocketlm.benchmarks.html.results_by_test import by_test, main_test
from pocketlm.benchmarks.html.tradeoffs import pareto_front, tradeoffs

POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12)


def texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)<", svg)


@given(POINTS, st.sampled_from(list(product((1, -1), repeat=2))))
def test_the_front_is_what_none_beats(
    points: list[tuple[int, int]], better: tuple[int, int]
) -> None:
    front = pareto_front([(float(x), float(y)) for x, y in points], better)
    # Turned so that less is better in both: from left to right, every point is lower than before.
    turned = [(-better[0] * x, -better[1] * y) for x, y in front]
    falling = sorted(turned)
    assert all(a[0] < b[0] and a[1] > b[1] for a, b in zip(falling, falling[1:], strict=False))
    for x, y in points:
        own = (-better[0] * x, -better[1] * y)
        assert any(a <= own[0] and b <= own[1] for a, b in turned)
    assert set(front) <= set(points)


def test_looks_differ_in_shape_among_eleven_models() -> None:
    found = looks([f"model {i}" for i in range(11)]).values()
    assert len({look.marker for look in found}) == 11
    assert len({look.colour for look in found}) == 7


def test_size_and_speed_are_set_against_the_divergence() -> None:
    small, fast = tradeoffs(bench_results())
    assert (small.title, fast.title) == ("Size and divergence", "Speed and divergence")
    assert "int4: 5.43 MB on disk, 0.0413 nats" in small.svg
    assert "int8: 511 tokens/s at tg128, 0.00210 nats" in fast.svg
    assert "fp32: 30.3 MB on disk, 0 nats" in small.svg
    # Named where they are, with the third quantity.
    assert {"int4", "903 tok/s", "0.01"} <= set(texts(small.svg))
    assert {"int4", "5.43 MB"} <= set(texts(fast.svg))


def test_without_quality_size_is_set_against_speed() -> None:
    (chart,) = tradeoffs(bench_results(quality=False))
    assert "int4: 5.43 MB on disk, 903 tokens/s at tg128" in chart.svg
    assert "was not measured" in chart.caption


def test_a_single_model_has_nothing_to_be_set_against() -> None:
    assert tradeoffs(bench_results({"fp32": MODELS["fp32"]})) == []


def test_every_test_has_a_bar_for_each_model() -> None:
    charts = speed_bars(bench_results())
    assert [chart.title for chart in charts] == ["pp512", "tg128", "tg128 @ d512", "pp512+tg128"]
    for chart in charts:
        assert {"fp32", "int8", "int4"} <= set(texts(chart.svg))
    assert "903 (4.60×)" in texts(charts[1].svg)


@pytest.mark.parametrize("repetitions", [1, 5])
def test_only_known_intervals_have_whiskers(repetitions: int) -> None:
    (chart,) = speed_bars(
        bench_results(tests=[("pp8", "prefill", 8, 0, 0)], repetitions=repetitions)
    )
    # A bar is filled and without a line; a whisker is a line in the colour of the text.
    whiskers = re.findall(r'style="fill: none; stroke: var\(--fg\)', chart.svg)
    assert len(whiskers) == (0 if repetitions == 1 else 3)


def test_the_reference_has_no_line_along_the_text() -> None:
    (chart,) = loss_along(bench_results())
    assert "int8: from" in chart.svg and "fp32: from" not in chart.svg
    assert loss_along(bench_results({"fp32": MODELS["fp32"]})) == []
    assert loss_along(bench_results(quality=False)) == []


def test_a_model_that_loses_nothing_is_drawn_at_zero() -> None:
    results = bench_results({"fp32": MODELS["fp32"], "copy": MODELS["fp32"]})
    (along,) = loss_along(results)
    assert "copy: from 0 to 0 nats" in along.svg
    assert "0" in texts(along.svg)


def test_layers_stand_in_the_order_of_the_model() -> None:
    results = bench_results()
    results["models"][1]["weight_errors"].append(
        {"layer": "head", "relative_error": 0.02, "bits_per_weight": 8.2}
    )
    (chart,) = error_per_layer(results)
    names = ["embedding", *map(str, range(8)), "head"]
    places = {
        text: float(x)
        for x, text in re.findall(r'<text[^>]* x="([\d.]+)"[^>]*>([^<]*)<', chart.svg)
        if text in names
    }
    # Of ticks on the other axis with the same text, the last is taken: they come after.
    assert places["embedding"] < places["1"] < places["3"] < places["7"] < places["head"]
    assert error_per_layer(bench_results({"fp32": MODELS["fp32"]})) == []


def test_many_layers_are_named_where_there_is_room() -> None:
    results = bench_results()
    for model in results["models"][1:]:
        model["weight_errors"] = [
            {"layer": layer, "relative_error": 0.1, "bits_per_weight": 4.25}
            for layer in ("embedding", *(f"layers.{i}" for i in range(80)), "head")
        ]
    (chart,) = error_per_layer(results)
    named = [text for text in texts(chart.svg) if text.isdigit()]
    assert {"embedding", "head"} <= set(texts(chart.svg))
    assert 5 < len(named) < 40


def test_tests_that_differ_in_threads_alone_are_told_apart() -> None:
    results = bench_results(tests=[("pp8", "prefill", 8, 0, 0), ("tg8", "decode", 0, 8, 0)])
    more = [row | {"threads": 1} for row in results["speed"]]
    results["speed"] += more
    titles = ["pp8, 2 threads", "tg8, 2 threads", "pp8, 1 thread", "tg8, 1 thread"]
    assert list(by_test(results)) == titles
    found = main_test(results)
    assert found is not None and found[0] == "tg8, 2 threads"


def test_a_speed_that_is_missing_for_one_model_is_left_out() -> None:
    results = bench_results(tests=[("tg8", "decode", 0, 8, 0)])
    results["speed"][1]["tokens_per_second"] = None
    results["speed"][2]["tokens_per_second"] = estimate(10.0)
    (chart,) = speed_bars(results)
    assert "int8" not in texts(chart.svg) and "int4" in texts(chart.svg)
    assert len(tradeoffs(results)) == 2
