"""Reads questions from JSONL files: one JSON object a line goes in, contexts and choices come out.

The format is recognised by the fields, whatever the file is called; fields beside these are left
alone. What a model is asked is what lm-evaluation-harness 0.4.13 asks in its task of that name:

    lambada_openai  context, continuation             the text, and its last word
                    text                              its last word is what follows the last space
    hellaswag       activity_label, ctx_a, ctx_b,     "activity_label: ctx_a Ctx_b", each of four
                    endings, label                    endings
    piqa            goal, sol1, sol2, label           "Question: goal\\nAnswer:", each solution
    (none)          query, choices, gold              the query, each choice; where the query begins
                                                      with "Question:", "Answer:" follows it

Sources: lambada_openai.yaml, hellaswag/utils.py and piqa.yaml in lm_eval/tasks; the files
of query, choices and gold are those of MosaicML's llm-foundry.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ...export.errors import RequestError
from ...export.strict_json import shown
from ..json_lines import Line, read_lines

LAST_WORD, MULTIPLE_CHOICE = "last_word", "multiple_choice"


@dataclass(frozen=True)
class Item:
    """One question: the text to go on from, what may follow it, and which of that is right."""

    line: int
    context: str
    choices: tuple[str, ...]  # without the space before them
    gold: int = 0


@dataclass(frozen=True)
class TaskFile:
    """The questions of a file."""

    path: Path
    kind: str  # "last_word" or "multiple_choice"
    fields: tuple[str, ...]  # by which the format was recognised
    items: tuple[Item, ...]

    @property
    def name(self) -> str:
        """How the task is called in results: the file's name without its ending."""
        return self.path.stem


@dataclass(frozen=True)
class Format:
    """A set of fields, and how they become an item."""

    fields: tuple[str, ...]
    kind: str
    item: Callable[[Line], Item]


def read_task(path: Path, limit: int | None = None) -> TaskFile:
    """The first ``limit`` questions of a file (None: all of them).

    Raises RequestError that names file and line for what is not UTF-8, not JSON, or not a question
    in the format of the first line; and for a file without any. Blank lines are skipped.
    """
    found: Format | None = None
    items: list[Item] = []
    for line in islice(read_lines(path), limit):
        found = found or _recognise(line)
        items.append(found.item(line))
    if found is None:
        raise RequestError(
            f"{path}: found no questions, expected one JSON object a line; give another file"
        )
    return TaskFile(path, found.kind, found.fields, tuple(items))


def _recognise(line: Line) -> Format:
    for known in FORMATS:
        if line.fields.keys() >= set(known.fields):
            return known
    found = ", ".join(line.fields) or "none"
    expected = "; or ".join(", ".join(known.fields) for known in FORMATS)
    raise line.error(f"the fields {found:.200}", f"{expected}")


def _context_and_continuation(line: Line) -> Item:
    context, word = line.text("context", may_be_empty=True), line.text("continuation")
    return Item(line.number, context, (word,))


def _text(line: Line) -> Item:
    context, _, word = line.text("text").rpartition(" ")
    if not word:
        raise line.error(f"text {shown(line.fields['text'])}", "one that ends with a word")
    return Item(line.number, context, (word,))


def _hellaswag(line: Line) -> Item:
    parts = line.text("ctx_a", may_be_empty=True), line.text("ctx_b", may_be_empty=True)
    context = f"{line.text('activity_label')}: {parts[0]} {parts[1].capitalize()}"
    endings = tuple(_without_brackets(ending) for ending in line.texts("endings"))
    if not all(endings):
        raise line.error("an ending of brackets alone", "text in each of endings")
    return Item(line.number, _without_brackets(context), endings, line.index("label", len(endings)))


def _without_brackets(text: str) -> str:
    """As the harness's task takes out what is left of WikiHow's markup."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _piqa(line: Line) -> Item:
    context = f"Question: {line.text('goal')}\nAnswer:"
    solutions = (line.text("sol1"), line.text("sol2"))
    return Item(line.number, context, solutions, line.index("label", 2))


def _query(line: Line) -> Item:
    query, choices = line.text("query"), line.texts("choices")
    if query.startswith("Question:") and not query.endswith("Answer:"):
        query = query.removesuffix("\n") + "\nAnswer:"
    return Item(line.number, query, choices, line.index("gold", len(choices)))


FORMATS = (
    Format(("context", "continuation"), LAST_WORD, _context_and_continuation),
    Format(("activity_label", "ctx_a", "ctx_b", "endings", "label"), MULTIPLE_CHOICE, _hellaswag),
    Format(("goal", "sol1", "sol2", "label"), MULTIPLE_CHOICE, _piqa),
    Format(("query", "choices", "gold"), MULTIPLE_CHOICE, _query),
    Format(("text",), LAST_WORD, _text),
)
