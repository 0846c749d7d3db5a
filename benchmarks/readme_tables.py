"""Puts the tables of ``benchmarks/results/*.json`` into a document, between their markers.

    python -m pocketlm.benchmarks.readme_tables README.md benchmarks/results

A table stands between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``. NAME is a kind of table, a
dash, and the name of a file of results: ``speed-llama-1b`` is the speed of ``llama-1b.json``, which
``precisions`` wrote; what ``peers`` wrote is of the kind "peers".
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..export.errors import PocketLMError
from ..export.output_file import OutputFile
from ..export.quantities import megabytes
from .peers import standing
from .peers.table import markdown
from .programs import given_path
from .quality_table import quality_table
from .tables import Table, describe_circumstances, rate_text, warnings

MARKERS = re.compile(r"<!-- begin ((\w+)-([\w.-]+)) -->\n(.*?)<!-- end \1 -->", re.DOTALL)
PREFILL, DECODE = "pp512", "tg128"


def speed_table(results: dict[str, Any]) -> str:
    """A line per precision: what it takes, its rates, and on which machine."""
    columns = ["precision", "MB", "bits/weight", "load s", "first token s", "peak RSS MB"]
    columns += [f"{PREFILL} tok/s", f"{DECODE} tok/s", "ratio", "roofline"]
    rows = []
    for model in results["models"]:
        prefill, decode = (_row(results, model["name"], test) for test in (PREFILL, DECODE))
        rows.append(
            [
                model["name"],
                megabytes(model["disk_bytes"]),
                f"{model['bits_per_weight']:.2f}",
                f"{model['load']['median']:.2f}",
                f"{model['first_token']['median']:.2f}",
                megabytes(model["peak_rss_bytes"]),
                rate_text(prefill["tokens_per_second"]["median"]),
                rate_text(decode["tokens_per_second"]["median"]),
                _ratio(decode["ratio"]),
                f"{100 * decode['roofline']:.0f} %",
            ]
        )
    return _with_caption(results, Table(columns, rows), describe_circumstances(results))


def peers_table(results: list[dict[str, Any]]) -> str:
    """Other runtimes beside ours, one table per checkpoint, and where ours stands."""
    tables = [*map(markdown, results), standing.markdown(results)]
    return "\n\n".join(filter(None, tables))


KINDS: dict[str, Callable[[Any], str]] = {
    "speed": speed_table,
    "quality": quality_table,
    "peers": peers_table,
}


def _row(results: dict[str, Any], model: str, test: str) -> dict[str, Any]:
    found: dict[str, Any] = next(
        row for row in results["speed"] if (row["model"], row["test"]) == (model, test)
    )
    return found


def _ratio(ratio: dict[str, float] | None) -> str:
    if ratio is None:
        return "1"
    return f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


def _with_caption(results: dict[str, Any], table: Table, caption: str) -> str:
    loud = [f"**{text}**" for text in warnings(results)]
    return "\n\n".join([*loud, table.markdown(), caption])


def fill(text: str, folder: Path) -> str:
    """``text`` with every table replaced by that of its results file."""

    def table(match: re.Match[str]) -> str:
        marker, kind, name, _ = match.groups()
        if kind not in KINDS:
            raise SystemExit(f"found the table {marker}, expected one of {', '.join(KINDS)}")
        results = json.loads((folder / f"{name}.json").read_text("utf-8"))
        return f"<!-- begin {marker} -->\n{KINDS[kind](results)}\n<!-- end {marker} -->"

    filled, count = MARKERS.subn(table, text)
    if count != text.count("<!-- begin "):
        raise SystemExit("found a begin without its end, expected <!-- begin NAME --> … <!-- end")
    return filled


def main() -> None:
    """Rewrites the document in place."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("document", type=given_path)
    parser.add_argument("results", type=given_path)
    arguments = parser.parse_args()
    document: Path = arguments.document
    try:
        written = OutputFile(document, lambda data: True)  # it is named to be rewritten
        written.write(fill(document.read_text("utf-8"), arguments.results).encode())
    except PocketLMError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
