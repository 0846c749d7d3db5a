"""What a speed measurement has to reach: for each shape that has bars, the figures and the bars.

A figure is a ratio, a share, megabytes or seconds, from the results that ``speed`` writes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

Line = tuple[str, float, str, float]  # what, figure, "≥" or "≤", bar


def ratio(fast: list[float], slow: list[float]) -> float:
    """How many times faster: the median of the rounds' ratios."""
    return statistics.median(b / a for a, b in zip(fast, slow, strict=True))


def gpt2_124m(results: dict[str, Any]) -> list[Line]:
    """GPT-2 124M: every precision against fp32, and what a run and an export take."""
    memory = results["memory"]
    decode = _figures(results, "decode")
    lines: list[Line] = [
        ("int4 decode / fp32", ratio(decode["int4"], decode["fp32"]), "≥", 4.2),
        (
            "int4 b128, int4 head decode / fp32",
            ratio(decode["int4 b128, int4 head"], decode["fp32"]),
            "≥",
            5.5,
        ),
        ("int8 decode / fp32", ratio(decode["int8"], decode["fp32"]), "≥", 2.4),
        _prefill(results, "int8", "fp32", 1.8),
    ]
    short, long = _figures(results, "decode@32"), _figures(results, "decode@512")
    lines += [
        (f"{name}: decode rate at 512 / at 32", ratio(long[name], short[name]), "≥", 0.55)
        for name in decode
    ]
    share = statistics.median(results["samples"]["int4"]["outside_kernel"])
    return [
        *lines,
        ("Python's share of an int4 step", share, "≤", 0.10),
        (
            "run int4: peak RSS above weights and KV, MB",
            (memory["run"] - memory["weights"] - memory["kv"]) / 1e6,
            "≤",
            150,
        ),
        ("export int4: peak RSS, MB", memory["export"] / 1e6, "≤", 700),
        ("import pocketlm, s", results["import_seconds"], "≤", 0.35),
    ]


def llama_1b(results: dict[str, Any]) -> list[Line]:
    """Llama 3.2 1B: int4 for decode and memory, int8 for prefill."""
    memory = results["memory"]
    decode = _figures(results, "decode")
    return [
        ("int4 decode / int8-weight", ratio(decode["int4"], decode["int8-weight"]), "≥", 1.4),
        _prefill(results, "int8", "int4", 4.0),  # of a processor with AMX
        (
            "run int4: peak RSS less 100 MB / (weights + KV)",
            (memory["run"] - 100e6) / (memory["weights"] + memory["kv"]),
            "≤",
            1.25,
        ),
    ]


SCORECARDS: dict[str, Callable[[dict[str, Any]], list[Line]]] = {
    "gpt2-124m": gpt2_124m,
    "llama-1b": llama_1b,
}


def _figures(results: dict[str, Any], figure: str) -> dict[str, list[float]]:
    return {name: samples[figure] for name, samples in results["samples"].items()}


def _prefill(results: dict[str, Any], fast: str, slow: str, bar: float) -> Line:
    prefill = _figures(results, "prefill")
    return f"{fast} prefill / {slow}", ratio(prefill[fast], prefill[slow]), "≥", bar
