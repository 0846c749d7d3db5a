"""``pocketlm score``: contexts and continuations go in, how likely each is comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from pocketlm.commands.options import debug_option, model_options, open_model
from pocketlm.commands.terminal import tell_lost
from pocketlm.commands.tsv import (
    Input,
    file_argument,
    in_turn,
    json_option,
    print_row,
    skip_bad_option,
    use_utf8,
)
from pocketlm.runtime.scoring import Score
from pocketlm.runtime.tokenizer import Tokenizer


@click.command("score")
@click.argument("model")
@file_argument
@click.option(
    "--per-token",
    is_flag=True,
    help="Print the tokens too, each followed by the natural log of its probability.",
)
@skip_bad_option
@json_option
@model_options
@debug_option
def command(
    model: str,
    file: Path,
    per_token: bool,
    skip_bad: bool,
    as_json: bool,
    debug: bool,
    **options: Any,
) -> None:
    """Tell how likely a model finds each continuation of a file.

    MODEL is a model folder, a checkpoint, a name on the hub (org/name) or demo. FILE, or stdin for
    "-", has a pair a line, context<TAB>continuation, with nothing put between the two: a
    continuation that is a word begins with a space. A tab inside a text is written \\t, a newline
    \\n, a backslash \\\\. Each line of output is sum<TAB>mean<TAB>tokens<TAB>greedy: the natural
    log of the continuation's probability, the same per token, how many tokens it has, and whether
    every one is the likeliest at its place (true or false). A blank line stays empty. Lines in a
    row with the same context cost that context once.

    \b
    Examples:
      pocketlm score gpt2-int8/ pairs.tsv
      pocketlm score gpt2-int8/ pairs.tsv --per-token --skip-bad
    """
    lines = Input(file, ("context", "continuation"), skip_bad=skip_bad)
    opened = open_model(model, options)
    scorer = opened.new_scorer()
    lines.check(lambda row: scorer.encode(row.fields[0], row.fields[1]))
    tell_lost(opened, lines.texts, "file")
    use_utf8()
    results = []
    for row in in_turn(lines.rows, "scoring"):
        fields: list[object] = []
        if row.fields:
            context, continuation = row.fields
            (score,) = scorer.score(context, [continuation])
            results.append({"line": row.number} | _result(score, opened.tokenizer, per_token))
            fields = _fields(score, opened.tokenizer, per_token)
        if not as_json:
            print_row(fields)
    if as_json:
        click.echo(json.dumps({"results": results, "bad_lines": lines.num_bad}))
    lines.tell_bad()


def _fields(score: Score, tokenizer: Tokenizer, per_token: bool) -> list[object]:
    numbers = [f"{value:.6g}" for value in (score.loglikelihood, score.mean)]
    fields: list[object] = [*numbers, len(score.token_ids), str(score.is_greedy).lower()]
    if per_token:
        for token, logprob in zip(score.token_ids, score.logprobs, strict=True):
            fields += [tokenizer.token_text(token), f"{logprob:.6g}"]
    return fields


def _result(score: Score, tokenizer: Tokenizer, per_token: bool) -> dict[str, Any]:
    result: dict[str, Any] = {
        "sum": score.loglikelihood,
        "mean": score.mean,
        "tokens": len(score.token_ids),
        "is_greedy": score.is_greedy,
    }
    if per_token:
        result["per_token"] = [
            {"token_id": token, "text": tokenizer.token_text(token), "logprob": logprob}
            for token, logprob in zip(score.token_ids, score.logprobs, strict=True)
        ]
    return result
