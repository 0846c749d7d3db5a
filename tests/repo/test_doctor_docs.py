"""docs/doctor.md has every finding with its figures, the bounds that the code has, and runs."""

from __future__ import annotations

import re
import shlex

import pytest
from source_tree import ROOT

import pocketlm
from pocketlm.commands.doctor import command
from pocketlm.doctor import cache, examine, golden, memory
from pocketlm.doctor.self_test import rows, speed, tokens
from pocketlm.export.quantities import size_text

TEXT = (ROOT / "docs" / "doctor.md").read_text("utf-8")
TABLE = {line.split("`")[1]: line for line in TEXT.splitlines() if line.startswith("| `")}


def test_every_finding_is_described_with_its_figures() -> None:
    demo = {"int8": pocketlm.load("demo", threads=1)}
    run = [tokens(demo), rows(demo), speed(demo, lambda threads: 1e10)]
    found = {finding.name: list(finding.figures) for finding in [*examine(self_test=False), *run]}
    described = {name: re.findall(r"`(\w+)`", line.split("|")[4]) for name, line in TABLE.items()}
    assert described == found


def test_bounds_are_those_of_the_code() -> None:
    least, little = _size(memory.LEAST), _size(memory.LITTLE)
    assert f"less than {least} is free; *less than {little}*" in TABLE["memory"]
    assert f"less than {_size(cache.LEAST)}, or" in TABLE["disk"]
    assert f"*less than {_size(cache.LITTLE)}*" in TABLE["disk"]
    assert f"one of {len(golden.GOLDEN)} is another" in TABLE["tokens"]


def _size(num_bytes: int) -> str:
    """In whole units."""
    number, unit = size_text(num_bytes).split()
    return f"{float(number):.0f} {unit}"


def test_commands_parse() -> None:
    lines = re.findall(r"^    pocketlm (doctor.*)", TEXT, re.MULTILINE)
    assert len(lines) == 2
    for line in lines:
        command.make_context("doctor", shlex.split(line.partition("#")[0])[1:])


def test_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    exec(program, {})
    assert capsys.readouterr().err == ""
