"""The plan, the progress bar and the report that export and quantize show, all on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from pocketlm.export.folder import IN_PLACE, ModelFolder
from pocketlm.export.manifest import PrecisionEntry, TensorReport
from pocketlm.export.observer import SILENT, Observer
from pocketlm.export.plan import ExportPlan, forecast_text
from pocketlm.export.quantities import ByteProgress, duration_text, size_text
from pocketlm.quantize.precisions import FULL, PREFILL

T = TypeVar("T")

PIPED_WIDTH = 1000  # a line of a table in a file is never broken


@contextmanager
def shown(quiet: bool) -> Iterator[Observer]:
    """Draws the plan and the progress of an export, and its download; nothing when ``quiet``."""
    if quiet:
        yield SILENT
        return
    console = Console(stderr=True)
    bar = _bytes_bar(console)
    task = bar.add_task("writing", total=None)

    def show(plan: ExportPlan) -> None:
        _print_line(
            console,
            f"{plan.architecture}, {plan.num_parameters:,} parameters, to {plan.precision}: "
            f"read {size_text(plan.bytes_to_read)}, write {size_text(plan.bytes_to_write)} "
            f"of {size_text(plan.bytes_free)} free to {plan.out}",
        )
        if plan.quantized:
            _print_line(console, lost_before(plan.quantized))
        if console.is_terminal:
            bar.start()

    def progress(written: int, total: int) -> None:
        bar.update(task, completed=written, total=total)

    try:
        yield Observer(
            plan=show,
            progress=progress,
            message=lambda text: _print_line(console, text),
            download=lambda name, total: _downloading(console, name, total),
        )
    finally:
        if bar.live.is_started:
            bar.stop()


@contextmanager
def _downloading(console: Console, name: str, total: int) -> Iterator[ByteProgress]:
    """The progress callback that draws the download of ``name`` on a terminal.

    What was there before counts as done, not as fast.
    """
    if not console.is_terminal:
        yield lambda done, total: None
        return
    _print_line(console, f"downloading {name}, {size_text(total)}")
    with _bytes_bar(console) as bar:
        task: TaskID | None = None

        def progress(done: int, total: int) -> None:
            nonlocal task
            if task is None:
                task = bar.add_task("downloading", total=total, completed=done)
            bar.update(task, completed=done)

        yield progress


def _print_line(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)


def _bytes_bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


def print_plan(plan: ExportPlan) -> None:
    """What a dry run found out, on stdout."""
    enough = "" if plan.bytes_free >= plan.bytes_needed else ": NOT ENOUGH"
    rate = plan.bytes_to_read / plan.seconds if plan.seconds else 0.0
    lines = {
        "architecture": plan.architecture,
        "parameters": f"{plan.num_parameters:,} in {plan.num_tensors:,} tensors",
        "precision": plan.precision,
        **({"source": lost_before(plan.quantized)} if plan.quantized else {}),
        "read": size_text(plan.bytes_to_read),
        "write": size_text(plan.bytes_to_write),
        "disk": f"needs {size_text(plan.bytes_needed)}, {size_text(plan.bytes_free)} are free"
        + enough,
        "peak memory": f"about {size_text(plan.peak_memory_bytes)}",
        "time": f"about {duration_text(plan.seconds or 0, 2)} on {plan.threads} threads, "
        f"reading {size_text(rate)}/s, if the disk keeps up",
    }
    if plan.prefill_bytes:
        lines["prefill"] = prefill_text(plan.prefill_bytes, plan.prefill_memory_bytes)
    if plan.adapters:
        lines["adapters"] = ", ".join(plan.adapters)
    if plan.calibration is not None:
        left_out = (
            "left out unless you say --calibrate dream: " if plan.calibration.left_out else ""
        )
        lines["calibration"] = left_out + forecast_text(plan.calibration)
    click.echo(f"plan for {plan.out}; nothing was written")
    for name, text in lines.items():
        click.echo(f"  {name:<13} {text}")
    for note in plan.notes:
        click.echo(f"  {note}")


def prefill_text(disk_bytes: int, memory_bytes: int) -> str:
    """What a second set of weights is, and costs."""
    return (
        f"{PREFILL} weights beside them, +{size_text(disk_bytes)} on disk, "
        f"+{size_text(memory_bytes)} of memory once a long prompt or many texts at once ask for "
        "them"
    )


def lost_before(quantized: Sequence[str]) -> str:
    """That weights were quantized before they were exported."""
    *others, last = quantized
    named = f"{', '.join(others)} and {last}" if others else last
    return f"weights were {named}: what was lost stays lost"


def graph_maker(folder: ModelFolder) -> str:
    """Who made the graph, and what it does with the KV cache."""
    graph = folder.graph()
    if graph.traced is None:
        return "declared by pocketlm, cache in place"
    if graph.cache.layout == IN_PLACE:
        return f"traced by {graph.traced.made_by}; attention rewritten, cache in place"
    reason = graph.traced.not_rewritten or "as it was traced"
    return f"traced by {graph.traced.made_by}; cache grows, attention not rewritten: {reason}"


def print_report(folder: ModelFolder) -> None:
    """What was written, and for a quantized folder what each group of tensors lost."""
    console = wide_console(stderr=True)
    precision = folder.manifest.precision
    tables = precision_tables(precision)
    if report := precision.report:
        console.print(next(tables))
        console.print(
            f"{100 * report.share_quantized:.1f} % of the parameters quantized: "
            f"{size_text(report.bytes_before)} -> {size_text(report.bytes_after)}",
            highlight=False,
        )
    if precision.prefill:
        console.print(next(tables))
        cost = prefill_text(folder.prefill_bytes, folder.prefill_memory_bytes)
        _print_line(console, f"prefill: {cost}")
    if folder.graph().traced:
        click.echo(f"graph: {graph_maker(folder)}", err=True)
    _print_line(console, f"wrote {folder.path}")


def wide_console(*, stderr: bool = False) -> Console:
    """Prints to a stream; what is not a terminal gets lines as long as they are."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(highlight=False, stderr=stderr, width=None if stream.isatty() else PIPED_WIDTH)


def precision_tables(precision: PrecisionEntry) -> Iterator[Table]:
    """One of what was quantized, and one of the second set of weights where there is one."""
    if report := precision.report:
        yield precision_table(report.tensors, report.skipped)
    if second := precision.prefill:
        yield precision_table(second.tensors, {}, "tensors, for prompts")


def precision_table(
    tensors: Sequence[TensorReport], skipped: Mapping[str, str], title: str = "tensors"
) -> Table:
    """One row per group of tensors that differ only in their layer's number, or its reason."""
    table = Table(box=None, pad_edge=False)
    table.add_column(title)
    for title in ("format", "bits/weight", "relative error", "bytes"):
        table.add_column(title, justify="left" if title == "format" else "right")
    formats = [(tensor.name, tensor.format, tensor) for tensor in tensors]
    for (group, number_format), alike in _groups(formats).items():
        low = min(tensor.relative_error for tensor in alike)
        high = max(tensor.relative_error for tensor in alike)
        size = sum(tensor.bytes_after for tensor in alike)
        weights = sum(tensor.bytes_before for tensor in alike) / 4
        reasons = dict.fromkeys(tensor.reason for tensor in alike if tensor.reason)
        table.add_row(
            group,
            f"{number_format} ({'; '.join(reasons)})" if reasons else number_format,
            f"{8 * size / weights:.2f}",
            f"{low:.4f}" if low == high else f"{low:.4f} to {high:.4f}",
            size_text(size),
        )
    left = [(name, reason, name) for name, reason in skipped.items()]
    for (group, reason), names in _groups(left).items():
        if len(names) > 1:
            reason = f"{len(names)} {'layers' if group.count('*') == 1 else 'tensors'}: {reason}"
        else:
            group = names[0]
        table.add_row(group, FULL, "32.00", reason, "")
    return table


def _groups(tensors: Iterable[tuple[str, str, T]]) -> dict[tuple[str, str], list[T]]:
    """The last of each (name, text, what it is) by (name with the layer's number as *, text)."""
    groups: dict[tuple[str, str], list[T]] = {}
    for name, text, tensor in tensors:
        group = ".".join("*" if part.isdigit() else part for part in name.split("."))
        groups.setdefault((group, text), []).append(tensor)
    return groups
