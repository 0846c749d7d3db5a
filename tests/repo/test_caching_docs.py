"""Every command of docs/caching.md, and its Python, works as it is typed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from command_line import Run
from source_tree import ROOT

TEXT = (ROOT / "docs" / "caching.md").read_text("utf-8")


def test_commands_work(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    lines = re.findall(r"^    pocketlm (.*)", TEXT, re.MULTILINE)
    told = []
    for line in lines:
        ended = run(*shlex.split(line), "--threads", "1")
        assert ended.code == 0 and ended.out
        told.append(ended.err)
    assert "wrote story.cache" in told[0]
    assert "prefill none" in told[1] and "wrote" not in told[1]
    assert "was full" in told[2]


def test_python_works(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (program,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    exec(program, {})
    assert capsys.readouterr().out.endswith(" True\n")
