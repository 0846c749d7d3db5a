"""``pocketlm classify``: texts go in, the likeliest label of each comes out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from pocketlm.commands.options import Place, debug_option, model_options, open_model, unescape
from pocketlm.commands.terminal import say, tell_lost
from pocketlm.commands.tsv import (
    Input,
    Row,
    file_argument,
    in_turn,
    json_option,
    print_row,
    skip_bad_option,
    use_utf8,
)
from pocketlm.export.errors import RequestError
from pocketlm.export.strict_json import quoted
from pocketlm.export.utf8 import utf8
from pocketlm.runtime.labels import LabelDistribution, checked_labels, checked_template

DEFAULT_TEMPLATE = r"Text: {text}\nLabel:"

Confusion = Counter[tuple[str, str]]  # how often a truth was given a label


@click.command("classify")
@click.argument("model")
@file_argument
@click.option(
    "--labels",
    required=True,
    type=utf8,
    metavar="A,B,...",
    help="What there is to choose from, with a comma between two.",
)
@click.option(
    "--template",
    type=utf8,
    default=DEFAULT_TEMPLATE,
    show_default=True,
    metavar="TEXT",
    help=r"What the model reads, {text} being a line's text; the label follows, after a space. \n "
    r"is a newline.",
)
@click.option(
    "--examples",
    type=Place(),
    metavar="FILE",
    help="Show the model these texts and labels first: a line for each, text<TAB>label.",
)
@click.option(
    "--calibrate",
    is_flag=True,
    help="Divide by what the model says of an empty text, which takes out what it prefers anyhow.",
)
@click.option(
    "--all",
    "all_labels",
    is_flag=True,
    help="Print every label's probability after the two, in the order of --labels.",
)
@skip_bad_option
@json_option
@model_options
@debug_option
def command(
    model: str,
    file: Path,
    labels: str,
    template: str,
    examples: Path | None,
    calibrate: bool,
    all_labels: bool,
    skip_bad: bool,
    as_json: bool,
    debug: bool,
    **options: Any,
) -> None:
    """Tell which label fits each line of a file.

    MODEL is a model folder, a checkpoint, a name on the hub (org/name) or demo. FILE, or stdin for
    "-", has a text a line, or text<TAB>truth, where the truth is the right label: then accuracy and
    a table of truths and labels are printed to stderr at the end. Each line of output is
    label<TAB>probability; a blank line stays empty. Inside a text a tab is written \\t, a newline
    \\n, a backslash \\\\. The probability of a label is that of its whole text after the template;
    those of all labels sum to 1.

    \b
    Examples:
      pocketlm classify gpt2-int8/ reviews.tsv --labels positive,negative
      pocketlm classify gpt2-int8/ reviews.tsv --labels positive,negative --calibrate
      pocketlm classify gpt2-int8/ a.txt --labels good,bad --template "Review: {text}\\nIt is"
    """
    lines = Input(file, ("text",), ("truth",), skip_bad=skip_bad)
    known = checked_labels([x.strip() for x in labels.split(",")] if labels.strip() else [])
    template = unescape(template)
    checked_template(template)
    lines.check(lambda row: _check_label(row, known))
    shown = [] if examples is None else _examples(examples, known)
    opened = open_model(model, options)
    classifier = opened.classifier(known, template, examples=shown, calibrate=calibrate)
    lines.check(lambda row: classifier.encode(row.fields[0]))
    tell_lost(opened, lines.texts, "file")
    use_utf8()
    found: list[tuple[Row, LabelDistribution]] = []
    for row in in_turn(lines.rows, "classifying"):
        fields: list[str] = []
        if row.fields:
            given = classifier.classify(row.fields[0])
            found.append((row, given))
            shares = given.probabilities if all_labels else ()
            fields = [given.label, *map(_share, (given.probability, *shares))]
        if not as_json:
            print_row(fields)
    confusion = Counter((_label(row), given.label) for row, given in found if row.fields[1:])
    if as_json:
        click.echo(json.dumps(_result(classifier.labels, found, confusion, lines.num_bad)))
    elif confusion:
        say(_confusion_text(classifier.labels, confusion))
    lines.tell_bad()


def _examples(path: Path, labels: Sequence[str]) -> list[tuple[str, str]]:
    lines = Input(path, ("text", "label"))
    lines.check(lambda row: _check_label(row, labels))
    return [(row.fields[0], _label(row)) for row in lines.rows if row.fields]


def _label(row: Row) -> str:
    """The second field, which is the truth or an example's label."""
    return row.fields[1].strip()


def _check_label(row: Row, labels: Sequence[str]) -> None:
    if row.fields[1:] and _label(row) not in labels:
        raise RequestError(
            f"found the label {quoted(row.fields[1])}, expected one of {', '.join(labels)}; "
            "correct it, or add it to --labels"
        )


def _share(probability: float) -> str:
    return f"{probability:.6g}"


def _accuracy(confusion: Confusion) -> float | None:
    right = sum(count for (truth, label), count in confusion.items() if truth == label)
    return right / confusion.total() if confusion else None


def _confusion_text(labels: Sequence[str], confusion: Confusion) -> str:
    """Accuracy, and a table: a line for each truth, a column for each label."""
    right = sum(confusion[label, label] for label in labels)
    rows = [["truth, labelled as", *labels]]
    rows += [[truth, *(str(confusion[truth, label]) for label in labels)] for truth in labels]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    first = f"accuracy {_accuracy(confusion):.3f}: {right:,} of {confusion.total():,} right"
    return "\n".join([first, *(_aligned(row, widths) for row in rows)])


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
    return "  ".join([row[0].ljust(widths[0]), *cells[1:]])


def _result(
    labels: Sequence[str],
    found: Sequence[tuple[Row, LabelDistribution]],
    confusion: Confusion,
    num_bad: int,
) -> dict[str, Any]:
    return {
        "results": [
            {
                "line": row.number,
                "label": given.label,
                "probabilities": dict(zip(labels, given.probabilities, strict=True)),
                "truth": _label(row) if row.fields[1:] else None,
            }
            for row, given in found
        ],
        "accuracy": _accuracy(confusion),
        "confusion": {
            truth: {label: confusion[truth, label] for label in labels} for truth in labels
        }
        if confusion
        else None,
        "bad_lines": num_bad,
    }
