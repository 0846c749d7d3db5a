"""The cost of an evaluation: forward passes are a part of it, and every size is measured alone."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from pocketlm.benchmarks import quality_cost
from pocketlm.export.folder import ModelFolder

TEXT = "It was late, and no one heard the rest of the story.\n" * 30


def test_a_row_per_number_of_tokens(
    tiny_folder: ModelFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    arguments = [tiny_folder.path, "--text", tmp_path / "text.txt", "--limit", 200, 400]
    monkeypatch.setattr(sys, "argv", ["quality_cost", *map(str, arguments)])
    quality_cost.main()
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["199", "399"]
    for row in rows:
        assert all(re.fullmatch(r"[\d.]+", cell) for cell in row[1:])
        assert float(row[3]) > 1 and float(row[4]) > 10


def test_every_forward_pass_is_counted(tiny_folder: ModelFolder, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    found = quality_cost.cost([tiny_folder.path], tmp_path / "text.txt", 300, threads=1)
    assert 0 < found["forward_seconds"] < found["seconds"]
