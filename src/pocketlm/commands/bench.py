"""``pocketlm bench``: models side by side, speed and what it costs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from pocketlm.benchmarks import summary, tables
from pocketlm.benchmarks.bench import BenchPlan, OnEvent, run_bench
from pocketlm.benchmarks.quality.documents import check_files
from pocketlm.benchmarks.speed.measure import GENERATION, PROMPT, SpeedGrid
from pocketlm.benchmarks.tables import Table
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
from pocketlm.export.errors import PocketLMError, ResourceError
from pocketlm.export.interrupts import INTERRUPTED
from pocketlm.export.output_file import OutputFile
from pocketlm.export.threads import default_threads, most_threads
from pocketlm.runtime.chunks import CHUNK_SIZE
from pocketlm.runtime.kv import AUTO, KV_CACHES
from pocketlm.runtime.prefill_choice import PREFILLS


def parse_counts(text: str, least: int, most: int, step: int = 1) -> list[int]:
    """The whole numbers of "128,512". Raises click.BadParameter for anything else."""
    parts = text.split(",")
    # ASCII: isdecimal and int take digits of other scripts as well.
    if all(part.isascii() and part.isdecimal() and len(part) < 12 for part in parts):
        counts = [int(part) for part in parts]
        if all(least <= count <= most and count % step == 0 for count in counts):
            return counts
    kind = "whole" if step == 1 else "even"
    raise click.BadParameter(
        f"found {text!r:.60}, expected {kind} numbers from {least} to {most:,}, separated by commas"
    )


def _counts(
    *names: str, least: int, help: str, most: int = 10**9, step: int = 1
) -> Callable[..., Any]:
    """An option for a list of numbers, which may also be given several times."""

    def parse(
        context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
    ) -> list[int] | None:
        return [count for text in values for count in parse_counts(text, least, most, step)] or None

    return click.option(*names, multiple=True, callback=parse, metavar="N[,N...]", help=help)


def _names(option: str, names: Sequence[str], help: str) -> Callable[..., Any]:
    """An option for some of ``names``, likewise."""

    def parse(
        context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
    ) -> list[str]:
        asked = [name for text in values for name in text.split(",")]
        for name in asked:
            if name not in names:
                raise click.BadParameter(
                    f"found {name!r:.60}, expected {', '.join(names)}, separated by commas"
                )
        return asked

    return click.option(option, multiple=True, callback=parse, metavar="NAME[,NAME...]", help=help)


def _parse_pairs(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> list[tuple[int, int]]:
    lists = [parse_counts(text, 1, 10**9) for text in values]
    for text, counts in zip(values, lists, strict=True):
        if len(counts) != 2:
            raise click.BadParameter(f"found {text!r:.60}, expected two numbers, as in 512,128")
    return [(prompt, generation) for prompt, generation in lists]


@click.command("bench", cls=ListCommand)
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@_counts(
    *("-p", "--n-prompt"),
    least=0,
    help=f"Prompt tokens of the prefill tests, 0 for none. Default: {PROMPT}.",
)
@_counts(
    *("-n", "--n-gen"),
    least=0,
    help=f"Tokens of the generation tests, 0 for none. Default: {GENERATION}.",
)
@click.option(
    "-pg",
    multiple=True,
    callback=_parse_pairs,
    metavar="N,N",
    help="Also test a prompt and a generation one after the other.",
)
@_counts(
    *("-d", "--n-depth"),
    least=0,
    help="Tokens that are in the cache before a test begins. Default: 0.",
)
@_counts(
    *("-b", "--batch-size"),
    least=2,
    step=2,  # as the chunks of a prefill
    help=f"Tokens of a prompt per forward pass, an even number. Default: {CHUNK_SIZE}.",
)
@_counts(
    *("-t", "--threads"),
    least=1,
    most=most_threads(),
    help="CPU threads. Default: the cores at hand.",
)
@_names(
    "--kv",
    KV_CACHES,
    help="What the KV cache holds. Default: auto, as `pocketlm run`.",
)
@_names(
    "--prefill",
    PREFILLS,
    help="Which weights compute prompts, see `pocketlm run`. Default: auto, as there.",
)
@click.option(
    *("-r", "--repetitions"),
    type=click.IntRange(1, 10_000),
    default=BenchPlan.repetitions,
    show_default=True,
    help="Rounds over all tests and models, after one to warm up.",
)
@click.option(
    "--text",
    "texts",
    multiple=True,
    type=Place(),
    metavar="FILE...",
    help="Compare the models on these UTF-8 texts as well, as `pocketlm eval` does.",
)
@window_options
@click.option(
    "--html",
    type=Place(),
    metavar="FILE",
    help="Also write a report with charts: one file that needs no network.",
)
@output_option
@MODEL_OPTIONS["tokenizer"]
@HUB_OPTIONS["offline"]
@HUB_OPTIONS["keep_download"]
@debug_option
@click.pass_context
def command(
    context: click.Context,
    /,
    models: tuple[str, ...],
    n_prompt: list[int] | None,
    n_gen: list[int] | None,
    pg: list[tuple[int, int]],
    n_depth: list[int] | None,
    batch_size: list[int] | None,
    threads: list[int] | None,
    kv: list[str],
    prefill: list[str],
    repetitions: int,
    texts: tuple[Path, ...],
    window: int | None,
    stride: int | None,
    limit: int | None,
    split: str | None,
    html: Path | None,
    output: str,
    debug: bool,
    **options: Any,
) -> None:
    """Measure models side by side: speed, memory, load time and quality.

    MODEL is a model folder, a checkpoint, or a name on the hub; without one it is the demo. The
    first is the reference that ratios are against. Tests have the names of llama-bench: pp512 is
    the prefill of 512 tokens, tg128 the generation of 128, "@ d512" after 512 others. Numbers may
    be lists (-p 128,512), and every combination is tested. Each model runs in a process of its
    own, and the runs of all are interleaved. With a text, each is also compared with the first.
    Ctrl-C prints what is done so far.

    \b
    Examples:
      pocketlm bench out-fp32/ out-int8/ out-int4/ --text held-out.txt --html report.html
      pocketlm bench out-fp32/ out-int4/ -p 128,512 -n 64 -d 0,512 -t 1,2 --output csv
      pocketlm bench out-int4/ -p 0 -n 0 -pg 512,128 -r 5
    """
    grid = SpeedGrid(
        prompts=n_prompt,
        generations=n_gen,
        pairs=pg,
        depths=n_depth or (0,),
        batches=batch_size or (CHUNK_SIZE,),
        threads=threads or (default_threads(),),
    )
    refuse_alone(context, "texts", ("window", "stride", "limit", "split"))
    report = _check_files(texts, split, html)
    models_or_demo: tuple[str | None, ...] = models or (None,)
    opened = named(models_or_demo, open_folders(models_or_demo, [options] * len(models_or_demo)))
    folders, variants = choose_variants(opened, kv or (AUTO,), prefill or (AUTO,))
    shortest = min(folder.shape.context_length for folder in folders.values())
    tests = grid.tests(shortest)
    if batch_size and not any(test.prompt for test in tests):
        raise click.UsageError(
            "found --batch-size and no test with a prompt, expected both; leave it out, or give -p "
            "or -pg"
        )
    plan = BenchPlan(
        folders,
        tests,
        repetitions,
        variants=variants,
        texts=texts,
        window=window,
        stride=stride,
        limit=limit,
        split=split,
    )
    try:
        with _progress() as on_event:
            results = run_bench(plan, on_event)
    except KeyboardInterrupt:
        click.echo("interrupted before a round was complete: nothing to show", err=True)
        raise
    PRINTERS[output](results)
    if report is not None:
        from pocketlm.benchmarks.report import write_report

        write_report(results, report)
    if results["interrupted"]:
        context.exit(INTERRUPTED)
    if results["failed"]:
        first = results["failed"][0]
        starved = first["exit_code"] == ResourceError.exit_code
        raise (ResourceError if starved else PocketLMError)(first["error"])


def _check_files(texts: Sequence[Path], split: str | None, html: Path | None) -> OutputFile | None:
    """Before a model is opened, which may mean to download it, and before the hour of work."""
    if texts:
        check_files(texts, split)
    if html is None:
        return None
    from pocketlm.benchmarks.report import open_report

    return open_report(html)


# What is under way -------------------------------------------------------------------------------


@contextmanager
def _progress() -> Iterator[OnEvent]:
    """Shows the events of a bench, between two measurements only."""
    with progress_bar("starting", auto_refresh=False) as show:

        def on_event(event: dict[str, Any]) -> None:
            if event["phase"] == "bandwidth":
                show(None, "reading memory")
            else:
                show(event["done"] / event["total"], event["what"])

        yield on_event


# What is printed ---------------------------------------------------------------------------------


def _print_summary(results: dict[str, Any]) -> None:
    """Tables as wide as the terminal allows, and warnings above and below everything."""
    console = wide_console()
    shout(console, tables.warnings(results))
    for part in summary.sections(results):
        if isinstance(part, Table):
            console.print(drawn(part, console.width))
        else:
            print_sentence(console, part)
        console.print()
    shout(console, tables.warnings(results))


def _print_text(form: Callable[[dict[str, Any]], str]) -> Callable[[dict[str, Any]], None]:
    """Prints a form for programs; what is to be said loudly goes to stderr as well."""

    def print_form(results: dict[str, Any]) -> None:
        click.echo(form(results))
        shout(Console(stderr=True, highlight=False), tables.warnings(results))

    return print_form


PRINTERS: dict[str, Callable[[dict[str, Any]], None]] = {
    "table": _print_summary,
    "md": _print_text(summary.markdown),
    "csv": _print_text(tables.to_csv),
    "json": _print_text(lambda results: json.dumps(results, indent=1)),
    "jsonl": _print_text(tables.to_jsonl),
}
