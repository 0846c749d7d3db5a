"""A graph that passed is not inspected again; one that changed, or was refused, is."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pocketlm.export.errors import ModelFolderError
from pocketlm.export.folder import ModelFolder
from pocketlm.export.graph_check import graph, once
from pocketlm.export.graph_check.once import checked_graph


@pytest.fixture
def folder(tiny_folder: ModelFolder, tmp_path: Path, own_memory: None) -> ModelFolder:
    return ModelFolder.open(shutil.copytree(tiny_folder.path, tmp_path / "copy"))


@pytest.fixture
def own_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETLM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def inspected(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The graphs that were looked at, in their order."""
    names: list[str] = []
    monkeypatch.setattr(graph, "check_graph", lambda folder, name, data: names.append(name))
    return names


def test_a_graph_is_inspected_again_only_once_it_or_its_manifest_changed(
    folder: ModelFolder, inspected: list[str]
) -> None:
    for _ in range(2):
        checked_graph(folder)
    assert len(inspected) == 1
    changed = replace(folder, manifest=replace(folder.manifest, sha256="0" * 64))
    for _ in range(2):
        checked_graph(changed)
    assert len(inspected) == 2
    folder.graph_file().write_bytes(folder.graph_file().read_bytes() + b" ")
    checked_graph(folder)
    assert len(inspected) == 3


def test_another_version_of_the_check_inspects_again(
    folder: ModelFolder, inspected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked_graph(folder)
    (tmp_path / "other.py").write_text("")
    monkeypatch.setattr(once, "__file__", str(tmp_path / "once.py"))
    checked_graph(folder)
    assert len(inspected) == 2


@pytest.mark.parametrize("lacks", ["a digest of the manifest", "files of the check"])
def test_what_cannot_be_told_apart_is_inspected_every_time(
    lacks: str,
    folder: ModelFolder,
    inspected: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if lacks == "files of the check":
        monkeypatch.setattr(once, "__file__", str(tmp_path / "frozen" / "once.py"))
    else:
        folder = replace(folder, manifest=replace(folder.manifest, sha256=None))
    for _ in range(2):
        checked_graph(folder)
    assert len(inspected) == 2


def test_a_graph_that_was_refused_is_refused_again(folder: ModelFolder) -> None:
    folder.graph_file().write_bytes(b"no graph")
    for _ in range(2):
        with pytest.raises(ModelFolderError, match="foreign graphs are not opened"):
            checked_graph(folder)
