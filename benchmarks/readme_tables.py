"""Puts the tables of ``benchmarks/results/*.json`` into README.md, between their markers.

    python -m pocketlm.benchmarks.readme_tables README.md benchmarks/results

A table stands between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``; NAME is that of its file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import quality, speed


def quality_table(results: dict[str, Any]) -> str:
    """The quality of every precision, and over which texts."""
    tokens = next(iter(results["results"].values()))["tokens"]
    table = quality.table(results["results"], results["bytes"])
    return f"{table}\n\n{tokens:,} tokens, {_versions(results['machine'])}."


def speed_table(results: dict[str, Any]) -> str:
    """Rates of every precision, and on which machine."""
    machine = results["machine"]
    features = ", ".join(machine["features"]) or "no vector extensions"
    before, after = results["load_before_after"]
    return (
        f"{speed.table(results)}\n\n{machine['cpu']} ({features}), {machine['cores']} cores, "
        f"{machine['threads']} threads, context {speed.PROMPT}, {results['rounds']} interleaved "
        f"rounds, medians; load average {before:.1f} before and {after:.1f} after; "
        f"{_versions(machine)}."
    )


def _versions(machine: dict[str, Any]) -> str:
    return f"ONNX Runtime {machine['onnxruntime']}, Python {machine['python']}"


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "quality-demo": quality_table,
    "speed-gpt2-124m": speed_table,
    "speed-llama-1b": speed_table,
}


def fill(text: str, folder: Path) -> str:
    """``text`` with every table replaced by that of its results file."""
    for name, table in TABLES.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        head, _, rest = text.partition(begin)
        _, found, tail = rest.partition(end)
        if not found:
            raise SystemExit(f"found no {begin} … {end}, expected both in the document")
        results = json.loads((folder / f"{name}.json").read_text())
        text = f"{head}{begin}\n{table(results)}\n{end}{tail}"
    return text


def main() -> None:
    """Rewrites the document in place."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("document", type=Path)
    parser.add_argument("results", type=Path)
    arguments = parser.parse_args()
    document: Path = arguments.document
    document.write_text(fill(document.read_text("utf-8"), arguments.results), "utf-8")


if __name__ == "__main__":
    main()
