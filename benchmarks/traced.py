"""Speed of one checkpoint in three graphs: declared by us, traced by Optimum, traced and rewritten.

    python -m pocketlm.benchmarks.traced                      # GPT-2 124M shape, random weights
    python -m pocketlm.benchmarks.traced --shape llama-1b --precision int4

Needs the extra "optimum". The rest is ``bench``: ratios are to the declared graph.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from ..export.folder import ModelFolder
from ..export.quantities import size_text
from ..export.threads import default_threads
from ..export.writing import open_decoder
from .bench import BenchPlan, run_bench
from .precisions import export_variants, show_progress
from .programs import errors_in_a_line, model_name, scratch_folder, thread_count
from .results_file import results_file, write_results
from .shapes import SHAPES, write_checkpoint
from .speed.measure import parse_test
from .tables import Table, describe_circumstances

GRAPHS: dict[str, list[str]] = {
    "declared": [],
    "traced": ["--via", "optimum", "--no-rewrite"],
    "traced, rewritten": ["--via", "optimum"],
}
TESTS = ("pp128", "tg32 @ d32", "tg32 @ d128", "tg32 @ d512")


def graph_table(results: dict[str, Any]) -> Table:
    """Tokens/s of every graph, medians over the rounds, and ratios to the declared."""
    columns = ["graph", "cache", "nodes"]
    rows = [
        [name, about["cache"], str(about["nodes"])] for name, about in results["graphs"].items()
    ]
    for test in dict.fromkeys(row["test"] for row in results["speed"]):
        columns += [f"{test} tok/s", "ratio"]
        for row in rows:
            (speed,) = (s for s in results["speed"] if (s["model"], s["test"]) == (row[0], test))
            ratio = speed["ratio"]["median"] if speed["ratio"] else 1
            row += [f"{speed['tokens_per_second']['median']:.0f}", f"{ratio:.2f}"]
    return Table(columns, rows, labels=2)


def describe_graph(folder: ModelFolder) -> dict[str, Any]:
    """Its kind of cache, its nodes, and why it was not rewritten, if so."""
    graph = folder.graph()
    why = graph.traced.not_rewritten if graph.traced else None
    nodes = open_decoder(folder).model.graph.num_nodes()
    return {"cache": graph.cache.layout, "nodes": nodes, "not_rewritten": why}


def main() -> None:
    """Makes the folders, measures, prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--shape", choices=SHAPES, default="gpt2-124m")
    source.add_argument("--checkpoint", type=model_name, help="measure this checkpoint instead")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument(
        "--threads", type=thread_count, default=default_threads(), help="CPU threads"
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=BenchPlan.repetitions,
        help="after one of warm-up (%(default)s)",
    )
    parser.add_argument("--json", type=results_file, help="also write the results to this file")
    arguments = parser.parse_args()
    precision = ["--precision", arguments.precision]
    variants = {name: [*precision, *options] for name, options in GRAPHS.items()}
    with errors_in_a_line("traced"), scratch_folder() as root:
        checkpoint = arguments.checkpoint or write_checkpoint(root / "source", arguments.shape)
        folders, peaks = export_variants(checkpoint, variants, root)
        graphs = {name: describe_graph(folder) for name, folder in folders.items()}
        tests = [replace(parse_test(name), threads=arguments.threads) for name in TESTS]
        results = run_bench(BenchPlan(folders, tests, arguments.rounds), show_progress)
    results |= {"graphs": graphs, "export_peak_bytes": peaks}
    print(graph_table(results).markdown())
    print(f"\n{describe_circumstances(results)}\n")
    for name, peak in peaks.items():
        print(f"export {name}: peak RSS of the exporting process {size_text(peak)}")
    write_results(results, arguments.json)


if __name__ == "__main__":
    main()
