"""``pocketlm score``: a score for every pair of a file, and bad input."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_line import Run, assert_refused

import pocketlm
from pocketlm.commands.tsv import escape
from pocketlm.export.folder import ModelFolder


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.tsv"
    path.write_bytes("\ufeffthe other\t rain\r\n\r\nthe other\t\\t글\r\n\ta rain\r\n".encode())
    return path


PAIRS = {1: ("the other", " rain"), 3: ("the other", "\t글"), 4: ("", "a rain")}


def test_a_line_of_output_for_each_line_of_input(
    run: Run, tiny_folder: ModelFolder, tiny_model: pocketlm.Model, file: Path
) -> None:
    ended = run("score", tiny_folder.path, file)
    assert (ended.code, ended.err) == (0, "")
    lines = [line.split("\t") for line in ended.out.split("\n")]
    assert lines[1] == lines[4] == [""]
    for number, (context, continuation) in PAIRS.items():
        (score,) = tiny_model.score(context, [continuation])
        total, mean, tokens, greedy = lines[number - 1]
        assert float(total) == pytest.approx(score.loglikelihood, rel=1e-4)
        assert float(mean) == pytest.approx(score.mean, rel=1e-4)
        assert (int(tokens), greedy) == (len(score.token_ids), str(score.is_greedy).lower())


def test_the_greedy_continuation_is_said_to_be_so(
    run: Run, tiny_folder: ModelFolder, tiny_model: pocketlm.Model, tmp_path: Path
) -> None:
    path = tmp_path / "pairs.tsv"
    for context in "abcdefghijklmnopqrstuvwxyz":
        found = tiny_model.generate(context, max_tokens=1, temperature=0)
        if found.text and tiny_model.tokenizer.encode(found.text) == found.token_ids:
            break  # not a part of a character
    path.write_text(f"{context}\t{escape(found.text)}\n{context}\t{escape(found.text)}q\n")
    ended = run("score", tiny_folder.path, path)
    assert [line.split("\t")[3] for line in ended.out.splitlines()] == ["true", "false"]


def test_tokens_are_printed_with_their_logprobs(
    run: Run, tiny_folder: ModelFolder, tiny_model: pocketlm.Model, file: Path
) -> None:
    ended = run("score", tiny_folder.path, file, "--per-token")
    (score,) = tiny_model.score("the other", ["\t글"])
    fields = ended.out.splitlines()[2].split("\t")
    assert fields[4::2] == ["\\t", "\ufffd", "\ufffd", "\ufffd"]  # bytes of a character
    assert [float(value) for value in fields[5::2]] == pytest.approx(score.logprobs, rel=1e-4)
    found = json.loads(run("score", tiny_folder.path, file, "--per-token", "--json").out)
    assert [result["line"] for result in found["results"]] == [1, 3, 4]
    result = found["results"][1]
    assert result["sum"] == pytest.approx(score.loglikelihood)
    assert [part["token_id"] for part in result["per_token"]] == list(score.token_ids)
    assert [part["logprob"] for part in result["per_token"]] == pytest.approx(score.logprobs)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\t b\na\n", "line 2: found 1 field, expected 2: context<TAB>continuation"),
        ("a\t b\na\tb\tc\n", "line 2: found 3 fields, expected 2"),
        ("a\t b\na\t\n", "line 2: the continuation '' adds no token to its context"),
        (f"a\t b\n{'z' * 200}\tb\n", "line 2: the context has 200 tokens and the continuation 1,"),
    ],
)
def test_a_bad_line_is_refused_or_left_out_and_counted(
    run: Run, tiny_folder: ModelFolder, tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text(content)
    assert_refused(run("score", tiny_folder.path, path), message)
    ended = run("score", tiny_folder.path, path, "--skip-bad")
    assert ended.code == 0
    assert [line == "" for line in ended.out.splitlines()] == [False, True]
    assert ended.err.startswith("pocketlm: left out 1 bad line; the first: ")


def test_bytes_from_stdin_that_are_no_text_are_refused(
    run: Run, tiny_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"a\tb\na\t\xe9\n")))
    assert_refused(run("score", tiny_folder.path, "-"), "stdin, line 2: found the byte 0xe9 at 2")
