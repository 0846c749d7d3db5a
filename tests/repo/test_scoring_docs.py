"""Every command of docs/scoring.md, and its Python, works as it is typed."""

from __future__ import annotations

import re
import shlex

import pytest
from command_line import Run
from source_tree import ROOT

TEXT = (ROOT / "docs" / "scoring.md").read_text("utf-8")


@pytest.mark.parametrize("line", re.findall(r"^    pocketlm (.*)", TEXT, re.MULTILINE))
def test_commands_work(line: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    ended = run(*shlex.split(line), *(["--threads", "1"] if "print-recipe" not in line else []))
    assert ended.code == 0, ended.err
    assert ended.out


def test_the_recipe_shown_is_the_one_that_comes_with_it() -> None:
    source = (ROOT / "src" / "pocketlm" / "recipes" / "translate.toml").read_text("utf-8")
    fields = re.findall(r"^\w+ = .*", source, re.MULTILINE)
    assert len(fields) == 4
    assert all(f"    {field}\n" in TEXT for field in fields)


def test_python_works(capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    exec(program, {})
    assert capsys.readouterr().out.split()[-1] in ("positive", "negative")
