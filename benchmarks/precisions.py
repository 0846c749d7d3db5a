"""Every precision of one checkpoint: exported, benched, and held against the bars of its shape.

    python -m pocketlm.benchmarks.precisions --shape gpt2-124m       # random weights: speed only
    python -m pocketlm.benchmarks.precisions --shape llama-1b        # needs 16 GB of disk
    python -m pocketlm.benchmarks.precisions gpt2/ --text novel.txt  # of your own: quality as well

A folder is exported for each in a process that tells its peak memory; the rest is ``bench``. Random
weights are enough for speed: the kernels' work does not depend on the values. ``--json`` keeps the
results of the bench and what the scorecard needs besides: seconds to import, and memory of an
export and of a run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..export.folder import ModelFolder
from ..export.threads import default_threads
from ..export.utf8 import utf8
from .bench import BenchPlan, run_bench
from .programs import (
    at_least,
    errors_in_a_line,
    given_path,
    model_name,
    output_of,
    refuse_alone,
    scratch_folder,
    thread_count,
)
from .quality.documents import check_files
from .results_file import results_file, write_results
from .scorecard import SCORECARDS, TESTS
from .shapes import SHAPES, write_checkpoint
from .speed.measure import SpeedGrid, parse_test
from .summary import markdown

# Name in tables -> options of ``pocketlm export``; the first is what the others are compared with.
VARIANTS: dict[str, list[str]] = {
    "fp32": ["--precision", "fp32"],
    "int8": ["--precision", "int8"],
    "int8-weight": ["--precision", "int8-weight"],
    "int4 b32": ["--precision", "int4", "--block-size", "32"],
    "int4 b64": ["--precision", "int4", "--block-size", "64"],
    "int4 b128": ["--precision", "int4", "--block-size", "128"],
    "int4 b128, int4 head": ["--precision", "int4", "--block-size", "128", "--head", "int4"],
}
DEFAULT_INT4 = "int4 b128"  # what ``--precision int4`` alone gives
RUN_PROMPT, RUN_TOKENS = 128, 64  # of the run whose memory is measured

# The program that ``pocketlm export`` runs, with its peak memory at the end on stdout.
EXPORT = """
import sys
from pocketlm.export.memory import peak_rss_bytes
from pocketlm.cli import main
try:
    main()
finally:
    print(peak_rss_bytes())
"""


def export_variants(
    checkpoint: str | Path, variants: dict[str, list[str]], root: Path
) -> tuple[dict[str, ModelFolder], dict[str, int]]:
    """A folder per variant under ``root``, and the peak resident bytes of each export."""
    folders, peaks = {}, {}
    for i, (name, options) in enumerate(variants.items()):
        peaks[name] = export_variant(checkpoint, root / f"{i}", options)
        folders[name] = ModelFolder.open(root / f"{i}")
    return folders, peaks


def export_variant(checkpoint: str | Path, out: Path, options: list[str]) -> int:
    """Exports through the command line in a process of its own; its peak resident bytes.

    Raises ChildError with what that says where it fails.
    """
    command = ["export", str(checkpoint), str(out), "--quiet", *options]
    return int(output_of("-c", EXPORT, *command))


def run_memory(folder: Path, threads: int) -> int:
    """Peak resident bytes of ``pocketlm run`` as a person starts it, with 128 + 64 tokens."""
    command = ["run", str(folder), "x" * RUN_PROMPT, "--max-tokens", str(RUN_TOKENS)]
    command += ["--ignore-eos", "--json", "--threads", str(threads)]
    return int(json.loads(output_of("-m", "pocketlm", *command))["peak_rss_bytes"])


def import_seconds() -> float:
    """Median of five fresh ``import pocketlm``, the interpreter's own start left out."""
    program = (
        "import time; t = time.perf_counter(); import pocketlm; print(time.perf_counter() - t)"
    )
    return statistics.median(float(output_of("-c", program)) for _ in range(5))


def show_progress(event: dict[str, Any]) -> None:
    """One line on stderr, written over and over, if that is a terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{event.get('what', event['phase'])}", end="", file=sys.stderr, flush=True)


def to_keep(results: dict[str, Any]) -> dict[str, Any]:
    """The results without what has no place in a file that is kept: quotes, temporary paths."""
    kept = {**results, "models": [{**model, "path": None} for model in results["models"]]}
    if quality := results["quality"]:
        models = [{**model, "examples": []} for model in quality["models"]]
        kept["quality"] = {**quality, "models": models}
    return kept


def _memory(folders: dict[str, ModelFolder], peaks: dict[str, int], threads: int) -> dict[str, Any]:
    folder = folders[DEFAULT_INT4]
    room = RUN_PROMPT + RUN_TOKENS <= folder.shape.context_length
    capacity = 1 << (RUN_PROMPT + RUN_TOKENS - 1).bit_length()  # the cache doubles
    return {
        "run": run_memory(folder.path, threads) if room else None,
        "weights": folder.weights_bytes,
        "kv": capacity * folder.shape.kv_bytes_per_token,
        "export": peaks[DEFAULT_INT4],
        "exports": peaks,
    }


def print_scorecard(shape: str | None, results: dict[str, Any]) -> None:
    """Figures and bars of a shape that has some."""
    for line in SCORECARDS[shape](results) if shape in SCORECARDS else []:
        met = "met   " if line.met else "MISSED"
        print(f"{met}  {line.what}: {line.figure:.3g} ({line.relation} {line.bar:g})")


def parse() -> argparse.Namespace:
    """The options; what can be wrong with them is found before anything is exported."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "checkpoint", type=model_name, nargs="?", help="as `pocketlm export` takes it"
    )
    source.add_argument("--shape", choices=SHAPES, help="random weights of a well-known shape")
    parser.add_argument("--text", type=given_path, nargs="+", default=[], help="quality as well")
    parser.add_argument("--limit", type=int, help="at most this many tokens of each text")
    parser.add_argument("--split", type=utf8, help="what stands between the documents of a text")
    parser.add_argument("--tokenizer", type=given_path, help="folder with tokenizer.json")
    parser.add_argument(
        "--threads", type=thread_count, default=default_threads(), help="CPU threads"
    )
    parser.add_argument(
        "--rounds",
        type=at_least(1),
        default=BenchPlan.repetitions,
        help="after one of warm-up (%(default)s)",
    )
    parser.add_argument("--json", type=results_file, help="also write the results to this file")
    arguments = parser.parse_args()
    refuse_alone(parser, arguments, "text", ("limit", "split"))
    if arguments.shape and arguments.tokenizer:
        parser.error("found --tokenizer and --shape, which has its own; leave one out")
    if arguments.text:
        check_files(arguments.text, arguments.split)
    return arguments


def main() -> None:
    """Makes the folders, measures, prints the tables, and the scorecard of a shape that has one."""
    with errors_in_a_line("precisions"):
        arguments = parse()
        results = measure(arguments)
        print(markdown(results), "\n")
        print_scorecard(arguments.shape, results)
        write_results(to_keep(results), arguments.json)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the options ask for, with what the scorecard needs."""
    threads = arguments.threads
    with scratch_folder() as root:
        checkpoint = arguments.checkpoint or write_checkpoint(root / "source", arguments.shape)
        more = ["--tokenizer", str(arguments.tokenizer)] if arguments.tokenizer else []
        variants = {name: [*options, *more] for name, options in VARIANTS.items()}
        folders, peaks = export_variants(checkpoint, variants, root)
        tests = SpeedGrid(threads=[threads]).tests(folders["fp32"].shape.context_length)
        if arguments.shape:
            tests = [replace(parse_test(name), threads=threads) for name in TESTS]
        plan = BenchPlan(
            folders,
            tests,
            arguments.rounds,
            texts=arguments.text,
            limit=arguments.limit,
            split=arguments.split,
        )
        return run_bench(plan, show_progress) | {
            "shape": arguments.shape,
            "import_seconds": import_seconds(),
            "memory": _memory(folders, peaks, threads),
        }


if __name__ == "__main__":
    main()
