"""What of a model folder is opened: the graph that was checked, wherever its files really lie."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from model_folders import with_files

from pocketlm.export.errors import ModelFolderError
from pocketlm.export.folder import ModelFolder
from pocketlm.export.graph_check.once import checked_graph
from pocketlm.export.manifest import PREFILL_DATA_FILE
from pocketlm.runtime import opening
from pocketlm.runtime.largest_first import largest_first
from pocketlm.runtime.model import Model
from pocketlm.runtime.session import Session

PROMPT = list(range(64))


def test_a_folder_of_links_opens(prefill_folder: ModelFolder, tmp_path: Path) -> None:
    """As the hub's cache has it: the files lie elsewhere by other names."""
    blobs, links = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    links.mkdir(parents=True)
    shutil.copytree(prefill_folder.path, blobs)
    for number, file in enumerate(sorted(blobs.iterdir())):
        (links / file.name).symlink_to(file.rename(blobs / f"{number}"))
    expected = Session(prefill_folder, threads=1, prefill="int8")
    session = Session(ModelFolder.open(links), threads=1, prefill="int8")
    for ids in ([5, 6], PROMPT):
        found = session.step(ids, session.new_cache())
        assert (found == expected.step(ids, expected.new_cache())).all()


@pytest.mark.skipif(sys.platform != "linux", reason="names are text elsewhere")
def test_a_path_that_is_no_text_is_refused(tiny_folder: ModelFolder, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder.path, tmp_path / os.fsdecode(b"a\xff"))
    with pytest.raises(ModelFolderError, match="found bytes that are not UTF-8 in the path"):
        Session(ModelFolder.open(folder))


def test_what_is_opened_is_what_was_checked(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is written to the file in between."""

    def changed(data: bytes) -> bytes:
        (copy / "model.onnx").write_bytes(b"another")
        return largest_first(data)

    monkeypatch.setattr(opening, "largest_first", changed)
    session = Session(ModelFolder.open(copy), threads=1)
    assert session.step([1], session.new_cache()).any()


def test_a_graph_that_was_checked_vouches_for_no_other(copy: Path) -> None:
    """Of the same size and time, in the same file or in its place."""
    folder = ModelFolder.open(copy)
    file = folder.graph_file()
    data, before = file.read_bytes(), file.stat()
    assert checked_graph(folder) == data
    name = b"input_ids"
    assert data.count(name) > 1
    forged = data.replace(name, b"input_idz", 1)
    file.write_bytes(forged)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ModelFolderError, match="foreign graphs are not opened"):
        checked_graph(folder)
    file.unlink()
    (copy / "elsewhere").write_bytes(forged)
    file.symlink_to(copy / "elsewhere")
    with pytest.raises(ModelFolderError, match="foreign graphs are not opened"):
        checked_graph(folder)


def test_a_graph_that_is_gone_or_too_long_is_told(copy: Path) -> None:
    folder = ModelFolder.open(copy)
    folder.graph_file().unlink()
    with pytest.raises(ModelFolderError, match="'model.onnx' cannot be opened"):
        Session(folder)
    with open(folder.graph_file(), "wb") as file:
        file.truncate(200_000_001)
    with pytest.raises(ModelFolderError, match="found 200,000,001 bytes, expected at most"):
        Session(folder)


def test_what_is_opened_later_is_found_from_elsewhere(
    prefill_folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights for prompts and the chat template, by a path that was relative."""
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with_files(prefill_folder, tmp_path / "model", {"chat_template.jinja": template})
    monkeypatch.chdir(tmp_path)
    model = Model(ModelFolder.open("model"), threads=1, prefill="int8")
    monkeypatch.chdir("/")
    assert model.session.step(PROMPT, model.session.new_cache()).any()
    assert model.chat_template is not None


def test_weights_for_prompts_that_changed_after_the_start_are_refused(
    prefill_folder: ModelFolder, tmp_path: Path
) -> None:
    shutil.copytree(prefill_folder.path, tmp_path / "model")
    session = Session(ModelFolder.open(tmp_path / "model"), threads=1, prefill="int8")
    file = tmp_path / "model" / PREFILL_DATA_FILE
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(ModelFolderError, match="the file was changed"):
        session.step(PROMPT, session.new_cache())
    file.unlink()
    with pytest.raises(ModelFolderError, match="missing"):
        session.step(PROMPT, session.new_cache())
    assert session.step([1], session.new_cache()).any()
