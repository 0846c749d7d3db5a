"""Model folders are published whole or not at all, and replace nothing of anybody else's."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import gpt2_config, write_checkpoint

from pocketlm.export import external_data, leftovers, writing
from pocketlm.export.checkpoint import Checkpoint, open_checkpoint
from pocketlm.export.errors import CheckpointError, ModelFolderError, ResourceError, StorageError
from pocketlm.export.folder import MANIFEST, ModelFolder, describe_files
from pocketlm.export.leftovers import OLD
from pocketlm.export.manifest import (
    GRAPH_FILES,
    INT8_KV_DECODER,
    INT8_KV_PREFILL,
    REQUIRED_FILES,
    WRITTEN_FILES,
)
from pocketlm.export.observer import Observer
from pocketlm.export.publishing import Target, publishing
from pocketlm.export.writing import export_model
from pocketlm.quantize.run import precision_of

POSIX = pytest.mark.skipif(os.name != "posix", reason="locks and limits of POSIX")


@pytest.fixture
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    """The tiny checkpoint, open."""
    return open_checkpoint(tiny_checkpoint)


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
    ("error", "raised"),
    [
        (CheckpointError("bad tensor"), CheckpointError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (MemoryError(), ResourceError),
    ],
    ids=repr,
)
def test_nothing_is_published_or_left_when_interrupted(
    error: BaseException, raised: type[BaseException], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(raised):
        export_model(checkpoint, tmp_path / "out", observer=Observer(progress=raise_at_half(error)))
    assert names(tmp_path) == []


def test_an_existing_empty_folder_stays_empty_when_interrupted(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(KeyboardInterrupt):
        export_model(
            checkpoint,
            tmp_path / "out",
            observer=Observer(progress=raise_at_half(KeyboardInterrupt())),
        )
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == []


CHILD = """
import os, resource, signal, sys
from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.errors import PocketLMError
from pocketlm.export.observer import Observer
from pocketlm.export.writing import export_model

source, out, how = sys.argv[1:]
if how == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

def progress(done, total):
    if how == "kill" and 2 * done > total:
        os.kill(os.getpid(), signal.SIGKILL)

try:
    export_model(open_checkpoint(source), out, observer=Observer(progress=progress))
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
    with pytest.raises(StorageError, match=r"^/.*/out: found 0 B free, expected at least .* MB"):
        target = Target(tmp_path / "out")
        export_model(
            checkpoint, target, observer=Observer(progress=raise_at_half(AssertionError()))
        )
    assert names(tmp_path) == []


@pytest.mark.parametrize("out", [".", "..", "../here"])
def test_the_current_folder_is_not_replaced(
    out: str, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ModelFolderError, match="found the current folder or one around it"):
        export_model(checkpoint, out, observer=Observer(progress=raise_at_half(AssertionError())))
    assert names(tmp_path) == ["here"]


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


@pytest.mark.parametrize("damage", ["model.onnx", "tokenizer.json", "a manifest of anything"])
def test_force_replaces_a_model_folder_damaged_or_not(
    damage: str, checkpoint: Checkpoint, copy: Path
) -> None:
    (copy / damage).unlink(missing_ok=True)
    if damage not in REQUIRED_FILES:
        (copy / MANIFEST).write_text("{")
    (copy / ".DS_Store").write_text("what a file manager leaves in a folder")
    made = export_model(checkpoint, copy, force=True)
    made.verify(remembered=False)
    assert names(copy) == sorted([*made.files, MANIFEST])
    assert names(copy.parent) == ["copy"]


def test_force_replaces_no_file_that_an_export_did_not_write(
    checkpoint: Checkpoint, copy: Path
) -> None:
    (copy / "notes.txt").write_text("mine")
    (copy / "model.onnx").unlink()
    (copy / "model.onnx").mkdir()
    before = names(copy)
    with pytest.raises(ModelFolderError, match="copy: found model.onnx, notes.txt, which pocketlm"):
        export_model(
            checkpoint,
            copy,
            force=True,
            observer=Observer(progress=raise_at_half(AssertionError())),
        )
    assert names(copy) == before


def test_every_file_that_an_export_writes_is_known_as_such(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "in", gpt2_config(vocab_size=300))
    (source / "tokenizer_config.json").write_text('{"bos_token": "<|endoftext|>"}')
    (source / "chat_template.jinja").write_text("{{ messages[0].content }}")
    change = precision_of("int4", prefill=True)
    made = export_model(open_checkpoint(source), tmp_path / "out", change)
    assert made.files.keys() <= {*WRITTEN_FILES}
    calibrated = {GRAPH_FILES[name] for name in (INT8_KV_DECODER, INT8_KV_PREFILL)}
    assert {*WRITTEN_FILES} - made.files.keys() == calibrated


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "broken")], ids=repr)
def test_the_old_folder_stays_when_the_new_one_fails(
    error: BaseException, checkpoint: Checkpoint, copy: Path
) -> None:
    before = contents(copy)
    with pytest.raises((KeyboardInterrupt, StorageError)):
        export_model(checkpoint, copy, force=True, observer=Observer(progress=raise_at_half(error)))
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
    (copy / "config.json").write_text("old")
    rename = os.rename

    def interrupted(source: Path, target: Path) -> None:
        rename(source, target)
        if target == copy:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_model(checkpoint, copy, force=True)
    ModelFolder.open(copy).verify(remembered=False)
    assert names(copy.parent) == ["copy"]


@pytest.mark.parametrize("force", [True, False])
def test_an_old_folder_that_a_killed_export_moved_aside_is_brought_back(
    force: bool, checkpoint: Checkpoint, copy: Path
) -> None:
    """Killed between its two renames, an export leaves nothing at ``out`` but loses nothing."""
    before = contents(copy)
    copy.rename(name_of_the_dead(copy, OLD))
    name_of_the_dead(copy).mkdir()
    with pytest.raises((KeyboardInterrupt, ModelFolderError)):
        export_model(
            checkpoint,
            copy,
            force=force,
            observer=Observer(progress=raise_at_half(KeyboardInterrupt())),
        )
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


# What comes meanwhile ---------------------------------------------------------------------------

Export = Callable[..., ModelFolder]


def at_half(act: Callable[[], object]) -> Callable[[int, int], None]:
    """A progress callback that acts once, in the middle of the weights."""
    acts = [act]

    def progress(done: int, total: int) -> None:
        if 2 * done > total and acts:
            acts.pop()()

    return progress


@pytest.fixture(params=["export", "quantize"])
def export(request: pytest.FixtureRequest, checkpoint: Checkpoint, tiny_folder: ModelFolder) -> Any:
    """Both ways to a model folder that are not traced."""
    if request.param == "export":
        return lambda out, **options: export_model(checkpoint, out, **options)
    return lambda out, **options: export_model(tiny_folder, out, precision_of("int8"), **options)


def write_notes(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "notes.txt").write_text("mine")


@pytest.mark.parametrize("force", [False, True])
def test_what_appeared_meanwhile_is_not_replaced(
    force: bool, export: Export, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    told = (
        r"out: found a folder that is not empty \(notes.txt\), which was not there when this began"
    )
    with pytest.raises(ModelFolderError, match=told):
        export(out, force=force, observer=Observer(progress=at_half(lambda: write_notes(out))))
    assert contents(out) == {"notes.txt": b"mine"}
    out = tmp_path / "file"
    with pytest.raises(ModelFolderError, match="file: found a file, which was not there"):
        mine = at_half(lambda: out.write_text("mine"))
        export(out, force=force, observer=Observer(progress=mine))
    assert out.read_text() == "mine"
    assert names(tmp_path) == ["file", "out"]


def test_an_empty_folder_that_appeared_meanwhile_is_no_loss(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    export_model(checkpoint, out, observer=Observer(progress=at_half(out.mkdir))).verify()
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize(("force", "taken"), [(False, False), (True, False), (True, True)])
def test_of_two_exports_to_one_place_the_second_is_refused(
    force: bool, taken: bool, export: Export, copy: Path, tiny_folder: ModelFolder
) -> None:
    """Whatever both found there, and with --force too: only that may be replaced."""
    if not taken:
        shutil.rmtree(copy)
    first: list[ModelFolder] = []
    progress = at_half(
        lambda: first.append(export_model(tiny_folder, copy, precision_of("int4"), force=force))
    )
    with pytest.raises(ModelFolderError, match="found (a folder that is not empty|another folder)"):
        export(copy, force=force, observer=Observer(progress=progress))
    first[0].verify(remembered=False)
    assert ModelFolder.open(copy).manifest == first[0].manifest
    assert names(copy.parent) == ["copy"]


@pytest.mark.parametrize(
    "change, message",
    [
        ("a file more", r"changes in it since this began \(notes.txt\), expected what was there"),
        ("a file less", r"changes in it since this began \(model.onnx\)"),
        ("a file changed", r"changes in it since this began \(config.json\)"),
        ("another", "another folder than when this began"),
    ],
)
def test_force_replaces_only_the_model_folder_that_was_there(
    change: str, message: str, checkpoint: Checkpoint, copy: Path
) -> None:
    def act() -> None:
        if change == "a file more":
            write_notes(copy)
        elif change == "a file less":
            (copy / "model.onnx").unlink()
        elif change == "a file changed":
            (copy / "config.json").write_text("edited")
        else:  # the same files in another folder
            copy.rename(copy.parent / "moved")
            shutil.copytree(copy.parent / "moved", copy)
            shutil.rmtree(copy.parent / "moved")
        after.update(contents(copy))

    after: dict[str, bytes] = {}
    with pytest.raises(ModelFolderError, match=message):
        export_model(checkpoint, copy, force=True, observer=Observer(progress=at_half(act)))
    assert contents(copy) == after
    assert names(copy.parent) == ["copy"]


def test_force_needs_nothing_to_replace(checkpoint: Checkpoint, copy: Path) -> None:
    gone = at_half(lambda: shutil.rmtree(copy))
    export_model(checkpoint, copy, force=True, observer=Observer(progress=gone)).verify()
    assert names(copy.parent) == ["copy"]


def test_what_came_between_the_two_renames_is_not_hidden_nor_replaced(
    checkpoint: Checkpoint, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(copy)
    rename = os.rename

    def watched(source: Path, target: Path) -> None:
        rename(source, target)
        if source == copy:
            write_notes(copy)

    monkeypatch.setattr(os, "rename", watched)
    with pytest.raises(ModelFolderError, match="notes.txt"):
        export_model(checkpoint, copy, force=True)
    assert contents(copy) == {"notes.txt": b"mine"}
    kept, _ = sorted(copy.parent.iterdir(), reverse=True)
    assert kept.name.startswith("copy.before-") and contents(kept) == before


def test_a_target_remembers_what_was_there_before_the_export_began(
    checkpoint: Checkpoint, tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    target = Target(tmp_path / "out", force=True)
    shutil.copytree(tiny_folder.path, tmp_path / "out")  # while a download took its hour, say
    with pytest.raises(ModelFolderError, match="which was not there when this began"):
        export_model(checkpoint, target)
    ModelFolder.open(tmp_path / "out").verify(remembered=False)


# What others took away --------------------------------------------------------------------------


@pytest.mark.parametrize("lost", ["tokenizer.json", "model.onnx_data", MANIFEST, None])
def test_what_is_incomplete_when_it_is_to_be_published_is_not(
    lost: str | None, tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    with (
        pytest.raises(StorageError, match="out: found what was written for it changed"),
        publishing(tmp_path / "out") as partial,
    ):
        shutil.copytree(tiny_folder.path, partial, dirs_exist_ok=True)
        shutil.rmtree(partial) if lost is None else (partial / lost).unlink()
    assert names(tmp_path) == []


def test_weights_that_are_cut_before_they_are_listed_are_not_published(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a disk that says it wrote and did not."""

    def cut(partial: Path, known: Any) -> Any:
        os.truncate(partial / "model.onnx_data", 5000)
        return describe_files(partial, known)

    monkeypatch.setattr(writing, "describe_files", cut)
    with pytest.raises(StorageError, match="model.onnx_data: found 5000 bytes, expected"):
        export_model(checkpoint, tmp_path / "out")
    assert names(tmp_path) == []


# What is left -----------------------------------------------------------------------------------


def name_of_the_dead(target: Path, end: str = "") -> Path:
    """As if a process of this host, which is gone, had made it."""
    name = leftovers.new_name(target, end).name
    return target.with_name(name.replace(f"-{os.getpid()}-", "-999999999-"))


def name_of_another_host(target: Path) -> Path:
    name = leftovers.new_name(target).name.partition(".partial-")
    return target.with_name(f"{name[0]}.partial-01234567{name[2][8:]}")


@POSIX
def test_the_work_of_a_living_process_is_left_alone(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nothing but its name: there are disks on which locks do nothing."""
    monkeypatch.setattr(time, "time", lambda: 1e12)  # however long it takes
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        start = leftovers._process(other.pid)[1]
        mine = f"-{os.getpid()}-{leftovers._process(os.getpid())[1]}-"
        name = leftovers.new_name(tmp_path / "out").name
        partial = tmp_path / name.replace(mine, f"-{other.pid}-{start}-")
        old = tmp_path / f"{partial.name}-old"
        for folder in (partial, old):
            write_notes(folder)
        export_model(checkpoint, tmp_path / "out")
        assert names(tmp_path) == sorted([partial.name, old.name, "out"])
        other.kill()
        other.wait()
    export_model(checkpoint, tmp_path / "out", force=True)
    assert names(tmp_path) == sorted([old.name, "out"]), "a file of others in an old folder stays"


@POSIX
def test_a_process_that_took_the_number_of_another_is_not_it(tmp_path: Path) -> None:
    name = leftovers.new_name(tmp_path / "out").name
    start = leftovers._process(os.getpid())[1]
    if not start:
        pytest.skip("this system does not tell when a process began")
    assert leftovers.is_alive(tmp_path / name) is True
    assert leftovers.is_alive(tmp_path / name.replace(f"-{start}-", "-1-")) is False


def test_what_another_host_writes_is_left_alone_until_it_is_idle_for_a_day(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = tmp_path / ".out.partial-0123456789ab"  # as earlier versions named them
    for folder in (name_of_another_host(tmp_path / "out"), unknown):
        write_notes(folder)
    export_model(checkpoint, tmp_path / "out")
    assert len(names(tmp_path)) == 3
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + leftovers.IDLE_SECONDS + 60)
    os.utime(unknown / "notes.txt", (now, now + leftovers.IDLE_SECONDS))  # somebody writes
    export_model(checkpoint, tmp_path / "out", force=True)
    assert names(tmp_path) == sorted([unknown.name, "out"])


def test_an_old_folder_that_is_half_removed_is_not_brought_back(
    checkpoint: Checkpoint, copy: Path
) -> None:
    (copy / MANIFEST).unlink()  # it goes first
    copy.rename(name_of_the_dead(copy, OLD))
    export_model(checkpoint, copy)
    assert names(copy.parent) == ["copy"]
