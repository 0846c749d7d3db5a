"""``pocketlm eval --tasks`` and ``--recite`` end to end: what is printed, and every bad input."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import gpt2_config, gpt2_tensors, write_checkpoint
from command_line import Run, assert_refused

from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.folder import ModelFolder
from pocketlm.export.writing import export_model
from pocketlm.quantize.run import precision_of
from pocketlm.runtime.session import Session


@pytest.fixture(scope="module")
def int8_folder(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    out = tmp_path_factory.mktemp("eval") / "int8"
    return export_model(open_checkpoint(tiny_checkpoint), out, precision_of("int8"))


@pytest.fixture
def words(tmp_path: Path) -> Path:
    path = tmp_path / "words.jsonl"
    lines = [{"context": f"The {word} of the", "continuation": "other"} for word in "abcdefgh"]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture
def choices(tmp_path: Path) -> Path:
    path = tmp_path / "choices.jsonl"
    lines = [
        {"goal": f"to {word}", "sol1": "then the rain", "sol2": "or", "label": i % 2}
        for i, word in enumerate("abcdefgh")
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text("The other story of that house, and the rain.\n" * 30)
    return path


def test_everything_in_one_call(
    run: Run,
    tiny_folder: ModelFolder,
    int8_folder: ModelFolder,
    words: Path,
    choices: Path,
    book: Path,
) -> None:
    size = ("--prompt-tokens", 8, "--continuation-tokens", 6, "--passages", 4)
    ended = run(
        "eval",
        *(int8_folder.path, "--against", tiny_folder.path, "--text", book, "--window", 64),
        *("--tasks", words, choices, "--recite", book, *size, "--threads", 1, "-o", "json"),
    )
    assert (ended.code, ended.err) == (0, "")
    found = json.loads(ended.out)
    assert set(found) == {"circumstances", "quality", "tasks", "recitation"}
    assert [(entry["task"], entry["model"]) for entry in found["tasks"]] == [
        ("words", "fp32"),
        ("words", "int8"),
        ("choices", "fp32"),
        ("choices", "int8"),
    ]
    assert [entry["against"] is None for entry in found["tasks"]] == [True, False, True, False]
    (entry,) = found["recitation"]
    assert [model["model"] for model in entry["models"]] == ["fp32", "int8"]
    assert [len(model["passages"]) for model in entry["models"]] == [4, 4]


def test_tables_name_tasks_models_and_measures(
    run: Run, tiny_folder: ModelFolder, int8_folder: ModelFolder, words: Path, choices: Path
) -> None:
    models = (tiny_folder.path, int8_folder.path)
    ended = run("eval", *models, "--tasks", words, choices, "--threads", 1)
    assert ended.code == 0
    lines = [re.split(r"\s{2,}", line.strip()) for line in ended.out.splitlines()]
    assert lines[0] == [
        "words.jsonl: 8 items, last word (context, continuation), no examples in the prompt"
    ]
    assert ["item", "measure", "fp32", "int8"] in lines
    measures = [line[:2] for line in lines if line[0] in ("words", "choices")]
    assert measures == [
        *(["words", name] for name in ("accuracy", "perplexity", "difference", "same answer")),
        *(["choices", name] for name in ("accuracy", "accuracy, normalised", "difference")),
        *(["choices", name] for name in ("difference, normalised", "same answer")),
    ]
    assert "difference: accuracy less that of fp32" in ended.out


def test_a_recitation_is_a_table(run: Run, tiny_folder: ModelFolder, book: Path) -> None:
    ended = run("eval", tiny_folder.path, "--recite", book, "--threads", 1, "--passages", 2)
    assert ended.code == 0
    assert ended.out.startswith(
        "book.txt: 2 passages at even distances; 50 tokens given, 50 to recite"
    )
    for measure in ("exact match, tokens", "longest, tokens", "edit distance", "by chance"):
        assert f"\n{measure}" in ended.out


@pytest.mark.parametrize("output", ["md", "csv", "jsonl"])
def test_every_output_has_every_figure(
    output: str, run: Run, tiny_folder: ModelFolder, words: Path, choices: Path, book: Path
) -> None:
    ended = run(
        "eval",
        *(tiny_folder.path, "--tasks", words, choices, "--recite", book, "--threads", 1),
        *("-o", output),
    )
    assert ended.code == 0
    figures = ("accuracy", "perplexity", "edit distance")
    assert all(figure in ended.out for figure in figures)
    if output == "jsonl":
        rows = [json.loads(line) for line in ended.out.splitlines()]
        assert {row["section"] for row in rows} == {"tasks", "recitation"}


def test_fewer_items_and_long_contexts_are_told(
    run: Run, tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    path = tmp_path / "long.jsonl"
    line = json.dumps({"context": "the rain " * 200, "continuation": "rain"})
    path.write_text("\n".join([line] * 5))
    ended = run("eval", tiny_folder.path, "--tasks", path, "--items", 2, "--threads", 1)
    assert ended.code == 0
    assert "long.jsonl: 2 items, last word" in ended.out
    assert (
        "long.jsonl: the context of fp32 was too short for 2 items, whose beginnings" in ended.out
    )


@pytest.mark.parametrize(
    "content, message",
    [
        (b'{"context": "a"}', "line 1: found the fields context, expected context, continuation"),
        (b'{"context": "a", "continuation": "b"}\nx', "line 2 is not valid JSON"),
        (b'{"context": "\xff"}', "line 1 is not UTF-8"),
        (b'{"query": "a", "choices": ["b", "c"], "gold": 2}', "line 1: found gold '2', expected 0"),
        (b"", "found no questions, expected one JSON object a line"),
        (b"\n \n", "found no questions, expected one JSON object a line"),
    ],
)
def test_a_bad_task_file_is_refused(content: bytes, message: str, run: Run, tmp_path: Path) -> None:
    """Before the model is looked for, which is not there."""
    (tmp_path / "bad.jsonl").write_bytes(content)
    ended = run("eval", tmp_path / "none", "--tasks", tmp_path / "bad.jsonl")
    assert_refused(ended, f"bad.jsonl.*{message}")


def test_a_question_that_cannot_be_asked_is_found_before_the_work(
    run: Run,
    tiny_folder: ModelFolder,
    words: Path,
    book: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def opened(*arguments: object) -> None:
        raise AssertionError("a model was opened")

    monkeypatch.setattr(Session, "__init__", opened)
    line = {"query": "a", "choices": ["a", "the rain " * 200], "gold": 0}
    (tmp_path / "long.jsonl").write_text("\n" + json.dumps(line))
    ended = run(
        *("eval", tiny_folder.path, "--text", book, "--window", 64),
        *("--tasks", words, tmp_path / "long.jsonl"),
    )
    assert_refused(ended, r"long.jsonl, line 2: the continuation has \d+ tokens, expected at most")


@pytest.mark.parametrize("option", ["--tasks", "--recite"])
def test_a_missing_file_is_refused(option: str, run: Run, tmp_path: Path) -> None:
    ended = run("eval", tmp_path / "none", option, tmp_path / "missing.jsonl")
    assert_refused(ended, "missing.jsonl.*No such file")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--items", "0", "--tasks", "x"], "0 is not in the range"),
        (["--recite", "BOOK", "--passages", "0"], "passages is 0, expected an integer from 1 up"),
        (["--recite", "BOOK", "--prompt-tokens", "9999"], "expected at most 160 .the context"),
        ([], "found nothing to evaluate on, expected a text or tasks"),
    ],
)
def test_bad_options_are_refused(
    arguments: list[str],
    message: str,
    run: Run,
    tiny_folder: ModelFolder,
    book: Path,
) -> None:
    given = [str(book) if word == "BOOK" else word for word in arguments]
    assert_refused(run("eval", tiny_folder.path, *given), message)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "found an empty file"),
        (b"caf\xe9 " * 99, "found the byte 0xe9"),
        (b"The end.", "tokens, expected 100 or more"),
    ],
)
def test_a_bad_book_is_refused(
    content: bytes, message: str, run: Run, tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    (tmp_path / "bad.txt").write_bytes(content)
    ended = run("eval", tiny_folder.path, "--recite", tmp_path / "bad.txt")
    assert_refused(ended, f"bad.txt.*{message}")


def test_reciting_models_must_share_a_tokenizer(
    run: Run, tiny_folder: ModelFolder, book: Path, tmp_path: Path
) -> None:
    config = gpt2_config(vocab_size=301, n_positions=160)
    other: Any = write_checkpoint(tmp_path / "other", config, gpt2_tensors(config))
    folder = export_model(open_checkpoint(other), tmp_path / "out")
    ended = run("eval", folder.path, "--against", tiny_folder.path, "--recite", book)
    assert_refused(ended, "the tokenizers of fp32 and out differ")
