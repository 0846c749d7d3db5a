"""The comparison of declared and traced graphs: its table, and what it says of a graph."""

from __future__ import annotations

from pocketlm.benchmarks.traced import FIGURES, GRAPHS, describe_graph, table
from pocketlm.export.folder import ModelFolder


def test_ratios_are_to_the_declared_graph_of_the_same_round() -> None:
    rounds = {"declared": [0.1, 0.2, 0.4], "traced": [0.2, 0.4, 0.8], "rewritten": [0.1, 0.2, 0.4]}
    results = {
        "samples": {name: dict.fromkeys(FIGURES, seconds) for name, seconds in rounds.items()},
        "graphs": {name: {"cache": "in-place", "nodes": 7} for name in rounds},
    }
    lines = table(results).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| declared | in-place | 7 | 640 | 1.00 | 5 | 1.00 |")
    assert lines[3].startswith("| traced | in-place | 7 | 320 | 0.50 | 2 | 0.50 |")


def test_the_three_graphs_differ_in_options_of_the_export_only() -> None:
    assert GRAPHS["declared"] == []
    assert "--no-rewrite" in GRAPHS["traced"]
    assert GRAPHS["traced, rewritten"] == ["--via", "optimum"]


def test_a_graph_is_described(tiny_folder: ModelFolder) -> None:
    found = describe_graph(tiny_folder)
    assert (found["cache"], found["not_rewritten"]) == ("in-place", None)
    assert 30 < found["nodes"] < 100
