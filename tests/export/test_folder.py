"""What is wrong with a model folder is said by name, and no file of it changes unnoticed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from checkpoint_files import write_checkpoint, write_safetensors

import pocketlm
from pocketlm.export import folder, verified
from pocketlm.export.cache_folder import cache_folder
from pocketlm.export.errors import ModelFolderError
from pocketlm.export.folder import MANIFEST, ModelFolder


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


# Opening ----------------------------------------------------------------------------------------


def message_of(path: Path) -> str:
    """What opening ``path`` says."""
    with pytest.raises(ModelFolderError) as caught:
        ModelFolder.open(path)
    assert str(caught.value).startswith(f"{path}: found ")
    return str(caught.value)


def test_what_is_no_model_folder_is_named_for_what_it_is(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    assert f"found a checkpoint, expected a model folder with {MANIFEST}; export it first: " in (
        message_of(tiny_checkpoint)
    )
    assert "found nothing, expected a model folder; make one" in message_of(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    assert f"pocketlm export {tmp_path / 'file'} OUT" in message_of(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "found nothing, expected a model folder with" in message_of(tmp_path / "empty")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "decoder.onnx").write_bytes(b"")
    assert "foreign ONNX files are not opened" in message_of(tmp_path / "foreign")
    assert "found empty, file, foreign, expected" in message_of(tmp_path)


def test_a_sharded_checkpoint_is_recognised_too(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=2)
    assert "found a checkpoint" in message_of(tmp_path)


def test_weights_without_a_config_are_listed(tmp_path: Path) -> None:
    write_safetensors(tmp_path, {})
    assert "found model.safetensors, expected" in message_of(tmp_path)


# Verification -----------------------------------------------------------------------------------

FILES = [
    "model.onnx",
    "model.onnx_data",
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "genai_config.json",
]


def test_every_file_but_the_manifest_is_listed(tiny_folder: ModelFolder) -> None:
    assert sorted(tiny_folder.files) == sorted(FILES)
    assert names(tiny_folder.path) == sorted([*FILES, MANIFEST])


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_found_and_the_file_named(name: str, copy: Path) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    opened = ModelFolder.open(copy)  # sizes still agree
    with pytest.raises(ModelFolderError, match=rf"{name}: found SHA-256 .*the file was changed"):
        opened.verify()
    with pytest.raises(ModelFolderError, match=name):
        pocketlm.Model(opened, threads=1)


@pytest.mark.parametrize("name", FILES)
def test_a_file_missing_cut_off_or_too_long_is_named(name: str, copy: Path) -> None:
    opened = ModelFolder.open(copy)
    data = (copy / name).read_bytes()

    def refused(message: str) -> None:
        for check in (lambda: ModelFolder.open(copy), opened.verify):
            with pytest.raises(ModelFolderError, match=f"{name}: {message}"):
                check()

    (copy / name).write_bytes(data[:-1])
    refused(f"found {len(data) - 1} bytes, expected {len(data)} as listed")
    (copy / name).write_bytes(data + b"\0")
    refused(f"found {len(data) + 1} bytes, expected {len(data)} as listed")
    (copy / name).unlink()
    refused(f"missing, expected a file of {len(data)} bytes")
    (copy / name).mkdir()
    refused(f"missing, expected a file of {len(data)} bytes")


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Names of the files that are read to be hashed; the memory starts empty."""
    monkeypatch.setenv("POCKETLM_CACHE", str(tmp_path / "cache"))
    read: list[str] = []
    original = verified.file_sha256

    def recorded(file: Path) -> str:
        read.append(file.name)
        return original(file)

    monkeypatch.setattr(folder, "file_sha256", recorded)
    return read


def verified_names(path: Path, hashed: list[str], *, remembered: bool = True) -> list[str]:
    hashed.clear()
    ModelFolder.open(path).verify(remembered=remembered)
    return sorted(hashed)


def test_a_verified_file_is_not_read_again_until_it_changes(copy: Path, hashed: list[str]) -> None:
    assert verified_names(copy, hashed) == sorted(FILES)
    assert verified_names(copy, hashed) == []
    assert verified_names(copy, hashed, remembered=False) == sorted(FILES)
    os.utime(copy / "model.onnx", ns=(0, 0))
    assert verified_names(copy, hashed) == ["model.onnx"]
    data = (copy / "config.json").read_bytes()
    (copy / "config.json").unlink()
    (copy / "config.json").write_bytes(data)
    assert verified_names(copy, hashed) == ["config.json"]


def test_a_change_that_keeps_size_and_time_is_noticed(copy: Path, hashed: list[str]) -> None:
    verified_names(copy, hashed)
    file = copy / "model.onnx_data"
    before = file.stat()
    with open(file, "r+b") as stream:
        stream.write(b"\x55")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ModelFolderError, match="model.onnx_data: found SHA-256"):
        ModelFolder.open(copy).verify()


def test_a_wrong_file_is_wrong_every_time(copy: Path, hashed: list[str]) -> None:
    data = (copy / "config.json").read_bytes()
    (copy / "config.json").write_bytes(data.replace(b"gelu", b"relu"))
    for _ in range(2):
        with pytest.raises(ModelFolderError, match="config.json: found SHA-256"):
            ModelFolder.open(copy).verify()


@pytest.mark.parametrize("damage", [b"", b"\xff\xff", b"\n" * 100, b"1:2:3:4:5:6\n" * 3000])
def test_a_damaged_memory_only_costs_reading(
    damage: bytes, copy: Path, tmp_path: Path, hashed: list[str]
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "verified").write_bytes(damage)
    assert verified_names(copy, hashed) == sorted(FILES)
    assert verified_names(copy, hashed) == []
    assert len((tmp_path / "cache" / "verified").read_text().splitlines()) <= 1000


def test_a_cache_that_cannot_be_written_only_costs_reading(
    copy: Path, tmp_path: Path, hashed: list[str]
) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    assert verified_names(copy, hashed) == sorted(FILES)
    assert verified_names(copy, hashed) == sorted(FILES)
    assert (tmp_path / "cache").read_text() == "a file, not a folder"


def test_without_a_home_there_is_no_memory(
    copy: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("POCKETLM_CACHE")
    monkeypatch.setattr(Path, "home", no_home)
    assert cache_folder() is None
    assert verified_names(copy, hashed) == sorted(FILES)
