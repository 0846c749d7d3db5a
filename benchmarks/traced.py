"""Speed of one checkpoint in three graphs: declared by us, traced by Optimum, traced and rewritten.

    python -m pocketlm.benchmarks.traced                      # GPT-2 124M shape, random weights
    python -m pocketlm.benchmarks.traced --shape llama-1b --precision int4

Needs the extra "optimum". Every model runs in a process of its own; rounds go over all of them in
turn, and a ratio is the median of the rounds' ratios to the declared graph.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from ..export.folder import ModelFolder
from ..export.run import open_decoder
from .machine import describe_machine
from .scorecard import ratio
from .shapes import SHAPES, write_checkpoint
from .speed import DEPTHS, PROMPT, export_variant, measure

GRAPHS: dict[str, list[str]] = {
    "declared": [],
    "traced": ["--via", "optimum", "--no-rewrite"],
    "traced, rewritten": ["--via", "optimum"],
}
FIGURES = ("prefill", "decode", *(f"decode@{depth}" for depth in DEPTHS))


def table(results: dict[str, Any]) -> str:
    """Markdown: tokens/s of every graph, medians over the rounds, and ratios to the declared."""
    lines = [
        "| graph | cache | nodes | "
        + " | ".join(f"{figure} tok/s | ratio" for figure in FIGURES)
        + " |",
        "|---|---|--:|" + "--:|--:|" * len(FIGURES),
    ]
    samples = results["samples"]
    for name, figures in samples.items():
        cells = []
        for figure in FIGURES:
            tokens = PROMPT if figure == "prefill" else 1
            rate = tokens / statistics.median(figures[figure])
            quotient = ratio(figures[figure], samples["declared"][figure])
            cells += [f"{rate:.0f}", f"{quotient:.2f}"]
        about = results["graphs"][name]
        lines.append(f"| {name} | {about['cache']} | {about['nodes']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def describe_graph(folder: ModelFolder) -> dict[str, Any]:
    """Its kind of cache, its nodes, and why it was not rewritten, if so."""
    why = folder.manifest.get("graph", {}).get("not_rewritten")
    nodes = open_decoder(folder).model.graph.num_nodes()
    return {"cache": folder.graph_cache, "nodes": nodes, "not_rewritten": why}


def main() -> None:
    """Makes the folders, measures, prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="gpt2-124m")
    parser.add_argument("--checkpoint", type=Path, help="measure this checkpoint instead")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("POCKETLM_CACHE")) as temporary:
        root = Path(temporary)
        checkpoint = arguments.checkpoint or write_checkpoint(root / "source", arguments.shape)
        folders, peaks = {}, {}
        for i, (name, options) in enumerate(GRAPHS.items()):
            folders[name] = root / str(i)
            options = ["--precision", arguments.precision, *options]
            peaks[name] = export_variant(checkpoint, folders[name], options)
        graphs = {name: describe_graph(ModelFolder.open(folders[name])) for name in GRAPHS}
        results = measure(folders, arguments.threads, arguments.rounds)
    results |= {
        "machine": describe_machine(arguments.threads),
        "graphs": graphs,
        "precision": arguments.precision,
        "rounds": arguments.rounds,
        "export_peak_bytes": peaks,
    }
    print(json.dumps(results["machine"]))
    print(f"load average before and after: {results['load_before_after']}\n")
    print(table(results))
    for name, peak in peaks.items():
        print(f"export {name}: peak RSS of the exporting process {peak / 1e6:.0f} MB")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
