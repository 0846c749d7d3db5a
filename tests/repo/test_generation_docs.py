"""What docs/generation.md shows works as it is typed."""

from __future__ import annotations

import re

import pytest
from source_tree import ROOT

from pocketlm.runtime.row_rule import GROUPS, MOST_ROWS

TEXT = (ROOT / "docs" / "generation.md").read_text("utf-8")


def test_python_works(capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    exec(program, {})
    lines = capsys.readouterr().out.splitlines()
    assert {line[:1] for line in lines} >= {"0", "1", "2"}


def test_its_numbers_are_those_of_the_code() -> None:
    assert f"for {MOST_ROWS} rows" in TEXT
    assert f"({', '.join(map(str, GROUPS[:-1]))} or {GROUPS[-1]};" in TEXT
