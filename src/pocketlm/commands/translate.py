"""``pocketlm translate``: lines go in, translations come out, after examples of such."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from pocketlm.commands.options import debug_option, model_options, open_model
from pocketlm.commands.recipes import find, print_recipe_option, read_recipe
from pocketlm.commands.terminal import say, tell_lost
from pocketlm.commands.tsv import (
    Input,
    Row,
    file_argument,
    in_turn,
    json_option,
    skip_bad_option,
    use_utf8,
)
from pocketlm.export.errors import RequestError
from pocketlm.export.utf8 import utf8
from pocketlm.runtime.model import Model
from pocketlm.runtime.quoted_texts import quoting
from pocketlm.runtime.text import Result
from pocketlm.streams import printable


def _language(text: str) -> str:
    if not text.strip():
        raise click.BadParameter(
            f"found {text!r:.40}, expected the name of a language, such as Korean; is a variable "
            "not set?"
        )
    return utf8(text)


@click.command("translate")
@click.argument("model")
@file_argument
@click.option(
    *("--from", "source"),
    required=True,
    type=_language,
    metavar="LANGUAGE",
    help="Language of the file.",
)
@click.option(
    *("--to", "target"),
    required=True,
    type=_language,
    metavar="LANGUAGE",
    help="Language to translate it to.",
)
@click.option(
    "--examples",
    metavar="FILE",
    help="Show the model these translations first: a line for each, text<TAB>translation. "
    "ko-en.tsv, Korean and English, comes with pocketlm.",
)
@click.option(
    "--recipe",
    default="translate",
    show_default=True,
    metavar="FILE",
    help="How the model is asked: a TOML file such as the one that comes with pocketlm.",
)
@print_recipe_option
@click.option(
    "--max-tokens",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    help="Most tokens of a translation.",
)
@skip_bad_option
@json_option
@model_options
@debug_option
def command(
    model: str,
    file: Path,
    source: str,
    target: str,
    examples: str | None,
    recipe: str,
    max_tokens: int,
    skip_bad: bool,
    as_json: bool,
    debug: bool,
    **options: Any,
) -> None:
    """Translate a file line by line, after examples.

    MODEL is a model folder, a checkpoint, a name on the hub (org/name) or demo; it has to know both
    languages. FILE, or stdin for "-", is plain text in UTF-8; each of its lines is asked for alone,
    and becomes one line of output: the model's likeliest words, up to the end of a line. A blank
    line stays empty.

    \b
    Examples:
      pocketlm translate gpt2-int8/ input.txt --from Korean --to English --examples ko-en.tsv
      pocketlm translate gpt2-int8/ - --from French --to English --examples fr-en.tsv
    """
    asked = read_recipe(recipe, ("text",), ("from", "to"), ("translation",))
    shown = _examples(examples) if examples is not None else []
    if shown and not asked.example:
        raise RequestError(
            f"recipe is {recipe!r}, found no example in it, expected one with --examples; add "
            "example = '...'"
        )
    lines = Input(file, skip_bad=skip_bad)
    opened = open_model(model, options)
    languages = {"from": source, "to": target}

    def prompt(row: Row) -> list[int]:
        text = row.fields[0].strip()
        hide, encode = quoting(opened.tokenizer, [text])
        return encode(asked.fill({**languages, "text": hide(text)}, shown))

    # The model's own penalty, if it has one, would be for its prompts: ours repeats on purpose.
    generation: dict[str, Any] = {
        "temperature": 0.0,
        "repetition_penalty": 1.0,
        "stop": asked.stop,
        "max_tokens": max_tokens,
        "cache": opened.new_cache(),
    }
    lines.check(lambda row: opened.stream(prompt(row), **generation))  # runs nothing
    tell_lost(opened, lines.texts, "file")
    use_utf8()
    results = []
    for row in in_turn(lines.rows, "translating"):
        text = ""
        if row.fields:
            result = opened.generate(prompt(row), **generation)
            text = " ".join(result.text.splitlines()).strip()
            results.append(
                {
                    "line": row.number,
                    "text": row.fields[0],
                    "translation": text,
                    "finish_reason": result.finish_reason,
                }
            )
            _tell_cut(row, result, opened)
        if not as_json:
            click.echo(printable(text) if sys.stdout.isatty() else text)
    if as_json:
        click.echo(json.dumps({"results": results, "bad_lines": lines.num_bad}))
    lines.tell_bad()


def _examples(name: str) -> Sequence[Mapping[str, str]]:
    rows = Input(find(name, ".tsv"), ("text", "translation")).rows
    return [{"text": row.fields[0], "translation": row.fields[1]} for row in rows if row.fields]


def _tell_cut(row: Row, result: Result, model: Model) -> None:
    """A line on stderr for a translation that a limit cut short."""
    if result.finish_reason == "length":
        say(f"{row.place}: stopped after {len(result.token_ids)} tokens, see --max-tokens")
    if result.finish_reason == "context":
        length = model.session.shape.context_length
        say(f"{row.place}: stopped: the context of {length} tokens is full")
