"""Memory: what there is, what is free, and what model fits into it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pocketlm.doctor.finding import OK, WARNING, WRONG, Finding
from pocketlm.export.memory import GROUP, SMALLER, free_bytes, group_memory, machine_bytes
from pocketlm.export.quantities import size_text

# What Python, ONNX Runtime and the tokenizer take beside a model, and what a model takes over its
# weights: benchmarks/scorecard.py has the measured bars.
BESIDE, OVER = 150_000_000, 1.25
LEAST, LITTLE = 200_000_000, 1_000_000_000  # bytes free: for the demo, for a model worth reading


def check_memory(
    total: int | None = None, free: int | None = None, group: Path = GROUP
) -> Iterator[Finding]:
    """``total`` and ``free`` are this machine's unless given."""
    total = machine_bytes() if total is None else total
    free = _free() if free is None else free
    limit = group_memory(group)
    capped = limit is not None and (total is None or limit[0] < total)
    figures = {
        "total_bytes": total,
        "free_bytes": free,
        "limit_bytes": limit[0] if limit and capped else None,
    }
    there = "" if total is None else f" of {size_text(total)}"
    if limit is not None and capped:
        there += f" (its container may take {size_text(limit[0])})"
    room = max(0.0, (free - BESIDE) / OVER)
    found = f"{size_text(free)} free{there}"
    if free < LEAST:
        yield Finding("memory", WRONG, f"{found}, too little for any model", SMALLER, figures)
        return
    found += f": room for weights of about {size_text(room)}"
    if free < LITTLE:
        yield Finding("memory", WARNING, found, SMALLER, figures)
    else:
        yield Finding("memory", OK, found, None, figures)


def _free() -> int:
    """Beyond Linux psutil is what knows; raises MissingExtraError."""
    found = free_bytes()
    if found is None:
        from pocketlm.benchmarks.machine import available_bytes

        return available_bytes()
    return found
