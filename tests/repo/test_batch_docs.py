"""Every command of docs/batch.md works as it is typed, and what it says of lines is so."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from command_line import Run
from source_tree import ROOT

from pocketlm.commands.batch_answers import MOST_HELD, MOST_HELD_BYTES

TEXT = (ROOT / "docs" / "batch.md").read_text("utf-8")


LINES = re.findall(r"^    pocketlm (.*)", TEXT, re.MULTILINE)


def test_commands_can_be_typed_one_after_another() -> None:
    outputs = [re.findall(r"-o (\S+)", line) for line in LINES]
    assert all(outputs) and len({*map(tuple, outputs)}) == len(LINES)


@pytest.mark.parametrize("line", LINES)
def test_commands_work(
    line: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)
    ended = run(*shlex.split(line), "--threads", "1")
    assert (ended.code, ended.out) == (0, ""), ended.err
    (output,) = Path().glob("*.jsonl")
    answers = [json.loads(text) for text in output.read_text().splitlines()]
    assert answers and not any(answer.get("error") for answer in answers)
    if "digest" in answers[0]:
        section = TEXT.split("## Answers")[1].split("## Going on")[0]
        described = set(re.findall(r"^    ([a-z_, ]+?)(?:   |$)", section, re.MULTILINE))
        names = {name for words in described for name in words.split(", ")} - {"error"}
        assert {name for answer in answers for name in answer} == names


def test_what_waits_is_bounded_as_it_says() -> None:
    assert f"at most {MOST_HELD:,}, or {MOST_HELD_BYTES // 10**6} MB" in TEXT
