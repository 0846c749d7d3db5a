"""Speed and memory of the precisions on one shape, as ratios measured in one run.

    python -m pocketlm.benchmarks.speed                       # GPT-2 124M shape, random weights
    python -m pocketlm.benchmarks.speed --shape llama-1b      # needs 12 GB of disk
    python -m pocketlm.benchmarks.speed --checkpoint gpt2/    # a checkpoint of your own

Every model runs in a process of its own; rounds go over all models in turn, and a figure is the
median over rounds, a ratio the median of the rounds' ratios. Random weights are enough for this:
the kernels' work does not depend on the values.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ..export.folder import ModelFolder
from .machine import describe_machine
from .scorecard import SCORECARDS, ratio
from .shapes import SHAPES, write_checkpoint

PROMPT = 128  # tokens of context for decode, and of the prefill measurement
DEPTHS = (32, 512)
TOKENS = 32  # decoded per measurement

VARIANTS: dict[str, list[str]] = {
    "fp32": ["--precision", "fp32"],
    "int8": ["--precision", "int8"],
    "int8-weight": ["--precision", "int8-weight"],
    "int4": ["--precision", "int4"],
    "int4 b128, int4 head": ["--precision", "int4", "--block-size", "128", "--head", "int4"],
}

# The program that ``pocketlm export`` runs, with its peak memory at the end.
EXPORT = """
import sys
from pocketlm.export.memory import peak_rss_bytes
from pocketlm.cli import main
try:
    main()
finally:
    print("peak", peak_rss_bytes(), file=sys.stderr)
"""


class Remote:
    """A worker process and its model."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.folder = ModelFolder.open(folder)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pocketlm.benchmarks.worker", str(folder), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.opened = self._answer()

    def ask(self, **request: Any) -> dict[str, float]:
        """Sends a request and waits for its answer."""
        assert self._process.stdin is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        answer: dict[str, float] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()  # closes both pipes, and waits


def export_variant(checkpoint: Path, out: Path, options: list[str]) -> int:
    """Exports through the command line in a process of its own; its peak resident bytes."""
    command = ["pocketlm", "export", str(checkpoint), str(out), "--quiet", *options]
    done = subprocess.run(
        [sys.executable, "-c", EXPORT, *command[1:]], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr}")
    return int(done.stderr.split("peak")[-1])


def run_memory(folder: Path, threads: int) -> dict[str, Any]:
    """Peak memory of ``pocketlm run`` as a person starts it, with 128 + 64 tokens."""
    command = ["run", str(folder), "x" * PROMPT, "--max-tokens", "64", "--ignore-eos", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "pocketlm", *command, "--threads", str(threads)],
        capture_output=True,
        text=True,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def import_seconds() -> float:
    """Median of five fresh ``import pocketlm``, the interpreter's own start left out."""
    program = (
        "import time; t = time.perf_counter(); import pocketlm; print(time.perf_counter() - t)"
    )
    runs = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        for _ in range(5)
    ]
    return statistics.median(float(run.stdout) for run in runs)


def measure(folders: dict[str, Path], threads: int, rounds: int) -> dict[str, Any]:
    """Interleaved rounds over all models: seconds per figure, model and round."""
    remotes = {name: Remote(folder, threads) for name, folder in folders.items()}
    samples: dict[str, dict[str, list[float]]] = {name: {} for name in folders}
    loads = [os.getloadavg()[0]]
    for number in range(rounds + 1):
        for name, remote in remotes.items():
            answers = {
                "prefill": remote.ask(do="prefill", tokens=PROMPT),
                "decode": remote.ask(do="decode", depth=PROMPT, tokens=TOKENS),
                **{
                    f"decode@{depth}": remote.ask(do="decode", depth=depth, tokens=TOKENS)
                    for depth in DEPTHS
                },
            }
            if number == 0:
                continue  # warm-up: memory is touched, caches are filled
            for figure, answer in answers.items():
                samples[name].setdefault(figure, []).append(answer["seconds"])
            samples[name].setdefault("outside_kernel", []).append(
                answers["decode"]["outside_kernel"]
            )
    loads.append(os.getloadavg()[0])
    opened = {name: remote.opened for name, remote in remotes.items()}
    for remote in remotes.values():
        remote.close()
    return {"samples": samples, "opened": opened, "load_before_after": loads}


def table(results: dict[str, Any]) -> str:
    """Markdown: rates per precision, medians over the rounds with the fastest round beside."""
    lines = [
        "| precision | weights MB | load s | prefill tok/s | decode tok/s | best | decode ratio |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    baseline = results["samples"]["fp32"]["decode"]
    for name, figures in results["samples"].items():
        decode = figures["decode"]
        lines.append(
            f"| {name} | {results['bytes'][name] / 1e6:.0f} | "
            f"{results['opened'][name]['load_seconds']:.2f} | "
            f"{PROMPT / statistics.median(figures['prefill']):.0f} | "
            f"{1 / statistics.median(decode):.0f} | {1 / min(decode):.0f} | "
            f"{ratio(decode, baseline):.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Makes the folders, measures, prints the table, and the scorecard of a shape that has one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="gpt2-124m")
    parser.add_argument("--checkpoint", type=Path, help="measure this checkpoint instead")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("POCKETLM_CACHE")) as temporary:
        root = Path(temporary)
        checkpoint = arguments.checkpoint or write_checkpoint(root / "source", arguments.shape)
        folders = {name: root / str(i) for i, name in enumerate(VARIANTS)}
        peaks = {
            name: export_variant(checkpoint, folders[name], VARIANTS[name]) for name in VARIANTS
        }
        sizes = {name: ModelFolder.open(folders[name]).weights_bytes for name in VARIANTS}
        run = run_memory(folders["int4"], arguments.threads)
        results = measure(folders, arguments.threads, arguments.rounds)
        shape = ModelFolder.open(folders["int4"]).shape
    results |= {
        "machine": describe_machine(arguments.threads),
        "bytes": sizes,
        "rounds": arguments.rounds,
        "import_seconds": import_seconds(),
        "memory": {
            "run": run["peak_rss_bytes"],
            "weights": sizes["int4"],
            "kv": 256 * shape.kv_bytes_per_token,
            "export": peaks["int4"],
            "exports": peaks,
        },
    }
    print(json.dumps(results["machine"]))
    print(f"load average before and after: {results['load_before_after']}\n")
    print(table(results), "\n")
    scorecard = None if arguments.checkpoint else SCORECARDS.get(arguments.shape)
    for what, figure, relation, bar in scorecard(results) if scorecard else []:
        met = figure >= bar if relation == "≥" else figure <= bar
        print(f"{'met   ' if met else 'MISSED'}  {what}: {figure:.3g} ({relation} {bar:g})")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
