"""Every precision of checkpoints: exported, benched, and held against the bars of its shape.

    python -m pocketlm.benchmarks.precisions --shape gpt2-124m       # random weights: speed only
    python -m pocketlm.benchmarks.precisions --shape llama-1b        # needs 16 GB of disk
    python -m pocketlm.benchmarks.precisions gpt2/ --text novel.txt  # of your own: quality as well
    python -m pocketlm.benchmarks.precisions demo smollm2 --text novel.txt --rounds 0  # that alone

A folder is exported for each in a process that tells its peak memory; the rest is ``bench``. Random
weights are enough for speed: the kernels' work does not depend on the values. "smollm2" is a real
model that is fetched for measuring, see ``real_weights``; ``--variant`` chooses what is exported,
see ``exported_variants``. ``--json`` keeps the results of the bench and what the scorecard needs
besides: seconds to import, and memory of an export and of a run; of several checkpoints a list.
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
from . import real_weights
from .bench import FORMAT, BenchPlan, describe_folder, run_bench
from .exported_variants import REFERENCE, chosen_variants, export_variant, variant
from .machine import describe_machine
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
from .quality.measure import measure_quality
from .quality_table import quality_table
from .results_file import results_file, write_results
from .scorecard import SCORECARDS, TESTS
from .shapes import SHAPES, write_checkpoint
from .speed.measure import SpeedGrid, parse_test
from .summary import markdown

DEFAULT_INT4 = "int4 b128"  # what ``--precision int4`` alone gives
RUN_PROMPT, RUN_TOKENS = 128, 64  # of the run whose memory is measured


def export_variants(
    checkpoint: str | Path, variants: dict[str, list[str]], root: Path
) -> tuple[dict[str, ModelFolder], dict[str, int]]:
    """A folder per variant under ``root``, and the peak resident bytes of each export."""
    folders, peaks = {}, {}
    for i, (name, options) in enumerate(variants.items()):
        peaks[name] = export_variant(checkpoint, root / f"{i}", options)
        folders[name] = ModelFolder.open(root / f"{i}")
    return folders, peaks


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


def _memory(
    folders: dict[str, ModelFolder], peaks: dict[str, int], threads: int
) -> dict[str, Any] | None:
    if DEFAULT_INT4 not in folders:
        return None
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
        "checkpoint",
        type=model_name,
        nargs="*",
        default=[],
        help=f"as `pocketlm export` takes it, or {real_weights.NAME}",
    )
    source.add_argument("--shape", choices=SHAPES, help="random weights of a well-known shape")
    parser.add_argument("--text", type=given_path, nargs="+", default=[], help="quality as well")
    parser.add_argument("--window", type=int, help="tokens at once; the context, 1024 at most")
    parser.add_argument("--limit", type=int, help="at most this many tokens of each text")
    parser.add_argument("--split", type=utf8, help="what stands between the documents of a text")
    parser.add_argument("--tokenizer", type=given_path, help="folder with tokenizer.json")
    parser.add_argument(
        "--threads", type=thread_count, default=default_threads(), help="CPU threads"
    )
    parser.add_argument(
        "--rounds",
        type=at_least(0),
        default=BenchPlan.repetitions,
        help="after one of warm-up (%(default)s); 0: quality alone",
    )
    parser.add_argument(
        "--variant",
        type=variant,
        action="append",
        metavar="NAME[=OPTIONS]",
        help="only fp32 and this one, by name or by options of pocketlm export; repeatable",
    )
    parser.add_argument("--json", type=results_file, help="also write the results to this file")
    arguments = parser.parse_args()
    refuse_alone(parser, arguments, "text", ("window", "limit", "split"))
    if not arguments.text and not arguments.rounds:
        parser.error("found --rounds 0 without --text, which leaves nothing to measure; give one")
    if arguments.shape and arguments.tokenizer:
        parser.error("found --tokenizer and --shape, which has its own; leave one out")
    if arguments.text:
        check_files(arguments.text, arguments.split)
    return arguments


def main() -> None:
    """Makes the folders, measures, prints the tables, and the scorecard of a shape that has one."""
    with errors_in_a_line("precisions"):
        arguments = parse()
        kept: list[dict[str, Any]] = []
        for checkpoint in arguments.checkpoint or [None]:
            results = measure(arguments, checkpoint)
            show(results, checkpoint if len(arguments.checkpoint) > 1 else None)
            print_scorecard(arguments.shape, results)
            kept.append(to_keep(results))
            write_results(kept if len(arguments.checkpoint) > 1 else kept[0], arguments.json)


def show(results: dict[str, Any], name: str | None) -> None:
    """The tables, under the name of one of several checkpoints."""
    if name is not None:
        print(f"## {name}\n")
    if results["speed"]:
        print(markdown(results), "\n")
    if results["quality"]:
        print(quality_table(results), "\n", flush=True)


def measure(arguments: argparse.Namespace, checkpoint: str | None) -> dict[str, Any]:
    """What the options ask for of a checkpoint, or of the shape, with what the scorecard needs."""
    threads = arguments.threads
    with scratch_folder() as root:
        source: str | Path = checkpoint or ""
        more = ["--tokenizer", str(arguments.tokenizer)] if arguments.tokenizer else []
        if checkpoint is None:
            source = write_checkpoint(root / "source", arguments.shape)
            more += ["--calibrate", "none"]  # random weights have nothing to say
        elif checkpoint == real_weights.NAME:
            source = real_weights.real_checkpoint()
        chosen = chosen_variants(arguments.variant)
        variants = {name: [*options, *more] for name, options in chosen.items()}
        folders, peaks = export_variants(source, variants, root)
        tests = SpeedGrid(threads=[threads]).tests(folders[REFERENCE].shape.context_length)
        if arguments.shape:
            tests = [replace(parse_test(name), threads=threads) for name in TESTS]
        plan = BenchPlan(
            folders,
            tests,
            arguments.rounds,
            texts=arguments.text,
            window=arguments.window,
            limit=arguments.limit,
            split=arguments.split,
        )
        about = {"checkpoint": checkpoint, "shape": arguments.shape}
        if not arguments.rounds:
            return quality_alone(plan, threads) | about
        return (
            run_bench(plan, show_progress)
            | about
            | {
                "import_seconds": import_seconds(),
                "memory": _memory(folders, peaks, threads),
            }
        )


def quality_alone(plan: BenchPlan, threads: int) -> dict[str, Any]:
    """As the results of a bench, without whatever has to do with time."""
    return {
        "format": FORMAT,
        "verdict": [],
        "reference": next(iter(plan.folders)),
        "circumstances": describe_machine(threads),
        "models": [describe_folder(name, folder) for name, folder in plan.folders.items()],
        "speed": [],
        "quality": measure_quality(
            plan.folders,
            plan.texts,
            window=plan.window,
            limit=plan.limit,
            split=plan.split,
            threads=threads,
            on_progress=lambda share, value: show_progress({"phase": "quality", "what": value}),
        ),
        "failed": [],
        "interrupted": None,
    }


if __name__ == "__main__":
    main()
