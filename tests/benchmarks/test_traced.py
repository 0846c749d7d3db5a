"""The comparison of declared and traced graphs: its table, and what it says of a graph."""

from __future__ import annotations

from typing import Any

from pocketlm.benchmarks.traced import GRAPHS, TESTS, describe_graph, graph_table
from pocketlm.export.folder import ModelFolder


def row(model: str, test: str, rate: float, ratio: float | None) -> dict[str, Any]:
    return {
        "model": model,
        "test": test,
        "tokens_per_second": {"median": rate},
        "ratio": None if ratio is None else {"median": ratio},
    }


def test_every_graph_has_a_row_with_rates_and_ratios() -> None:
    results: dict[str, Any] = {
        "graphs": {
            "declared": {"cache": "in-place", "nodes": 7},
            "traced": {"cache": "growing", "nodes": 9},
        },
        "speed": [
            row("declared", "pp128", 640, None),
            row("traced", "pp128", 320, 0.5),
            row("declared", "tg32 @ d32", 60.4, None),
            row("traced", "tg32 @ d32", 45.3, 0.75),
        ],
    }
    lines = graph_table(results).markdown().splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[0] == "| graph | cache | nodes | pp128 tok/s | ratio | tg32 @ d32 tok/s | ratio |"
    assert lines[2] == "| declared | in-place | 7 | 640 | 1.00 | 60 | 1.00 |"
    assert lines[3] == "| traced | growing | 9 | 320 | 0.50 | 45 | 0.75 |"


def test_the_three_graphs_differ_in_options_of_the_export_only() -> None:
    assert GRAPHS["declared"] == []
    assert "--no-rewrite" in GRAPHS["traced"]
    assert GRAPHS["traced, rewritten"] == ["--via", "optimum"]
    assert TESTS[0].startswith("pp")


def test_a_graph_is_described(tiny_folder: ModelFolder) -> None:
    found = describe_graph(tiny_folder)
    assert (found["cache"], found["not_rewritten"]) == ("in-place", None)
    assert 30 < found["nodes"] < 100
