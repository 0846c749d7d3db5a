"""``pocketlm eval``: how good a model is, and how far it parts from another."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from pocketlm.benchmarks import figures, quality_figures
from pocketlm.benchmarks.figures import Figure, figure_table
from pocketlm.benchmarks.machine import describe_machine
from pocketlm.benchmarks.quality import OnProgress, measure_quality
from pocketlm.benchmarks.text_windows import check_text_file
from pocketlm.commands.bench import PIPED_WIDTH, drawn, unique_names
from pocketlm.commands.lists import ListCommand
from pocketlm.commands.options import HUB_OPTIONS, MODEL_OPTIONS, debug_option, open_folder
from pocketlm.export.folder import ModelFolder
from pocketlm.export.threads import default_threads


@click.command("eval", cls=ListCommand)
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option(
    "--against",
    metavar="REF",
    help="The model to compare with, whatever MODEL may be. Default: the first of several.",
)
@click.option(
    "--text",
    "texts",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE...",
    help="Perplexity, and with a REF divergence, on these UTF-8 texts.",
)
@click.option(
    "--window",
    type=int,
    metavar="TOKENS",
    help="Tokens a model sees at once. Default: its context length, at most 1024.",
)
@click.option(
    "--stride",
    type=int,
    metavar="TOKENS",
    help="Tokens from one window to the next: fewer give every token more context, and take "
    "longer. Default: half a window.",
)
@click.option("--limit", type=int, metavar="TOKENS", help="Use the first tokens of each text only.")
@MODEL_OPTIONS["threads"]
@click.option(
    *("-o", "--output"),
    type=click.Choice(["table", "md", "csv", "json", "jsonl"]),
    default="table",
    show_default=True,
    help="What is printed to stdout.",
)
@MODEL_OPTIONS["precision"]
@MODEL_OPTIONS["tokenizer"]
@HUB_OPTIONS["offline"]
@HUB_OPTIONS["keep_download"]
@debug_option
def command(
    models: tuple[str, ...],
    against: str | None,
    texts: tuple[Path, ...],
    window: int | None,
    stride: int | None,
    limit: int | None,
    threads: int | None,
    output: str,
    debug: bool,
    **options: Any,
) -> None:
    """Measure how good a model is, and how far it parts from another.

    MODEL is a model folder, a checkpoint, or a name on the hub. With a text: perplexity per token,
    byte and word over a strided sliding window, and against REF the KL divergence, how often both
    hold the same token for the likeliest, and how far the true token's probability moves, all with
    standard errors. Models that are compared run side by side, and must share a tokenizer.

    \b
    Examples:
      pocketlm eval out-int4/ --against out-fp32/ --text held-out.txt
      pocketlm eval out-int8/ out-int4/ --against out-fp32/ --text *.txt --output md
      pocketlm eval out-int8/ --text held-out.txt --window 512 --stride 256 --output json
    """
    if not texts:
        raise click.UsageError("found nothing to evaluate on, expected a text; add --text FILE")
    for text in texts:
        check_text_file(text)  # before a model is opened, which may mean to download it
    folders = _open_all(models, against, options)
    threads = default_threads() if threads is None else threads
    results: dict[str, Any] = {
        "circumstances": {
            **describe_machine(threads),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
    }
    if texts:
        with progress() as on_progress:
            results["quality"] = measure_quality(
                folders,
                texts,
                window=window,
                stride=stride,
                limit=limit,
                threads=threads,
                on_progress=on_progress,
            )
    _print(results, output)


def _open_all(
    models: Sequence[str], against: str | None, options: dict[str, Any]
) -> dict[str, ModelFolder]:
    """Every model's folder, complete and unchanged, by unique names; the reference first.

    ``--precision`` is of MODEL: a reference that is a checkpoint comes in full precision.
    """
    names = [*([] if against is None else [against]), *models]
    opened = []
    for i, name in enumerate(names):
        own = {"precision": None} if i == 0 and against is not None else {}
        opened.append(open_folder(name, **{**options, **own}))
    for folder in opened:
        folder.verify()
    return dict(zip(unique_names(names, opened), opened, strict=True))


@contextmanager
def progress() -> Iterator[OnProgress]:
    """Draws how far it is, and the value so far, on stderr if that is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda share, value: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task("reading the models", total=1.0)
        yield lambda share, value: bar.update(task, completed=share, description=value)


# What is printed ---------------------------------------------------------------------------------


def _sections(results: dict[str, Any]) -> Iterator[tuple[list[str], list[Figure], list[str]]]:
    """For each thing that was measured: sentences above, figures, sentences below."""
    if quality := results.get("quality"):
        above = [
            quality_figures.self_check_sentence(quality),
            quality_figures.text_sentence(quality),
        ]
        below = quality_figures.reference_sentence(quality)
        yield above, list(quality_figures.quality_figures(quality)), [below] if below else []


def _print(results: dict[str, Any], output: str) -> None:
    if output == "json":
        click.echo(json.dumps(results, indent=1))
    elif output == "table":
        _print_tables(results)
    elif output == "md":
        parts = [
            "\n\n".join([*above, figure_table(found).markdown(), *below])
            for above, found, below in _sections(results)
        ]
        click.echo("\n\n".join(parts))
    else:
        form: Callable[[Sequence[Figure]], str] = {
            "csv": figures.to_csv,
            "jsonl": figures.to_jsonl,
        }[output]
        click.echo(form([figure for _, found, _ in _sections(results) for figure in found]))


def _print_tables(results: dict[str, Any]) -> None:
    terminal = sys.stdout.isatty()
    console = Console(highlight=False, width=None if terminal else PIPED_WIDTH)
    for above, found, below in _sections(results):
        for text in above:
            console.print(Text(text), soft_wrap=not terminal)
        console.print()
        console.print(drawn(figure_table(found)))
        console.print()
        for text in below:
            console.print(Text(text), soft_wrap=not terminal)
