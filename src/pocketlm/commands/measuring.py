"""What the verbs that measure have in common: models by name, progress, tables on a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
from click.core import ParameterSource
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table as RichTable
from rich.text import Text

from pocketlm.benchmarks.session_variant import PLAIN, Variant
from pocketlm.benchmarks.tables import Table
from pocketlm.commands.progress import PIPED_WIDTH
from pocketlm.export.folder import ModelFolder
from pocketlm.runtime.kv import INT8, choose_kv
from pocketlm.runtime.prefill_choice import INT8 as INT8_PREFILL
from pocketlm.runtime.prefill_choice import choose_prefill

GAP = 2  # between the columns of a table
# Takes the share that is done, None for no change, and a text.
ShowProgress = Callable[[float | None, str], None]

output_option = click.option(
    *("-o", "--output"),
    type=click.Choice(["table", "md", "csv", "json", "jsonl"]),
    default="table",
    show_default=True,
    help="What is printed to stdout.",
)


def refuse_alone(context: click.Context, needed: str, names: Sequence[str]) -> None:
    """Raises UsageError where one of the options ``names`` is given, but not ``needed``.

    All by the names of their parameters.
    """
    spelled = {parameter.name: max(parameter.opts, key=len) for parameter in context.command.params}
    given = [
        spelled[name]
        for name in names
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]
    if given and not context.params[needed]:
        found, them = " and ".join(given), "it" if len(given) == 1 else "them"
        raise click.UsageError(
            f"found {found} without {spelled[needed]}, expected both; add {spelled[needed]} FILE, "
            f"or leave {them} out"
        )


def named(models: Sequence[str | None], folders: Sequence[ModelFolder]) -> dict[str, ModelFolder]:
    """The folders of ``models``, complete and unchanged, by unique names."""
    for folder in folders:
        folder.verify()
    return dict(zip(unique_names(models, folders), folders, strict=True))


def choose_variants(
    folders: dict[str, ModelFolder],
    kv: Sequence[str],
    prefill: Sequence[str],
    *,
    but: str | None = None,
) -> tuple[dict[str, ModelFolder], dict[str, Variant]]:
    """Each model once with every KV cache, and every prefill, asked for; and how each is opened.

    What differs from the first graph alone is in the name. The model ``but`` is left with that.
    """
    found: dict[str, ModelFolder] = {}
    variants: dict[str, Variant] = {}
    for name, folder in folders.items():
        chosen = [PLAIN] if name == but else _variants(folder, kv, prefill)
        for variant in chosen:
            found[f"{name}{_told(variant)}"] = folder
            variants[f"{name}{_told(variant)}"] = variant
    return found, variants


def _variants(folder: ModelFolder, kv: Sequence[str], prefill: Sequence[str]) -> Sequence[Variant]:
    """Each once, the plainest first."""
    caches = {choose_kv(folder, asked) for asked in kv}
    chosen = {
        Variant(cache, choose_prefill(folder, asked, kv=cache).name)
        for cache in caches
        for asked in prefill
    }
    return sorted(chosen, key=lambda one: (one.kv == INT8, one.prefill == INT8_PREFILL))


def _told(variant: Variant) -> str:
    second = ", int8 prefill" if variant.prefill == INT8_PREFILL else ""
    return f"{', int8 KV' if variant.kv == INT8 else ''}{second}"


def unique_names(models: Sequence[str | None], folders: Sequence[ModelFolder]) -> list[str]:
    """Short names: a folder's own, else what was asked for and the precision it came in.

    Equal ones get the folder above them in front, and a number if they are the same still.
    """
    names = [_short_name(model, folder) for model, folder in zip(models, folders, strict=True)]
    names = [
        f"{folder.path.resolve().parent.name}/{name}" if names.count(name) > 1 else name
        for name, folder in zip(names, folders, strict=True)
    ]
    return [
        f"{name} ({names[: i + 1].count(name)})" if names[:i].count(name) else name
        for i, name in enumerate(names)
    ]


def _short_name(model: str | None, folder: ModelFolder) -> str:
    asked = "demo" if model is None else Path(os.path.abspath(model.partition("@")[0])).name
    if model is not None and Path(model).is_dir() and folder.path.samefile(model):
        return asked
    return f"{asked}-{folder.manifest.precision.name}"


@contextmanager
def progress_bar(start: str, *, auto_refresh: bool = True) -> Iterator[ShowProgress]:
    """Draws how far it is and what is under way on stderr, if that is a terminal.

    What is yielded takes the share that is done, None for no change, and a text. Without
    ``auto_refresh`` it draws only when called, and takes no time from a measurement.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda share, text: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, auto_refresh=auto_refresh
    ) as bar:
        task = bar.add_task(start, total=1.0)
        yield lambda share, text: bar.update(
            task, completed=share, description=text, refresh=not auto_refresh
        )


def print_sentence(console: Console, text: str) -> None:
    """A paragraph, broken at words on a terminal only."""
    console.print(Text(text), soft_wrap=not sys.stdout.isatty())


def shout(console: Console, warnings: Sequence[str]) -> None:
    """What figures do not count without, each a line."""
    for text in warnings:
        console.print(Text(f"WARNING: {text}", style="bold red"), soft_wrap=True)


def drawn(table: Table, width: int = PIPED_WIDTH) -> RichTable:
    """A table for a terminal of that width, without the columns that it has no room for."""
    table = table.fitting(width, GAP)
    drawn = RichTable(box=None, pad_edge=False, padding=(0, GAP, 0, 0))
    for i, column in enumerate(table.columns):
        drawn.add_column(column, justify="left" if i < table.labels else "right")
    for row in table.rows:
        drawn.add_row(*map(Text, row))
    return drawn
