"""The results of a bench as tables, in Markdown, CSV and JSON lines.

A ``Table`` is a title, columns and rows of text; the same ones are drawn on a terminal and written
to the README. CSV and JSON lines have a flat row per test and model with plain numbers instead.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..export.quantities import megabytes, size_text
from .machine import load_sentence, machine_sentence
from .quality.unread import unread_sentence

NOTHING = "-"


@dataclass(frozen=True)
class Table:
    """Text in rows; the first ``labels`` columns are words, the others numbers."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    labels: int = 1
    # Columns that a reader can do without where there is no room, the first the soonest.
    optional: Sequence[str] = ()

    def fitting(self, width: int, gap: int) -> Table:
        """Without as many of the optional columns as it takes to fit ``width`` characters."""
        table = self
        for column in self.optional:
            if table.width(gap) <= width:
                break
            table = table.without(column)
        return table

    def width(self, gap: int) -> int:
        """Characters of a line with ``gap`` between the columns."""
        columns = zip(self.columns, *self.rows, strict=True)
        return sum(max(map(len, column)) for column in columns) + gap * (len(self.columns) - 1)

    def without(self, column: str) -> Table:
        """All but one column."""
        place = list(self.columns).index(column)
        columns, *rows = ([*row[:place], *row[place + 1 :]] for row in (self.columns, *self.rows))
        optional = [name for name in self.optional if name != column]
        return replace(self, columns=columns, rows=rows, optional=optional)

    def filled(self) -> Table:
        """Without columns in which there is nothing."""
        table = self
        for column, *cells in zip(self.columns, *self.rows, strict=True):
            if all(cell == NOTHING for cell in cells):
                table = table.without(column)
        return table

    def markdown(self) -> str:
        """A Markdown table."""
        rules = ["---"] * self.labels + ["--:"] * (len(self.columns) - self.labels)
        lines = [self.columns, rules, *self.rows]
        return "\n".join(f"| {' | '.join(map(_escape, line))} |" for line in lines)


def _escape(cell: str) -> str:
    return cell.replace("|", "\\|")


def model_table(results: dict[str, Any]) -> Table:
    """Size, seconds to load and to the first token, and memory of every model."""
    columns = ("model", "MB", "bits/weight", "load s", "first token s", "peak RSS MB")
    rows = [
        (
            model["name"],
            megabytes(model["disk_bytes"]),
            f"{model['bits_per_weight']:.2f}",
            f"{model['load']['median']:.3f}",
            f"{model['first_token']['median']:.3f}",
            megabytes(model["peak_rss_bytes"]),
        )
        for model in results["models"]
    ]
    return Table(columns, rows, optional=("bits/weight", "load s", "MB", "peak RSS MB"))


def speed_table(results: dict[str, Any]) -> Table:
    """A row per test and model; columns that are the same everywhere or empty are left out."""
    speed = results["speed"]
    varied = [name for name in ("threads", "batch") if len({row[name] for row in speed}) > 1]
    columns = ["test", "model", *varied, "tokens/s", "tokens/s interval"]
    columns += ["ratio", "ratio interval", "roofline", "J/token"]
    rows = []
    for row in speed:
        rate, ratio, joules = row["tokens_per_second"], row["ratio"], row["joules_per_token"]
        several = len(row["samples"]) > 1
        cells = [row["test"], row["model"], *(str(row[name]) for name in varied)]
        cells.append(rate_text(rate["median"]))
        cells.append(_interval(rate, rate_text) if several else NOTHING)
        cells.append(_times(ratio["median"]) if ratio else NOTHING)
        cells.append(_interval(ratio, _times) if ratio and several else NOTHING)
        cells.append(NOTHING if row["roofline"] is None else f"{100 * row['roofline']:.0f} %")
        cells.append(f"{joules['median']:.3f}" if joules else NOTHING)
        rows.append(cells)
    optional = ["tokens/s interval", "J/token", "roofline", "ratio interval"]
    return Table(columns, rows, labels=2, optional=optional).filled()


def describe_circumstances(results: dict[str, Any]) -> str:
    """What a reader of the tables has to know, in some lines of prose."""
    about = results["circumstances"]
    bandwidth = ", ".join(
        f"{size_text(rate)}/s with {threads} thread{'s' * (threads != '1')}"
        for threads, rate in about["read_bandwidth"].items()
    )
    return (
        f"{machine_sentence(about)}. Memory reads {bandwidth}; {_rounds(results)}"
        f"{load_sentence(about['load_average'])}. First token: from the start of a process, files "
        "in the page cache. Roofline: bytes that tokens read, of those that memory delivers; above "
        "100 % the weights stay in the processor's cache."
    )


def _rounds(results: dict[str, Any]) -> str:
    """How often everything was measured, and what the intervals are worth."""
    fewest = min(results["speed"], key=lambda row: len(row["samples"]))
    rounds = len(fewest["samples"])
    if rounds == 1:
        return "one round, so no intervals"
    confidence = 100 * fewest["tokens_per_second"]["confidence"]
    return f"medians of {rounds} interleaved rounds, intervals of {confidence:.0f} % confidence"


def warnings(results: dict[str, Any]) -> list[str]:
    """What is to be said loudly, before and after everything else."""
    found = []
    if busy := results["circumstances"]["busy"]:
        found.append(busy)
    if interrupted := results["interrupted"]:
        rounds = f"{interrupted['rounds']} of {interrupted['of']} rounds"
        lost = ", and quality is missing" if interrupted.get("phase") == "quality" else ""
        found.append(f"interrupted after {rounds}{lost}")
    if unread := unread_sentence(results["quality"]):
        found.append(unread)
    return found + [f"not measured: {failed['error']}" for failed in results["failed"]]


def flat_rows(results: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A row of plain values per test and model, with what is known of the model in each."""
    models = {model["name"]: model for model in results["models"]}
    quality = {m["model"]: m for m in (results["quality"] or {"models": []})["models"]}
    for row in results["speed"]:
        model = models[row["model"]]
        yield {
            **{name: row[name] for name in ("test", "model", "threads", "batch")},
            **{name: model[name] for name in ("precision", "kv", "prefill", "architecture")},
            **{name: model[name] for name in ("parameters", "disk_bytes", "weights_bytes")},
            "bits_per_weight": model["bits_per_weight"],
            "load_seconds": model["load"]["median"],
            "first_token_seconds": model["first_token"]["median"],
            "peak_rss_bytes": model["peak_rss_bytes"],
            **_flat("tokens_per_second", row["tokens_per_second"]),
            "spread": row["spread"],
            **_flat("ratio", row["ratio"]),
            "bytes_per_token": row["bytes_per_token"],
            "roofline": row["roofline"],
            "joules_per_token": row["joules_per_token"] and row["joules_per_token"]["median"],
            **_flat_quality(quality.get(row["model"])),
            "repetitions": len(row["samples"]),
            **_flat_circumstances(results["circumstances"], row["threads"]),
        }


def _flat(name: str, value: dict[str, float] | None) -> dict[str, float | None]:
    value = value or {}
    return {
        name: value.get("median"),
        f"{name}_low": value.get("low"),
        f"{name}_high": value.get("high"),
    }


def _flat_quality(model: dict[str, Any] | None) -> dict[str, float | None]:
    against = (model or {}).get("against") or {}
    return {
        "perplexity": model["perplexity"]["token"]["value"] if model else None,
        "kl": against["kl"]["mean"]["value"] if against else None,
        "top1_agreement": against["top1_agreement"]["value"] if against else None,
    }


def _flat_circumstances(about: dict[str, Any], threads: int) -> dict[str, Any]:
    copied = ("cores", "memory_bytes", "system", "python", "onnxruntime", "numpy", "pocketlm")
    return {
        "cpu": about["cpu"],
        "features": " ".join(about["features"]),
        **{name: about[name] for name in copied},
        "read_bandwidth": about["read_bandwidth"].get(str(threads)),
        "command": about["command"],
        "started": about["started"],
        "load_before": about["load_average"]["before"],
        "load_after": about["load_average"]["after"],
        "other_cores_busy": about["other_cores_busy"],
        "busy": about["busy"],
    }


def to_csv(results: dict[str, Any]) -> str:
    """The flat rows under a line of names; unknown is empty."""
    rows = list(flat_rows(results))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().rstrip("\n")


def to_jsonl(results: dict[str, Any]) -> str:
    """The flat rows, a JSON object each."""
    return "\n".join(json.dumps(row) for row in flat_rows(results))


def rate_text(rate: float) -> str:
    """Tokens/s in three digits at least: 8.31, 61.2, 232."""
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.1f}" if rate >= 10 else f"{rate:.2f}"


def _times(ratio: float) -> str:
    return f"{ratio:.2f}×"


def _interval(value: dict[str, float], form: Any) -> str:
    return f"{form(value['low'])} to {form(value['high'])}"
