"""``pocketlm batch``: prompts go in line by line, answers come out in the same order."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import click

from pocketlm.commands.batch_answers import Answers, Terms
from pocketlm.commands.batch_record import Identity, open_output
from pocketlm.commands.jsonl import JsonLines, Line, open_lines
from pocketlm.commands.options import (
    Place,
    context_options,
    debug_option,
    form_options,
    model_options,
    open_model,
    sampling_options,
    system_option,
    unescape,
)
from pocketlm.commands.terminal import say
from pocketlm.export.errors import RequestError
from pocketlm.export.quantities import duration_text
from pocketlm.runtime.limits import MOST_LOGPROBS
from pocketlm.runtime.row_rule import MOST_ROWS

Show = Callable[[float | None, str], None]


@click.command("batch")
@click.argument("model")
@click.argument("prompts", type=Place())
@click.option(
    *("-o", "--output"),
    type=Place(),
    default="-",
    show_default=True,
    metavar="FILE",
    help="Where the answers go, a line for each; where some of them are there, the rest is added.",
)
@click.option("--chat", is_flag=True, help="Answer each prompt, by the model's chat template.")
@system_option
@click.option(
    "--rows",
    type=click.IntRange(1, MOST_ROWS),
    default=MOST_ROWS,
    show_default=True,
    help="Most prompts under way at once. It changes no answer.",
)
@click.option(
    "--skip-bad",
    is_flag=True,
    help='Answer lines that cannot be with {"error": ...}, and count them at the end.',
)
@click.option(
    "--logprobs",
    type=click.IntRange(0, MOST_LOGPROBS),
    metavar="N",
    help="Add the logprob of each token, and those of the N likeliest in its place.",
)
@context_options
@sampling_options
@form_options
@model_options
@click.option("--quiet", is_flag=True, help="Print neither progress nor what it came to.")
@debug_option
def command(
    model: str,
    prompts: Path,
    output: Path,
    chat: bool,
    system: str | None,
    rows: int,
    skip_bad: bool,
    quiet: bool,
    debug: bool,
    **options: Any,
) -> int:
    """Answer a file of prompts, many at once, and go on where it ended.

    MODEL is a model folder, a checkpoint, a name on the hub (org/name) or demo. PROMPTS, or stdin
    for "-", has a line of JSON for each prompt: a string, an object with "prompt" or "messages" and
    with an "id" and options of its own (max_tokens, temperature, seed, stop, ...), or a request in
    OpenAI's batch form, which is answered in that form. The options here are for lines that have
    none of their own. Each answer is a line, in the order of the prompts, written as soon as it is
    its turn. A batch that was ended goes on when it is run again, and comes to the same file; where
    the model, an option or an answered line is another one, it is refused. A line without a seed
    gets one, made from --seed (0 unless given) and its number.

    \b
    Examples:
      pocketlm batch gpt2-int8/ prompts.jsonl -o answers.jsonl
      pocketlm batch llama-3.2-1b-instruct/ prompts.jsonl -o answers.jsonl --chat --max-tokens 100
    """
    if system is not None and not chat:
        raise click.UsageError("found --system without --chat, expected both; add --chat")
    options["stop"] = [unescape(text) for text in options["stop"]]
    terms = Terms({}, options.pop("seed") or 0, chat, system)
    with open_lines(prompts) as lines:
        total = _check(lines, skip_bad, terms.asked_by)
        if not total:
            raise RequestError(f"{lines.name}: found no prompt, expected a line or more; add one")
        with open_output(output, lines, prompts) as out:
            opened = open_model(model, options)
            opened.request([0], **options)  # RequestError for what no line could have
            terms = replace(terms, options=options)
            identity = Identity(opened, terms)
            done = out.resume(lines, identity)
            with _shown(quiet, output) as show:

                def judge(line: Line) -> None:
                    show(None, f"checking line {line.number:,}")
                    terms.asked_by(line).request(opened, options)

                def tell(answers: Answers) -> None:
                    count, share = done + answers.num_lines, answers.num_lines / (total - done)
                    show(share, f"{count:,} of {total:,} lines, {answers.rate:.0f} tokens/s")

                _check(lines, skip_bad, judge, done)
                answers = Answers(opened, terms, identity.digest, rows, skip_bad, tell)
                for data in answers.to(islice(lines, done, None)):
                    out.write(data)
    if not quiet:
        say(_summary(answers, done))
    return 0 if skip_bad else answers.exit_code


def _check(lines: JsonLines, skip_bad: bool, judge: Callable[[Line], object], done: int = 0) -> int:
    """Asks ``judge`` of all lines but the first ``done``, before anything runs; how many there are.

    Raises RequestError, with its number, for a line that is bad, unless it is skipped.
    """
    count = done
    for line in islice(lines, done, None):
        count += 1
        try:
            judge(line)
        except RequestError as error:
            if not skip_bad:
                raise RequestError(
                    f"{lines.place(line)}: {error}, or go on without such lines: --skip-bad"
                ) from error
    return count


@contextmanager
def _shown(quiet: bool, output: Path) -> Iterator[Show]:
    """Draws how far it is on stderr, if that is a terminal and the answers go elsewhere."""
    to_terminal = output == Path("-") and sys.stdout.isatty()
    if quiet or to_terminal or not sys.stderr.isatty():
        yield lambda share, text: None
        return
    from pocketlm.commands.measuring import progress_bar  # what draws is not always needed

    with progress_bar("reading") as show:
        yield show


def _summary(answers: Answers, done: int) -> str:
    before = f" ({done:,} there before)" if done else ""
    lines = "line" if answers.num_lines == 1 else "lines"
    errors = "error" if answers.num_errors == 1 else "errors"
    return (
        f"pocketlm: answered {answers.num_lines:,} {lines}{before}, {answers.num_tokens:,} new "
        f"tokens in {duration_text(answers.seconds)}, {answers.rate:.0f} tokens/s, "
        f"{answers.num_errors:,} {errors}"
    )
