"""``pocketlm eval``: how good a model is, and how far it diverges from another."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from pocketlm.benchmarks import figures
from pocketlm.benchmarks.figures import Figure, figure_table
from pocketlm.benchmarks.machine import describe_machine, machine_sentence
from pocketlm.benchmarks.quality import figures as quality_figures
from pocketlm.benchmarks.quality.documents import check_files
from pocketlm.benchmarks.quality.measure import measure_quality
from pocketlm.benchmarks.quality.unread import unread_sentence
from pocketlm.benchmarks.recitation import figures as recitation_figures
from pocketlm.benchmarks.recitation.measure import (
    RecitationOptions,
    check_book,
    measure_recitation,
    read_books,
)
from pocketlm.benchmarks.tasks import figures as task_figures
from pocketlm.benchmarks.tasks.files import read_task
from pocketlm.benchmarks.tasks.measure import check_tasks, measure_tasks
from pocketlm.commands.lists import ListCommand
from pocketlm.commands.measuring import (
    choose_variants,
    drawn,
    named,
    output_option,
    print_sentence,
    progress_bar,
    refuse_alone,
    shout,
)
from pocketlm.commands.options import (
    HUB_OPTIONS,
    MODEL_OPTIONS,
    Place,
    debug_option,
    open_folders,
    window_options,
)
from pocketlm.commands.progress import wide_console
from pocketlm.export.folder import ModelFolder
from pocketlm.export.threads import check_threads
from pocketlm.models.reference import OnDisk, find_reference
from pocketlm.quantize.precisions import FULL


@click.command("eval", cls=ListCommand)
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option(
    "--against",
    metavar="REF",
    help="The model to compare with; a checkpoint comes in fp32. Default: the first MODEL of "
    "several.",
)
@click.option(
    "--text",
    "texts",
    multiple=True,
    type=Place(),
    metavar="FILE...",
    help="Perplexity, and with a REF divergence, on these UTF-8 texts.",
)
@window_options
@click.option(
    "--tasks",
    multiple=True,
    type=Place(),
    metavar="FILE...",
    help="Accuracy in answering the questions of these JSONL files: LAMBADA, HellaSwag, PIQA, or "
    "any with query, choices and gold.",
)
@click.option(
    "--items",
    type=click.IntRange(1),
    metavar="N",
    help="Ask the first questions of each file only.",
)
@click.option(
    "--recite",
    multiple=True,
    type=Place(),
    metavar="FILE...",
    help="How much of these UTF-8 texts a model knows by heart.",
)
@click.option(
    "--passages",
    type=int,
    default=RecitationOptions.passages,
    show_default=True,
    help="Passages of each text to recite.",
)
@click.option(
    "--prompt-tokens",
    type=int,
    default=RecitationOptions.prompt_tokens,
    show_default=True,
    help="Tokens of a passage that are given.",
)
@click.option(
    "--continuation-tokens",
    type=int,
    default=RecitationOptions.continuation_tokens,
    show_default=True,
    help="Tokens of a passage that are to be recited.",
)
@MODEL_OPTIONS["threads"]
@MODEL_OPTIONS["kv"]
@MODEL_OPTIONS["prefill"]
@output_option
@MODEL_OPTIONS["precision"]
@MODEL_OPTIONS["tokenizer"]
@HUB_OPTIONS["offline"]
@HUB_OPTIONS["keep_download"]
@debug_option
@click.pass_context
def command(
    context: click.Context,
    /,
    models: tuple[str, ...],
    against: str | None,
    texts: tuple[Path, ...],
    window: int | None,
    stride: int | None,
    limit: int | None,
    split: str | None,
    tasks: tuple[Path, ...],
    items: int | None,
    recite: tuple[Path, ...],
    passages: int,
    prompt_tokens: int,
    continuation_tokens: int,
    threads: int | None,
    kv: str,
    prefill: str,
    output: str,
    debug: bool,
    **options: Any,
) -> None:
    """Measure how good a model is, and how far it diverges from another.

    MODEL is a model folder, a checkpoint, or a name on the hub. With a text: perplexity per token,
    byte and word over a strided sliding window, and against REF the KL divergence, how often both
    hold the same token for the likeliest, and how far the true token's probability moves, all with
    standard errors. A text is one document unless it is split, or a .jsonl with one a line; each
    document begins anew, and a short one is a window of its own length. Models that are compared
    run side by side, and must share a tokenizer. With tasks: accuracy as lm-evaluation-harness
    scores it. With texts to recite: how far the greedy continuation of their passages is that of
    the text.

    \b
    Examples:
      pocketlm eval out-int4/ --against out-fp32/ --text held-out.txt
      pocketlm eval out-int8/ out-int4/ --against out-fp32/ --text *.txt --output md
      pocketlm eval out-int8/ --text stories.txt --split '<|endoftext|>'
      pocketlm eval out-int8/ --text held-out.txt --window 512 --stride 256 --output json
      pocketlm eval out-int8/ --tasks lambada.jsonl hellaswag.jsonl piqa.jsonl
      pocketlm eval out-int8/ --against out-fp32/ --recite novel.txt another.txt
    """
    if not (texts or tasks or recite):
        raise click.UsageError(
            "found nothing to evaluate on, expected a text or tasks; add --text FILE, --tasks FILE "
            "or --recite FILE"
        )
    refuse_alone(context, "texts", ("window", "stride", "limit", "split"))
    refuse_alone(context, "tasks", ("items",))
    refuse_alone(context, "recite", ("passages", "prompt_tokens", "continuation_tokens"))
    threads = check_threads(threads)
    # What can be wrong with a file is found before a model is opened, which may mean a download.
    if texts:
        check_files(texts, split)
    for book in recite:
        check_book(book)
    task_files = [read_task(path, items) for path in tasks]
    recitation = RecitationOptions(
        passages=passages, prompt_tokens=prompt_tokens, continuation_tokens=continuation_tokens
    )
    folders = _open_all(models, against, options)
    reference = next(iter(folders)) if against is not None else None
    folders, variants = choose_variants(folders, [kv], [prefill], but=reference)
    check_tasks(folders, task_files)
    books = read_books(folders, recite, recitation) if recite else []
    results: dict[str, Any] = {
        "circumstances": {
            **describe_machine(threads),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
    }
    with progress_bar("reading the models") as on_progress:
        run: dict[str, Any] = {"threads": threads, "variants": variants, "on_progress": on_progress}
        if texts:
            results["quality"] = measure_quality(
                folders, texts, window=window, stride=stride, limit=limit, split=split, **run
            )
        if tasks:
            results["tasks"] = measure_tasks(folders, task_files, **run)
        if recite:
            results["recitation"] = measure_recitation(folders, books, **run)
    _print(results, output)


def _open_all(
    models: Sequence[str], against: str | None, options: dict[str, Any]
) -> dict[str, ModelFolder]:
    """Every model's folder, complete and unchanged, by unique names; the reference first.

    ``--precision`` is of MODEL: a REF that is not a model folder yet comes in full precision.
    """
    names, given = list(models), [options] * len(models)
    if against is not None:
        names.insert(0, against)
        reference = find_reference(against)
        made = isinstance(reference, OnDisk) and reference.is_made
        given.insert(0, options | {"precision": None if made else FULL})
    return named(names, open_folders(names, given))


# What is printed ---------------------------------------------------------------------------------


def _sections(results: dict[str, Any]) -> Iterator[tuple[list[str], list[Figure], list[str]]]:
    """For each thing that was measured: sentences above, figures, sentences below."""
    if quality := results.get("quality"):
        above = [
            quality_figures.self_check_sentence(quality),
            quality_figures.text_sentence(quality),
        ]
        below = quality_figures.reference_sentence(quality)
        yield above, list(quality_figures.quality_figures(quality)), [below]
    if tasks := results.get("tasks"):
        sentences = list(task_figures.task_sentences(tasks))
        below = task_figures.measure_sentence(tasks)
        yield sentences, list(task_figures.task_figures(tasks)), [below]
    if books := results.get("recitation"):
        sentences = list(recitation_figures.passage_sentences(books))
        found = list(recitation_figures.recitation_figures(books))
        yield sentences, found, [recitation_figures.MEASURE_SENTENCE]


def _warnings(results: dict[str, Any]) -> list[str]:
    found = [unread_sentence(results.get("quality"))]
    # Models with one tokenizer leave out the same of a file, which is said once.
    for entry in (*results.get("tasks", ()), *results.get("recitation", ())):
        found.append(unread_sentence(entry, Path(entry["file"]).name))
    return list(dict.fromkeys(text for text in found if text is not None))


def _print(results: dict[str, Any], output: str) -> None:
    if output == "table":
        _print_tables(results)
        return
    if output == "json":
        click.echo(json.dumps(results, indent=1))
    elif output == "md":
        parts = [f"**{text}**" for text in _warnings(results)]
        parts += [
            "\n\n".join([*above, figure_table(found).markdown(), *below])
            for above, found, below in _sections(results)
        ]
        click.echo("\n\n".join([*parts, _circumstances(results)]))
    else:
        form: Callable[[Sequence[Figure]], str] = {
            "csv": figures.to_csv,
            "jsonl": figures.to_jsonl,
        }[output]
        click.echo(form([figure for _, found, _ in _sections(results) for figure in found]))
    shout(Console(stderr=True, highlight=False), _warnings(results))


def _print_tables(results: dict[str, Any]) -> None:
    console = wide_console()
    shout(console, _warnings(results))
    for above, found, below in _sections(results):
        for text in above:
            print_sentence(console, text)
        console.print()
        console.print(drawn(figure_table(found)))
        console.print()
        for text in below:
            print_sentence(console, text)
        console.print()
    print_sentence(console, _circumstances(results))


def _circumstances(results: dict[str, Any]) -> str:
    return f"{machine_sentence(results['circumstances'])}."
