"""Several texts after one prompt: drawn one by one, or the likeliest that a beam search finds."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from pocketlm.commands.result import alternatives, completion
from pocketlm.runtime.context_policy import ERROR
from pocketlm.streams import printable

if TYPE_CHECKING:
    from pocketlm.commands.writer import Writer

Command = Callable[..., Any]
LOOPS = ("lookup", "draft", "reproducible", "prompt_cache")  # of one text
# What a beam search, which follows the model alone, cannot heed: option -> keyword argument.
NOT_OF_BEAMS = {
    "--json-schema": "json_schema",
    "--regex": "regex",
    "--choice": "choices",
    "--grammar": "grammar",
    "--ban": "banned_strings",
    "--ban-token": "banned_tokens",
    "--logit-bias": "logit_bias",
    "--stop": "stop",
    "--max-seconds": "max_seconds",
    "--logprobs": "logprobs",
}


def several_options(command: Command) -> Command:
    """Adds what asks for several texts."""
    for option in (
        click.option(
            "--length-penalty",
            type=float,
            default=1.0,
            show_default=True,
            help="Of --beams: above 1 favours long texts, 0 the likeliest.",
        ),
        click.option(
            "--beams",
            type=int,
            metavar="N",
            help="Follow the N likeliest beginnings; prints the best text, with --n the best "
            "few. No token is drawn: temperature, filters and penalties have no effect.",
        ),
        click.option(
            "--n",
            type=int,
            metavar="N",
            help="Write N texts, each under a line with its number; the prompt is computed once. "
            "Their seeds count from --seed up.",
        ),
    ):
        command = option(command)
    return command


def tell_several(
    writer: Writer,
    prompt: Any,
    n: int | None,
    beams: int | None,
    length_penalty: float,
    options: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Generates and prints them; raises what the writer raises, UsageError for more than beams."""
    for name in LOOPS:
        if options.get(name):
            option = "--" + name.replace("_", "-")
            raise click.UsageError(
                f"found {option} with --n or --beams, expected one text; leave one of them out"
            )
    told, texts, lines = [], [], []
    if beams is None:
        left = {name: value for name, value in options.items() if name not in LOOPS}
        for result in writer.completions(prompt, 1 if n is None else n, **left):
            told.append(completion(result))
            texts.append(result.text)
            lines.append(alternatives(writer, result))
    else:
        if n is not None and n > beams:
            raise click.UsageError(f"found --n {n} of --beams {beams}, expected at most {beams}")
        if options["context"] != ERROR:
            raise click.UsageError(
                "found --context with --beams, expected one of them: beams end where it is full"
            )
        for option, name in NOT_OF_BEAMS.items():
            if options.get(name) not in (None, [], (), {}):
                raise click.UsageError(
                    f"found {option} with --beams, which cannot heed it; leave one of them out"
                )
        limits = {name: options[name] for name in ("max_tokens", "ignore_eos")}
        found = writer.beams(prompt, beams, length_penalty=length_penalty, **limits)
        for beam in found[: n or 1]:
            told.append(asdict(beam))
            texts.append(beam.text)
            lines.append([])
    if as_json:
        click.echo(json.dumps({"completions": told}))  # in ASCII, whatever stdout is encoded in
        return
    for number, (text, below) in enumerate(zip(texts, lines, strict=True), 1):
        if n is not None:
            click.echo(f"--- {number} of {len(texts)}")
        click.echo(printable(text) if sys.stdout.isatty() else text)
        for line in below:
            click.echo(line)
