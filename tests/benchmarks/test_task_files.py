"""Task files: every format read as the harness reads it, and every way a line can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pocketlm.benchmarks.task_files import FORMATS, read_task
from pocketlm.export.errors import RequestError

LAMBADA = {"context": "He lit the lamp and read the", "continuation": "letter"}
HELLASWAG = {
    "ind": 4,
    "activity_label": "Lighting a fire",
    "ctx_a": "A man kneels  by the hearth.",
    "ctx_b": "he Then",
    "endings": ["lays the coals.", "sings [substeps] to the cat."],
    "label": 1,
}
PIQA = {"goal": "How do I dry a coat?", "sol1": "By the fire.", "sol2": "In the sea.", "label": 0}
QUERY = {"query": "Question: dry a coat\n", "choices": ["By the fire.", "In it."], "gold": 1}


def write(path: Path, *lines: dict[str, Any] | str | bytes) -> Path:
    """A JSONL file of objects, or of lines as they are."""
    encoded = [json.dumps(line) if isinstance(line, dict) else line for line in lines]
    path.write_bytes(b"".join((x.encode() if isinstance(x, str) else x) + b"\n" for x in encoded))
    return path


@pytest.mark.parametrize(
    "line, context, choices, gold",
    [
        (LAMBADA, "He lit the lamp and read the", ("letter",), 0),
        ({"text": "He lit the  lamp"}, "He lit the ", ("lamp",), 0),
        ({"text": "Lamp"}, "", ("Lamp",), 0),
        (
            HELLASWAG,
            # Two spaces become one, and what begins ctx_b becomes the only capital in it.
            "Lighting a fire: A man kneels by the hearth. He then",
            ("lays the coals.", "sings to the cat."),
            1,
        ),
        (
            HELLASWAG | {"ctx_a": "Get ready [title] Sweep it.", "ctx_b": "", "label": "0"},
            "Lighting a fire: Get ready. Sweep it.",
            ("lays the coals.", "sings to the cat."),
            0,
        ),
        (PIQA, "Question: How do I dry a coat?\nAnswer:", ("By the fire.", "In the sea."), 0),
        (QUERY, "Question: dry a coat\nAnswer:", ("By the fire.", "In it."), 1),
        (QUERY | {"query": "Question: X\nAnswer:"}, "Question: X\nAnswer:", None, 1),
        (QUERY | {"query": "It was raining, so"}, "It was raining, so", None, 1),
    ],
)
def test_a_line_becomes_a_question(
    line: dict[str, Any], context: str, choices: tuple[str, ...] | None, gold: int, tmp_path: Path
) -> None:
    task = read_task(write(tmp_path / "some.name.jsonl", line))
    (item,) = task.items
    assert (item.line, item.context, item.gold) == (1, context, gold)
    assert choices in (None, item.choices)
    assert task.name == "some.name"
    assert set(task.fields) <= set(line)
    assert task.kind == ("last_word" if len(item.choices) == 1 else "multiple_choice")


@pytest.mark.parametrize("line", [LAMBADA, HELLASWAG, PIQA, QUERY, {"text": "a b"}])
def test_the_format_is_that_of_the_fields_whatever_else_there_is(
    line: dict[str, Any], tmp_path: Path
) -> None:
    extra = dict(reversed((line | {"id": "x", "source": None}).items()))
    plain = read_task(write(tmp_path / "plain", line))
    assert read_task(write(tmp_path / "extra", extra)).items == plain.items


def test_blank_lines_and_a_byte_order_mark_are_skipped(tmp_path: Path) -> None:
    first = b"\xef\xbb\xbf" + json.dumps(LAMBADA).encode()
    path = write(tmp_path / "blank.jsonl", "", first, "", "  \t", LAMBADA)
    with pytest.raises(RequestError, match="line 2"):  # a mark elsewhere is no mark
        read_task(path)
    path = write(tmp_path / "blank.jsonl", first, "", "  \t", LAMBADA)
    assert [item.line for item in read_task(path).items] == [1, 4]


def test_a_limit_ends_the_reading(tmp_path: Path) -> None:
    path = write(tmp_path / "three.jsonl", LAMBADA, LAMBADA, "not read")
    assert len(read_task(path, limit=2).items) == 2


@pytest.mark.parametrize(
    "line, message",
    [
        (b'{"context": "\xff"}', r"line 2 is not UTF-8 \(byte 13 is 0xff\)"),
        ("{'context': 1}", "line 2 is not valid JSON"),
        ('{"context": "a"', "line 2 is not valid JSON"),
        ("[1, 2]", "line 2 holds a JSON array, expected a JSON object"),
        ({"question": "Why?"}, "line 2: found the fields question, expected context too, as in"),
        ({"context": "a"}, "line 2: found the fields context, expected continuation too"),
        ({"context": 5, "continuation": "a"}, "line 2: found context '5', expected a text"),
        ({"context": "a", "continuation": ""}, "line 2: found continuation '', expected a text"),
    ],
)
def test_a_line_that_is_no_question_is_named(
    line: dict[str, Any] | str | bytes, message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "bad.jsonl", LAMBADA, line)
    with pytest.raises(RequestError, match=f"bad.jsonl, {message}"):
        read_task(path)


@pytest.mark.parametrize(
    "line, message",
    [
        (HELLASWAG | {"label": 2}, "found label '2', expected 0 to 1, the right choice"),
        (HELLASWAG | {"label": "2"}, "found label '2', expected 0 to 1"),
        (HELLASWAG | {"label": ""}, "found label '', expected 0 to 1"),
        (HELLASWAG | {"label": True}, "found label 'True', expected 0 to 1"),
        (HELLASWAG | {"endings": ["a"]}, "expected a list of two texts or more"),
        (HELLASWAG | {"endings": ["a", ""]}, "expected a list of two texts or more"),
        (HELLASWAG | {"endings": ["a", "[b]"]}, "found an ending of brackets alone"),
        (HELLASWAG | {"endings": "ab"}, "found endings 'ab', expected a list"),
        (PIQA | {"label": -1}, "found label '-1', expected 0 to 1"),
        (PIQA | {"sol2": None}, "found sol2 'None', expected a text"),
        (QUERY | {"gold": 1.0}, "found gold '1.0', expected 0 to 1"),
        (QUERY | {"query": ""}, "found query '', expected a text"),
        ({"text": "ends with a space "}, "expected one that ends with a word"),
    ],
)
def test_a_field_that_is_wrong_is_named(line: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=f"line 1: .*{message}"):
        read_task(write(tmp_path / "bad.jsonl", line))


def test_unknown_fields_are_answered_with_the_known_sets(tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        read_task(write(tmp_path / "bad.jsonl", {"question": "Why?", "answer": "So."}))
    assert "line 1: found the fields question, answer, expected context, " in str(caught.value)
    for known in FORMATS:
        assert ", ".join(known.fields) in str(caught.value)
    with pytest.raises(RequestError, match="found the fields none, expected"):
        read_task(write(tmp_path / "bad.jsonl", {}))


@pytest.mark.parametrize("lines", [[], ["", " "]])
def test_a_file_without_questions_is_refused(lines: list[str], tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="found no questions, expected one JSON object a line"):
        read_task(write(tmp_path / "empty.jsonl", *lines))


def test_the_samples_are_read(test_data: Path) -> None:
    found = {}
    for name in ("lambada_openai_1000", "hellaswag_1000", "piqa"):
        task = read_task(test_data / "evals" / f"{name}.jsonl")
        found[name] = (task.kind, len(task.items), {len(item.choices) for item in task.items})
    assert found == {
        "lambada_openai_1000": ("last_word", 1000, {1}),
        "hellaswag_1000": ("multiple_choice", 1000, {4}),
        "piqa": ("multiple_choice", 1838, {2}),
    }
