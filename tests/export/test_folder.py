"""Model folders are published whole or not at all, and what is wrong with one is said by name."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import write_checkpoint, write_safetensors

import pocketlm
from pocketlm.export import external_data, folder
from pocketlm.export.checkpoint import Checkpoint, open_checkpoint
from pocketlm.export.errors import CheckpointError, ModelFolderError, StorageError
from pocketlm.export.folder import MANIFEST, ModelFolder, publishing
from pocketlm.export.run import export_model

POSIX = pytest.mark.skipif(os.name != "posix", reason="locks and limits of POSIX")


@pytest.fixture
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    """The tiny checkpoint, open."""
    return open_checkpoint(tiny_checkpoint)


@pytest.fixture
def copy(tiny_folder: ModelFolder, tmp_path: Path) -> Path:
    """A model folder that a test may damage."""
    return Path(shutil.copytree(tiny_folder.path, tmp_path / "copy"))


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def raise_at_half(error: BaseException) -> Callable[[int, int], None]:
    """A progress callback that interrupts in the middle of the weights."""

    def progress(done: int, total: int) -> None:
        if 2 * done > total:
            raise error

    return progress


# Publishing -------------------------------------------------------------------------------------


def test_out_appears_with_its_parents_and_opens(checkpoint: Checkpoint, tmp_path: Path) -> None:
    out = tmp_path / "a" / "b" / "out"
    made = export_model(checkpoint, out)
    made.verify(remembered=False)
    assert names(out.parent) == ["out"]
    assert names(out) == sorted([*made.files, MANIFEST])


def test_out_may_be_relative_and_empty(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    export_model(checkpoint, "out")
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize(
    "error", [CheckpointError("bad tensor"), KeyboardInterrupt(), MemoryError()], ids=repr
)
def test_nothing_is_published_or_left_when_interrupted(
    error: BaseException, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(type(error)):
        export_model(checkpoint, tmp_path / "out", progress=raise_at_half(error))
    assert names(tmp_path) == []


def test_an_existing_empty_folder_stays_empty_when_interrupted(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(KeyboardInterrupt):
        export_model(checkpoint, tmp_path / "out", progress=raise_at_half(KeyboardInterrupt()))
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == []


CHILD = """
import os, resource, signal, sys
from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.errors import PocketLMError
from pocketlm.export.run import export_model

source, out, how = sys.argv[1:]
if how == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

def progress(done, total):
    if how == "kill" and 2 * done > total:
        os.kill(os.getpid(), signal.SIGKILL)

try:
    export_model(open_checkpoint(source), out, progress=progress)
except PocketLMError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def export_in_child(source: Path, out: Path, how: str) -> subprocess.CompletedProcess[str]:
    """Exports in another process that is killed half-way, or may not write more than 50 kB."""
    command = [sys.executable, "-c", CHILD, str(source), str(out), how]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@POSIX
def test_what_a_killed_export_leaves_is_no_model_and_is_collected(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out[1]"  # a name that means something else to glob
    done = export_in_child(tiny_checkpoint, out, "kill")
    assert done.returncode == -signal.SIGKILL, done.stderr
    (leftover,) = tmp_path.iterdir()
    assert leftover != out
    with pytest.raises(ModelFolderError):
        ModelFolder.open(leftover)
    export_model(open_checkpoint(tiny_checkpoint), out)
    assert names(tmp_path) == ["out[1]"]


@POSIX
def test_the_work_of_a_living_export_is_not_collected(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    with publishing(tmp_path / "out") as partial:
        (partial / "file").write_text("in the works")
        export_model(checkpoint, tmp_path / "out")
        assert (partial / "file").read_text() == "in the works"


@POSIX
def test_a_file_that_may_not_grow_is_a_storage_error_and_leaves_nothing(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    done = export_in_child(tiny_checkpoint, tmp_path / "out", "limit")
    assert done.returncode == 1
    assert done.stderr.startswith("StorageError: ")
    assert "out: cannot write (File too large)" in done.stderr
    assert names(tmp_path) == []


class FullDisk:
    """A file on a disk that is full after some bytes."""

    def __init__(self, *arguments: Any) -> None:
        self.stream = open(*arguments)
        self.left = 50_000

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stream.close()

    def write(self, data: Any) -> None:
        self.left -= memoryview(data).nbytes
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.stream.write(data)


def test_a_disk_that_fills_up_is_a_storage_error_and_leaves_nothing(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external_data, "open", FullDisk, raising=False)
    with pytest.raises(StorageError, match=r"out: cannot write \(No space left on device\)"):
        export_model(checkpoint, tmp_path / "out")
    assert names(tmp_path) == []


def test_too_little_free_space_is_noticed_before_writing(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil._ntuple_diskusage(10**9, 10**9, 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(StorageError, match=r"out: found 0 B free, expected at least .* MB; free"):
        export_model(checkpoint, tmp_path / "out", progress=raise_at_half(AssertionError()))
    assert names(tmp_path) == []


def test_a_parent_that_is_a_file_is_a_storage_error(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match="cannot write"):
        export_model(checkpoint, tmp_path / "file" / "out")
    assert (tmp_path / "file").read_text() == "mine"


# Taken names ------------------------------------------------------------------------------------


@pytest.mark.parametrize("force", [False, True])
def test_a_file_at_out_is_refused(force: bool, checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ModelFolderError, match="out: found a file, expected a folder"):
        export_model(checkpoint, tmp_path / "out", force=force)
    assert (tmp_path / "out").read_text() == "mine"


def test_a_folder_that_is_not_empty_is_refused(checkpoint: Checkpoint, copy: Path) -> None:
    before = contents(copy)
    with pytest.raises(ModelFolderError, match=r"copy: found a folder .*not empty.*--force"):
        export_model(checkpoint, copy)
    assert contents(copy) == before


def test_force_replaces_no_folder_but_a_model_folder(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(ModelFolderError, match="found files that pocketlm did not write"):
        export_model(checkpoint, tmp_path / "out", force=True)
    assert contents(tmp_path / "out") == {"thesis.txt": b"mine"}


def test_force_replaces_a_model_folder_damaged_or_not(checkpoint: Checkpoint, copy: Path) -> None:
    (copy / "model.onnx").unlink()
    (copy / "left.from.before").write_text("old")
    made = export_model(checkpoint, copy, force=True)
    made.verify(remembered=False)
    assert "left.from.before" not in names(copy)
    assert names(copy.parent) == ["copy"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "broken")], ids=repr)
def test_the_old_folder_stays_when_the_new_one_fails(
    error: BaseException, checkpoint: Checkpoint, copy: Path
) -> None:
    before = contents(copy)
    with pytest.raises((KeyboardInterrupt, StorageError)):
        export_model(checkpoint, copy, force=True, progress=raise_at_half(error))
    assert contents(copy) == before
    assert names(copy.parent) == ["copy"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "broken")], ids=repr)
def test_the_old_folder_comes_back_when_the_last_rename_fails(
    error: BaseException, checkpoint: Checkpoint, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(copy)
    rename = os.rename
    calls = []

    def failing(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise error
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises((KeyboardInterrupt, StorageError)):
        export_model(checkpoint, copy, force=True)
    assert len(calls) == 3
    assert contents(copy) == before
    assert names(copy.parent) == ["copy"]


def test_ctrl_c_after_the_last_rename_keeps_the_new_folder(
    checkpoint: Checkpoint, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copy / "left.from.before").write_text("old")
    rename = os.rename

    def interrupted(source: Path, target: Path) -> None:
        rename(source, target)
        if target == copy:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_model(checkpoint, copy, force=True)
    ModelFolder.open(copy).verify(remembered=False)
    assert "left.from.before" not in names(copy)


@pytest.mark.parametrize("force", [True, False])
def test_an_old_folder_that_a_killed_export_moved_aside_is_brought_back(
    force: bool, checkpoint: Checkpoint, copy: Path
) -> None:
    """Killed between its two renames, an export leaves nothing at ``out`` but loses nothing."""
    before = contents(copy)
    copy.rename(copy.parent / ".copy.partial-0123456789ab-old")
    (copy.parent / ".copy.partial-ba9876543210").mkdir()
    with pytest.raises((KeyboardInterrupt, ModelFolderError)):
        export_model(checkpoint, copy, force=force, progress=raise_at_half(KeyboardInterrupt()))
    assert contents(copy) == before
    export_model(checkpoint, copy, force=True)
    assert names(copy.parent) == ["copy"]


@POSIX
def test_a_link_to_a_folder_stays_a_link(
    checkpoint: Checkpoint, copy: Path, tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(copy)
    export_model(checkpoint, link, force=True)
    assert link.is_symlink()
    ModelFolder.open(copy).verify(remembered=False)
    assert names(tmp_path) == ["copy", "link"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "to-empty").symlink_to(tmp_path / "empty")
    export_model(checkpoint, tmp_path / "to-empty")
    assert names(tmp_path) == ["copy", "empty", "link", "to-empty"]
    ModelFolder.open(tmp_path / "empty")


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
    assert "found a file, expected a model folder" in message_of(tmp_path / "file")
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


# Manifests --------------------------------------------------------------------------------------

Manifest = dict[str, Any]


def set_at(*path: str, to: Any) -> Callable[[Manifest], None]:
    def change(manifest: Manifest) -> None:
        for name in path[:-1]:
            manifest = manifest[name]
        manifest[path[-1]] = to

    return change


def without(*path: str) -> Callable[[Manifest], None]:
    def change(manifest: Manifest) -> None:
        for name in path[:-1]:
            manifest = manifest[name]
        del manifest[path[-1]]

    return change


ENTRY = {"bytes": 1, "sha256": "0" * 64}
DAMAGES: dict[str, Callable[[Manifest], None]] = {
    "no version": without("format_version"),
    "a later version": set_at("format_version", to=2),
    "a version that is text": set_at("format_version", to="1"),
    "a version that is true": set_at("format_version", to=True),
    "no files": without("files"),
    "files in a list": set_at("files", to=["model.onnx", "model.onnx_data"]),
    "no graph": without("files", "model.onnx"),
    "no weights": without("files", "model.onnx_data"),
    "no tokenizer": without("files", "tokenizer.json"),
    "no generation config": without("files", "generation_config.json"),
    "an entry that is null": set_at("files", "model.onnx", to=None),
    "an entry without a size": set_at("files", "model.onnx", to={"sha256": "0" * 64}),
    "an entry without a hash": set_at("files", "model.onnx", to={"bytes": 1}),
    "a size that is text": set_at("files", "model.onnx", "bytes", to="10"),
    "a size that is wrong": set_at("files", "model.onnx", "bytes", to=10),
    "a negative size": set_at("files", "model.onnx", "bytes", to=-1),
    "a hash that is a number": set_at("files", "model.onnx", "sha256", to=7),
    "a path upwards": set_at("files", "../file", to=ENTRY),
    "an absolute path": set_at("files", "/etc/hostname", to=ENTRY),
    "a Windows path": set_at("files", "a\\b", to=ENTRY),
    "an empty name": set_at("files", "", to=ENTRY),
    "the name of the folder": set_at("files", ".", to=ENTRY),
    "the manifest itself": set_at("files", MANIFEST, to=ENTRY),
    "a name with a zero byte": set_at("files", "a\0b", to=ENTRY),
    "a name too long for a file": set_at("files", "a" * 5000, to=ENTRY),
    "a file that is not there": set_at("files", "more.bin", to=ENTRY),
    "no decoder": without("decoder"),
    "a decoder that is a list": set_at("decoder", to=[1]),
    "a decoder without a size": without("decoder", "num_heads"),
    "a decoder with one too many": set_at("decoder", "num_experts", to=1),
    "a size of zero": set_at("decoder", "num_layers", to=0),
    "a size beyond belief": set_at("decoder", "num_layers", to=1 << 40),
    "a fractional size": set_at("decoder", "head_size", to=8.0),
    "a size that is true": set_at("decoder", "kv_heads", to=True),
    "no precision": without("precision"),
    "a precision without a name": set_at("precision", to={}),
    "a precision that is text": set_at("precision", to="fp32"),
    "no architecture": without("architecture"),
    "no source": without("source"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_manifest_is_a_model_folder_error(name: str, copy: Path) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    DAMAGES[name](manifest)
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ModelFolderError, match="found|missing"):
        ModelFolder.open(copy)
    with pytest.raises(ModelFolderError, match="found|missing"):
        pocketlm.load(copy)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b"\xff\xfe",
        b'{"format_version": 1, "format_version": 1}',
        b'{"format_version": NaN}',
        b"[" * 100_000,
        b'{"format_version": 1e999}',
    ],
    ids=lambda data: str(data[:30]),
)
def test_a_manifest_that_is_no_json_object_is_a_model_folder_error(data: bytes, copy: Path) -> None:
    (copy / MANIFEST).write_bytes(data)
    with pytest.raises(ModelFolderError, match=MANIFEST):
        ModelFolder.open(copy)


# Verification -----------------------------------------------------------------------------------

FILES = [
    "model.onnx",
    "model.onnx_data",
    "config.json",
    "tokenizer.json",
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
    original = folder.file_sha256

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
    assert folder.cache_folder() is None
    assert verified_names(copy, hashed) == sorted(FILES)
