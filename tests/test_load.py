"""``pocketlm.load``: a folder in place, a checkpoint exported once, and what is cached."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import gpt2_config, write_checkpoint
from command_line import Run, assert_refused

import pocketlm
from pocketlm.export import leftovers
from pocketlm.export.errors import ModelFolderError
from pocketlm.export.folder import ModelFolder
from pocketlm.models import store

Model = pocketlm.Model


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint of this test alone, since what is cached depends on its path."""
    return write_checkpoint(tmp_path / "source", gpt2_config())


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POCKETLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def counting() -> tuple[list[Path], pocketlm.Observer]:
    """A list that grows with every export, and the observer that makes it grow."""
    exports: list[Path] = []
    return exports, pocketlm.Observer(plan=lambda plan: exports.append(plan.out))


def test_a_model_folder_is_opened_in_place(tiny_folder: ModelFolder) -> None:
    exports, observer = counting()
    model = pocketlm.load(tiny_folder.path, threads=1, observer=observer)
    assert (model.folder.path, exports) == (tiny_folder.path, [])
    assert pocketlm.load(str(tiny_folder.path), precision="fp32").folder.path == tiny_folder.path


def test_another_precision_than_the_folders_is_refused(tiny_folder: ModelFolder) -> None:
    message = "found a model folder in fp32, expected int4; .* pocketlm quantize"
    with pytest.raises(pocketlm.ModelFolderError, match=message):
        pocketlm.load(tiny_folder.path, precision="int4")


def test_a_checkpoint_is_exported_once_for_each_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POCKETLM_CACHE", str(tmp_path / "cache"))
    checkpoint = write_checkpoint(tmp_path / "source", gpt2_config())
    exports, observer = counting()
    for precision in ("fp32", "int8", "fp32", None):
        model = pocketlm.load(checkpoint, precision=precision, threads=1, observer=observer)
        assert model.folder.manifest.precision.name == (precision or "int8")
        assert model.generate("a", max_tokens=2).token_ids
    assert len(exports) == len(set(exports)) == 2
    assert all(out.is_relative_to(tmp_path / "cache") for out in exports)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokenizer": "x"}, "tokenizer is 'x' for a model folder, expected it only for a ch"),
        ({"revision": "v2"}, "revision is 'v2' for a model folder, expected it only for one"),
        ({"keep_download": True}, "keep_download is given for a model folder, expected it only"),
    ],
)
def test_an_option_that_does_nothing_for_a_model_folder_is_refused(
    tiny_folder: ModelFolder, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(pocketlm.RequestError, match=message):
        pocketlm.load(tiny_folder.path, **options)
    assert pocketlm.load(tiny_folder.path, offline=True).folder.path == tiny_folder.path


@pytest.mark.parametrize("precision", ["", "int3"])
def test_an_unknown_precision_is_refused_with_those_there_are(
    tiny_folder: ModelFolder, precision: str
) -> None:
    for model in ("demo", tiny_folder.path):
        with pytest.raises(pocketlm.RequestError, match=f"is '{precision}', expected one of fp32"):
            pocketlm.load(model, precision=precision)


@pytest.mark.parametrize("path", [None, "demo"])
def test_there_is_no_download_of_the_demo_to_keep(path: str | None) -> None:
    with pytest.raises(pocketlm.RequestError, match="keep_download is given for the demo model"):
        pocketlm.load(path, keep_download=True)


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(pocketlm.PocketLMError, match="nowhere"):
        pocketlm.load(tmp_path / "nowhere")


def test_a_moved_renamed_or_copied_checkpoint_finds_its_export(
    checkpoint: Path, own_cache: Path, tmp_path: Path
) -> None:
    exports, observer = counting()
    first = pocketlm.load(checkpoint, observer=observer).folder.path
    copy = shutil.copytree(checkpoint, tmp_path / "a copy")
    moved = checkpoint.rename(tmp_path / "Llama-3.2-1B")
    for place in (copy, moved, copy):
        assert pocketlm.load(place, observer=observer).folder.path == first
    assert len(exports) == 1
    (entry,) = store.entries(own_cache)
    assert (entry.name, entry.source) == ("source", str(copy))  # where it was found again first


@pytest.mark.parametrize("name", [".hidden", "..", "Llama-3.2-1B"])
def test_whatever_its_folder_is_called_it_is_exported_once_and_listed(
    checkpoint: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    exports, observer = counting()
    if name == "..":
        (checkpoint / "below").mkdir()
        monkeypatch.chdir(checkpoint / "below")
    else:
        checkpoint.rename(checkpoint.with_name(name))
        monkeypatch.chdir(checkpoint.parent)
    for _ in range(2):
        pocketlm.load(name, observer=observer)
    assert len(exports) == 1
    (entry,) = store.entries(own_cache)
    assert (entry.kind, entry.precision) == ("model", "int8")
    assert entry.name == {".hidden": "hidden", "..": "source"}.get(name, name)


def test_a_checkpoint_that_a_frozen_application_unpacks_is_exported_once(
    checkpoint: Path, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exports, observer = counting()
    for start in (1, 2):
        unpacked = shutil.copytree(checkpoint, tmp_path / f"_MEI{start}" / "model")
        for file in unpacked.iterdir():
            os.utime(file, (start, start))
        monkeypatch.setattr(sys, "_MEIPASS", str(unpacked.parent), raising=False)
        pocketlm.load(unpacked, observer=observer)
    assert len(exports) == 1
    pocketlm.load(checkpoint, observer=observer)  # not the application's
    assert len(exports) == 2


def test_checkpoints_of_one_name_are_told_apart_in_the_list_and_removed_one_by_one(
    checkpoint: Path, own_cache: Path, tmp_path: Path, run: Run
) -> None:
    other = write_checkpoint(tmp_path / "other" / "source", gpt2_config(vocab_size=98))
    for place in (checkpoint, other):
        pocketlm.load(place)
    rows = run("list").out.splitlines()[1:3]
    assert {row.split()[-1] for row in rows} == {str(checkpoint), str(other)}
    ended = run("remove", "source")
    assert_refused(ended, f"found models of 2 checkpoints.*{other} or {checkpoint}, or an ID")
    assert run("remove", other).out.startswith("removed source (int8): ")
    (entry,) = store.entries(own_cache)
    assert entry.source == str(checkpoint)
    pocketlm.load(checkpoint, precision="fp32")
    assert run("remove", entry.id).out.startswith("removed source (int8): ")
    assert run("remove", "source").out.startswith("removed source (fp32): ")
    assert store.entries(own_cache) == []
    assert (other / "config.json").is_file()


def test_a_checkpoint_called_demo_is_not_the_demo(
    checkpoint: Path, own_cache: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    named = checkpoint.rename(tmp_path / "demo")
    assert pocketlm.load("demo").session.shape.vocab_size == 97
    assert "comes with pocketlm" in run("list").out
    monkeypatch.chdir(named)
    assert_refused(run("remove", "demo"), "demo: found nothing of this name")
    assert run("remove", named).out.startswith("removed demo (int8)")
    assert named.is_dir()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_changed_file_makes_a_new_export(checkpoint: Path, own_cache: Path, name: str) -> None:
    exports, observer = counting()
    pocketlm.load(checkpoint, observer=observer)
    changed = (checkpoint / name).stat().st_mtime_ns + 1_000_000_000
    os.utime(checkpoint / name, ns=(changed, changed))
    pocketlm.load(checkpoint, observer=observer)
    assert len(set(exports)) == 2


def test_other_generation_defaults_make_a_new_export(checkpoint: Path, own_cache: Path) -> None:
    exports, observer = counting()
    for end in (96, 96, [95, 96]):
        defaults = json.dumps({"eos_token_id": end})
        (checkpoint / "generation_config.json").write_text(defaults)
        model = pocketlm.load(checkpoint, observer=observer)
    assert model.end_ids == {95, 96}
    assert len(set(exports)) == 2


def test_an_observer_hears_of_the_export(checkpoint: Path, own_cache: Path) -> None:
    heard: list[Any] = []
    observer = pocketlm.Observer(progress=lambda *event: heard.append(event))
    model = pocketlm.load(checkpoint, observer=observer)
    assert heard[-1] == (model.folder.weights_bytes, model.folder.weights_bytes)


def test_an_observer_hears_instead_of_stderr_that_there_is_no_cache(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("where the cache should be")
    monkeypatch.setenv("POCKETLM_CACHE", str(tmp_path / "file" / "cache"))
    notes: list[str] = []
    pocketlm.load(checkpoint, observer=pocketlm.Observer(note=notes.append))
    (note,) = notes
    assert note.startswith(f"no cache: {tmp_path / 'file' / 'cache'} cannot be written")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing", "manifest"])
def test_a_damaged_export_in_the_cache_is_made_again(
    checkpoint: Path, own_cache: Path, damage: str
) -> None:
    exports, observer = counting()
    model = pocketlm.load(checkpoint, observer=observer)
    expected = model.generate("the", temperature=0, max_tokens=5).token_ids
    file = model.folder.path / ("pocketlm.json" if damage == "manifest" else "model.onnx_data")
    content = bytearray(file.read_bytes())
    content[100] ^= 255
    file.unlink()
    if damage != "missing":
        file.write_bytes(content[:-1] if damage == "cut" else content)
    again = pocketlm.load(checkpoint, observer=observer)
    assert again.generate("the", temperature=0, max_tokens=5).token_ids == expected
    assert len(exports) == 2 and exports[0] == exports[1]


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk on which locks are granted and do nothing."""
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", lambda handle, kind: None)


def test_where_locks_do_nothing_two_exports_at_once_leave_one_sound_model(
    checkpoint: Path, own_cache: Path, no_locks: None
) -> None:
    together = threading.Barrier(2, timeout=60)
    observer = pocketlm.Observer(plan=lambda plan: together.wait())

    def load(_: int) -> ModelFolder:
        return pocketlm.load(checkpoint, observer=observer).folder

    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(load, range(2))
    assert one == two
    one.verify(remembered=False)
    assert list((own_cache / "models").iterdir()) == [one.path]


def test_what_is_being_written_is_not_removed_where_locks_do_nothing(
    own_cache: Path, no_locks: None
) -> None:
    partial = leftovers.new_name(own_cache / "models" / "x-int8-0123456789abcdef")
    partial.mkdir(parents=True)
    (entry,) = store.entries(own_cache)
    assert entry.kind == store.UNFINISHED
    with pytest.raises(pocketlm.RequestError, match="found a process that is writing"):
        store.remove(own_cache, [entry], print)
    assert partial.is_dir()


def test_a_cached_export_opens_without_the_extra(checkpoint: Path, own_cache: Path) -> None:
    expected = pocketlm.load(checkpoint).folder.path
    program = """
import sys
sys.modules["onnx_ir"] = None
import pocketlm
print(pocketlm.load(sys.argv[1]).folder.path)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, checkpoint], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(expected)


def test_an_unknown_precision_is_refused(checkpoint: Path, own_cache: Path) -> None:
    with pytest.raises(pocketlm.PocketLMError, match="int3"):
        pocketlm.load(checkpoint, precision="int3")


def test_without_a_writable_cache_a_temporary_folder_is_used_and_removed(
    checkpoint: Path, tmp_path: Path
) -> None:
    """And that is said, once for all models of a process."""
    (tmp_path / "file").write_text("where the cache should be")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    program = """
import sys
import pocketlm
model = pocketlm.load(sys.argv[1])
print(model.folder.path)
model.generate("a", max_tokens=2)
assert pocketlm.load(sys.argv[1]).folder.path == model.folder.path
pocketlm.load(sys.argv[1], precision="fp32")
"""
    done = subprocess.run(
        [sys.executable, "-c", program, checkpoint],
        env=os.environ
        | {"POCKETLM_CACHE": str(tmp_path / "file" / "cache"), "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert temporary in Path(done.stdout.strip()).parents
    assert list(temporary.iterdir()) == []
    assert done.stderr.count("\n") == 1
    assert f"no cache: {tmp_path / 'file' / 'cache'} cannot be written" in done.stderr
    assert "made again at every start - name a folder to keep it in POCKETLM_CACHE" in done.stderr


def test_exporting_without_its_extra_names_the_command(checkpoint: Path, own_cache: Path) -> None:
    program = """
import sys
sys.modules["onnx_ir"] = None
import pocketlm
try:
    pocketlm.load(sys.argv[1])
except pocketlm.MissingExtraError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, checkpoint], capture_output=True, text=True, check=True
    )
    assert "exporting a checkpoint needs the package 'onnx_ir'" in done.stdout
    assert 'pip install "pocketlm[export]"' in done.stdout


def test_what_was_exported_opens_without_the_extra(tiny_folder: ModelFolder) -> None:
    program = """
import sys
for name in ("onnx", "onnx_ir"):
    sys.modules[name] = None
import pocketlm
print(pocketlm.load(sys.argv[1]).generate("a", max_tokens=2).finish_reason)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, tiny_folder.path],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "length\n"


def test_a_damaged_file_is_found_when_the_model_is_opened(
    tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_folder.path, copy)
    data = bytearray((copy / "model.onnx_data").read_bytes())
    data[100] ^= 1
    (copy / "model.onnx_data").write_bytes(data)
    with pytest.raises(ModelFolderError, match="model.onnx_data: found SHA-256"):
        pocketlm.load(copy)


def test_loading_takes_the_time_it_says(tiny_folder: ModelFolder) -> None:
    started = time.perf_counter()
    model = pocketlm.load(tiny_folder.path)
    assert 0 < model.load_seconds <= time.perf_counter() - started


def test_a_foreign_graph_is_refused_as_such(tiny_folder: ModelFolder, tmp_path: Path) -> None:
    shutil.copy(tiny_folder.path / "model.onnx", tmp_path)
    with pytest.raises(pocketlm.ModelFolderError, match="found an ONNX file without pocketlm.json"):
        pocketlm.load(tmp_path)
    with pytest.raises(pocketlm.ModelFolderError, match=r"model\.onnx: found an ONNX file without"):
        pocketlm.load(tmp_path / "model.onnx")


# Asynchronously -----------------------------------------------------------------------------------


def test_loading_lets_the_event_loop_go_on_and_tells_it_how_far_it_is(
    tiny_checkpoint: Path, own_cache: Path
) -> None:
    told: list[tuple[str, int, int]] = []
    threads = set()
    beats = 0

    def on_progress(*progress: Any) -> None:
        told.append(progress)
        threads.add(threading.get_ident())

    async def beat() -> None:
        nonlocal beats
        while True:
            beats += 1
            await asyncio.sleep(0)

    async def load() -> pocketlm.Model:
        beating = asyncio.create_task(beat())
        model = await pocketlm.load_async(
            tiny_checkpoint, on_progress=on_progress, precision="fp32", threads=1
        )
        await asyncio.sleep(0)
        beating.cancel()
        return model

    model = asyncio.run(load())
    assert model.generate("a", max_tokens=2).token_ids
    assert threads == {threading.get_ident()} and beats > 10
    stages = [stage for stage, _, _ in told]
    assert stages[-2:] == ["open", "open"] and set(stages) == {"export", "open"}
    assert [done for _, done, _ in told] == sorted(d for s, d, _ in told if s == "export") + [0, 1]


def test_what_goes_wrong_reaches_who_awaits() -> None:
    with pytest.raises(pocketlm.RequestError, match="precision is 'int5'"):
        asyncio.run(pocketlm.load_async(precision="int5"))
    with pytest.raises(pocketlm.RequestError, match="threads is 0"):
        asyncio.run(pocketlm.load_async(threads=0))


def test_a_loop_may_ask_for_whatever_load_takes(tiny_folder: ModelFolder) -> None:
    """An option of the one that the other does not pass on is a TypeError."""
    names = [*inspect.signature(pocketlm.load).parameters][1:]
    options = {name: inspect.signature(pocketlm.load).parameters[name].default for name in names}
    options |= {"threads": 1, "prefix_cache_bytes": 0}
    model = asyncio.run(pocketlm.load_async(tiny_folder.path, **options))
    assert model.session.threads == 1
    model.generate([5] * 40, max_tokens=1)
    assert len(model.prefix_cache) == 0
