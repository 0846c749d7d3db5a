"""What PyInstaller is told of pocketlm, without PyInstaller."""

from __future__ import annotations

import ast
import os
import runpy
import sys
import tomllib
from pathlib import Path

import pytest
from source_tree import ROOT

from pocketlm.pyinstaller import get_hook_dirs


def hooks() -> Path:
    (folder,) = map(Path, get_hook_dirs())
    return folder


def first_program() -> Path:
    (programs,) = ast.literal_eval((hooks() / "rthooks.dat").read_text("utf-8")).values()
    (program,) = programs
    return hooks() / "rthooks" / str(program)


def test_the_entry_point_names_the_folder_of_the_hook() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    named = project["entry-points"]["pyinstaller40"]["hook-dirs"]
    assert named == f"{get_hook_dirs.__module__}:{get_hook_dirs.__name__}"
    assert (hooks() / "hook-pocketlm.py").is_file()


@pytest.mark.parametrize("before, after", [(None, "1"), ("0", "0")])
def test_telemetry_is_off_before_the_program_can_import_onnxruntime(
    before: str | None, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["application"])
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", before or "")
    if before is None:
        monkeypatch.delenv("ORT_DISABLE_TELEMETRY")
    runpy.run_path(str(first_program()))
    assert os.environ["ORT_DISABLE_TELEMETRY"] == after
