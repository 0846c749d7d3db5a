"""Models of the hub behind ``load`` and the command line: cached, shared, offline, removed.

Level: end to end, from a repository on loopback to text. The requests themselves are tested in
tests/export/test_hub.py.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import gpt2_config, gpt2_tensors, write_checkpoint, write_tokenizer
from hub_server import INFO, Fault, HubServer
from llama_checkpoints import llama_config, llama_tensors

import pocketlm
from pocketlm import cli
from pocketlm.commands.progress import shown
from pocketlm.export.folder import MANIFEST
from pocketlm.export.lock import locked
from pocketlm.models import making, store
from pocketlm.models.reference import find_reference

NAME = "acme/tiny-gpt2"
WEIGHTS = "model.safetensors"
DEMO_LINE = "demo: comes with pocketlm; exported to the cache when it first runs\n"
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 5}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POCKETLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Names of the hub are not to meet folders of the checkout."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def commit(hub_server: HubServer, tiny_checkpoint: Path) -> str:
    """The tiny checkpoint is on the hub, at this commit of "main"."""
    return hub_server.add(NAME, tiny_checkpoint)


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Calls the command line in this process: (exit code, stdout, stderr)."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        assert isinstance(ended.value.code, int)
        return ended.value.code, *capsys.readouterr()

    return call


def counting() -> tuple[list[Path], pocketlm.Observer]:
    """A list that grows with every export, and the observer that makes it grow."""
    exports: list[Path] = []
    return exports, pocketlm.Observer(plan=lambda plan: exports.append(plan.out))


def text(model: pocketlm.Model) -> str:
    return model.generate("the sea", **GREEDY).text


def requests(hub_server: HubServer) -> list[str]:
    return [request.path.rpartition("/")[2] for request in hub_server.log]


# Loading -----------------------------------------------------------------------------------------


def test_a_repository_is_downloaded_exported_and_answers(
    hub_server: HubServer, commit: str, tiny_checkpoint: Path
) -> None:
    model = pocketlm.load(NAME, threads=1)
    assert text(model) == text(pocketlm.load(tiny_checkpoint, threads=1))
    assert model.folder.manifest.precision.name == "int8"
    source = model.folder.manifest.source
    assert (source.repository, source.commit) == (NAME, commit)


def test_the_second_time_takes_one_request_and_no_export(
    hub_server: HubServer, commit: str
) -> None:
    exports, observer = counting()
    first = pocketlm.load(NAME, observer=observer)
    hub_server.log.clear()
    again = pocketlm.load(NAME, observer=observer)
    assert requests(hub_server) == ["main"]
    assert (again.folder.path, len(exports)) == (first.folder.path, 1)


def test_sharded_llama_from_the_hub_equals_the_one_from_the_folder(
    hub_server: HubServer, tmp_path: Path
) -> None:
    config = llama_config()
    tensors = llama_tensors(config)
    source = write_checkpoint(tmp_path / "llama", config, tensors, shards=3, tokenizer=False)
    write_tokenizer(source, config["vocab_size"])
    hub_server.add("acme/tiny-llama", source)
    model = pocketlm.load("acme/tiny-llama", precision="int4", threads=1)
    assert text(model) == text(pocketlm.load(source, precision="int4", threads=1))


def test_a_folder_wins_over_a_repository(
    hub_server: HubServer, commit: str, working_folder: Path
) -> None:
    write_checkpoint(working_folder / NAME)
    model = pocketlm.load(NAME)
    assert model.session.shape.vocab_size == 97  # that of the hub has 300
    assert hub_server.log == []


def test_progress_reaches_the_number_of_bytes(hub_server: HubServer, commit: str) -> None:
    heard: list[tuple[int, int]] = []
    announced: list[tuple[str, int]] = []

    @contextmanager
    def on_download(name: str, total: int) -> Any:
        announced.append((name, total))
        yield lambda done, total: heard.append((done, total))

    pocketlm.load(NAME, observer=pocketlm.Observer(download=on_download))
    files = hub_server.repos[NAME].commits[commit]
    total = sum(map(len, files.values()))
    assert announced == [(NAME, total)]
    assert heard == sorted(heard) and heard[-1] == (total, total)


def test_a_commit_that_changes_nothing_of_the_model_makes_nothing_new(
    hub_server: HubServer, commit: str, tiny_checkpoint: Path
) -> None:
    exports, observer = counting()
    first = pocketlm.load(NAME, observer=observer)
    files = dict(hub_server.repos[NAME].commits[commit])
    hub_server.add(NAME, files | {"README.md": b"A better description"})
    hub_server.log.clear()
    assert pocketlm.load(NAME, observer=observer).folder.path == first.folder.path
    assert requests(hub_server) == ["main"]
    hub_server.add(NAME, files | {"generation_config.json": b'{"eos_token_id": [7, 8]}'})
    assert pocketlm.load(NAME, observer=observer).end_ids == {7, 8}
    assert len(set(exports)) == 2


def test_revisions_are_branches_tags_and_commits(
    hub_server: HubServer, commit: str, tmp_path: Path
) -> None:
    config = gpt2_config(vocab_size=290)
    other = write_checkpoint(tmp_path / "other", config, gpt2_tensors(config))
    second = hub_server.add(NAME, other, revision="refs/pr/1")
    for revision in ("refs/pr/1", second, second):
        assert pocketlm.load(NAME, revision=revision).session.shape.vocab_size == 290
    assert pocketlm.load(f"{NAME}@refs/pr/1", offline=True).session.shape.vocab_size == 290
    assert pocketlm.load(NAME).session.shape.vocab_size == 300
    assert pocketlm.load(NAME, revision=second, offline=True).session.shape.vocab_size == 290


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (f"{NAME}@main", "is 'main' in the name and 'v2', expected one"),
        (".", "is 'v2' for a model on this disk, expected it only for one on the hub"),
        (None, "is 'v2' for the demo model, expected it only for one on the hub"),
    ],
)
def test_a_revision_that_cannot_be_meant_is_refused(path: str | None, message: str) -> None:
    with pytest.raises(pocketlm.RequestError, match=f"revision {message}"):
        pocketlm.load(path, revision="v2")


def test_without_a_precision_the_cached_one_is_used(hub_server: HubServer, commit: str) -> None:
    exports, observer = counting()
    pocketlm.load(NAME, precision="int4", observer=observer)
    model = pocketlm.load(NAME, observer=observer)
    assert model.folder.manifest.precision.name == "int4"
    model = pocketlm.load(NAME, precision="int8", observer=observer)
    assert model.folder.manifest.precision.name == "int8"
    pocketlm.load(NAME, precision="int4", observer=observer)
    assert pocketlm.load(NAME, observer=observer).folder.path == model.folder.path
    assert len(exports) == 2


def test_another_tokenizer_makes_another_model(
    hub_server: HubServer, commit: str, tmp_path: Path
) -> None:
    exports, observer = counting()
    tokenizer = write_tokenizer(tmp_path / "words", 299)
    pocketlm.load(NAME, tokenizer=tokenizer, observer=observer)
    pocketlm.load(NAME, tokenizer=tokenizer, observer=observer)
    pocketlm.load(NAME, observer=observer)
    assert len(set(exports)) == len(exports) == 2


@pytest.mark.parametrize("damage", ["flipped", "cut", "no manifest", "no weights"])
def test_a_damaged_model_is_not_used_but_made_again(
    hub_server: HubServer, commit: str, damage: str
) -> None:
    model = pocketlm.load(NAME)
    expected = text(model)
    file = model.folder.path / (MANIFEST if damage == "no manifest" else "model.onnx_data")
    content = bytearray(file.read_bytes())
    content[100] ^= 255
    file.unlink()
    if not damage.startswith("no "):
        file.write_bytes(content[:-1] if damage == "cut" else content)
    with pytest.raises(pocketlm.HubError, match="found neither this model nor its download"):
        pocketlm.load(NAME, offline=True)
    again = pocketlm.load(NAME)
    assert (again.folder.path, text(again)) == (model.folder.path, expected)


def test_without_a_writable_cache_it_runs_all_the_same(
    hub_server: HubServer, commit: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("where the cache should be")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    program = f"import pocketlm; print(pocketlm.load({NAME!r}).folder.path)"
    places = {"POCKETLM_CACHE": str(tmp_path / "file" / "cache"), "TMPDIR": str(temporary)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | places, capture_output=True, text=True
    )
    assert temporary in Path(done.stdout.strip()).parents
    assert done.stderr == (
        f"pocketlm: no cache: {tmp_path / 'file' / 'cache'} cannot be written (Not a directory); "
        "what is fetched and made lies in a temporary folder, and is made again at every start - "
        "name a folder to keep it in POCKETLM_CACHE\n"
    )
    assert list(temporary.iterdir()) == []


# Offline -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["argument", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_a_cached_model_runs_and_no_socket_is_made(
    hub_server: HubServer, commit: str, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    expected = text(pocketlm.load(NAME, precision="int4"))
    refuse = pytest.MonkeyPatch()
    try:
        for name in ("socket", "getaddrinfo", "create_connection"):
            refuse.delattr(socket, name)
        if how != "argument":
            refuse.setenv(how, "1")
        offline = how == "argument"
        assert text(pocketlm.load(NAME, offline=offline)) == expected
        assert text(pocketlm.load("tiny-gpt2", offline=offline)) == expected
        with pytest.raises(
            pocketlm.HubError, match="found neither .* in the cache for revision 'v2'"
        ):
            pocketlm.load(NAME, offline=offline, revision="v2")
        with pytest.raises(pocketlm.HubError, match="found neither .* in the cache.*pocketlm list"):
            pocketlm.load(NAME, offline=offline, precision="fp32")
    finally:
        refuse.undo()


def test_offline_a_kept_download_is_enough_for_another_precision(
    hub_server: HubServer, commit: str
) -> None:
    pocketlm.load(NAME, keep_download=True)
    model = pocketlm.load(NAME, precision="int4", offline=True)
    assert model.folder.manifest.precision.name == "int4"


@pytest.mark.parametrize("trouble", ["unreachable", "busy", "gone"])
def test_a_hub_that_does_not_answer_leaves_the_cached_model(
    hub_server: HubServer,
    commit: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    trouble: str,
) -> None:
    expected = text(pocketlm.load(NAME))
    if trouble == "unreachable":
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            port = bound.getsockname()[1]
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    elif trouble == "busy":
        hub_server.faults.append(Fault(INFO, "status", status=503, by_hub=True, times=99))
    else:
        del hub_server.repos[NAME]
    capsys.readouterr()
    assert text(pocketlm.load(NAME)) == expected
    said = capsys.readouterr().err
    assert said.startswith(f"pocketlm: {NAME}: found ")
    assert said.endswith(f"; using what is in the cache, of commit {commit[:12]}\n")


# Downloads and their end --------------------------------------------------------------------------


def kinds(cache: Path) -> list[str]:
    return [entry.precision or entry.kind for entry in store.entries(cache)]


def test_a_download_goes_after_its_export_unless_it_is_to_be_kept(
    hub_server: HubServer, commit: str, own_cache: Path
) -> None:
    pocketlm.load(NAME)
    assert kinds(own_cache) == ["int8"]
    pocketlm.load(NAME, precision="int4", keep_download=True)
    assert sorted(kinds(own_cache)) == ["download", "int4", "int8"]
    sent = hub_server.bytes_sent(WEIGHTS)
    pocketlm.load(NAME, precision="fp32")
    assert sorted(kinds(own_cache)) == ["download", "fp32", "int4", "int8"]
    assert hub_server.bytes_sent(WEIGHTS) == sent


def test_a_download_stays_when_its_export_fails(
    hub_server: HubServer, commit: str, own_cache: Path
) -> None:
    def fail(plan: object) -> None:
        raise pocketlm.StorageError("no room")

    with pytest.raises(pocketlm.StorageError, match="no room"):
        pocketlm.load(NAME, observer=pocketlm.Observer(plan=fail))
    assert kinds(own_cache) == ["download"]
    sent = hub_server.bytes_sent(WEIGHTS)
    pocketlm.load(NAME)
    assert hub_server.bytes_sent(WEIGHTS) == sent
    assert kinds(own_cache) == ["int8"]


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"], ids=["lfs", "git"])
def test_a_kept_download_with_a_flipped_bit_is_not_exported(
    name: str,
    hub_server: HubServer,
    commit: str,
    own_cache: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = pocketlm.load(NAME, keep_download=True)
    (kept,) = own_cache.glob(f"hub/*/checkpoint-*/{name}")
    sound = kept.read_bytes()
    kept.write_bytes(sound[:-2] + bytes([sound[-2] ^ 1]) + sound[-1:])
    with pytest.raises(pocketlm.HubError, match=f"{name} changed since it was downloaded"):
        pocketlm.load(NAME, precision="int4", offline=True)
    other = pocketlm.load(NAME, precision="int4")
    assert "downloading it again" in capsys.readouterr().err
    assert other.folder.manifest.source == first.folder.manifest.source


def test_a_download_that_lost_a_file_is_made_again(
    hub_server: HubServer, commit: str, own_cache: Path
) -> None:
    pocketlm.load(NAME, keep_download=True)
    (download,) = own_cache.glob(f"hub/*/*/{WEIGHTS}")
    download.unlink()
    assert "damaged" in kinds(own_cache)
    pocketlm.load(NAME, precision="fp32")
    assert sorted(kinds(own_cache)) == ["fp32", "int8"]


LOAD = f"import pocketlm; print(pocketlm.load({NAME!r}, threads=1).folder.path)"


def test_a_killed_download_goes_on_where_it_was(
    hub_server: HubServer, own_cache: Path, tmp_path: Path
) -> None:
    """kill -9 half way: nothing to be seen, and hardly a byte of it is fetched again."""
    config = gpt2_config(vocab_size=300, n_embd=128, n_head=4)
    source = write_checkpoint(tmp_path / "wide", config, gpt2_tensors(config))
    size = (source / WEIGHTS).stat().st_size
    hub_server.add(NAME, source)
    hub_server.faults.append(Fault(WEIGHTS, "slow", at=size // 100))
    with subprocess.Popen([sys.executable, "-c", LOAD], stdout=subprocess.PIPE) as child:
        wait_for(lambda: hub_server.bytes_sent(WEIGHTS) >= size // 2)
        child.send_signal(signal.SIGKILL)
    assert kinds(own_cache) == ["unfinished"]
    (part,) = own_cache.glob("hub/*/.*/*.part")
    held = part.stat().st_size
    assert held > size // 3
    with pytest.raises(pocketlm.HubError, match="found neither this model nor its download"):
        pocketlm.load(NAME, offline=True)
    hub_server.log.clear()
    assert text(pocketlm.load(NAME)) == text(pocketlm.load(source))
    assert hub_server.bytes_sent(WEIGHTS) == size - held
    assert kinds(own_cache)[0] == "int8"


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come about within 30 s")


def test_ctrl_c_leaves_what_a_kill_leaves_and_no_traceback(
    hub_server: HubServer, commit: str, own_cache: Path, tiny_checkpoint: Path
) -> None:
    size = (tiny_checkpoint / WEIGHTS).stat().st_size
    hub_server.faults.append(Fault(WEIGHTS, "slow", at=size // 100))
    program = [sys.executable, "-m", "pocketlm", "run", NAME, "the sea"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        wait_for(lambda: hub_server.bytes_sent(WEIGHTS) >= size // 2)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=30)
    assert (child.returncode, out, err.strip()) == (130, b"", b"")
    assert kinds(own_cache) == ["unfinished"]
    hub_server.log.clear()
    pocketlm.load(NAME)
    assert hub_server.bytes_sent(WEIGHTS) < size


def test_what_cannot_be_exported_is_refused_before_its_weights_are_fetched(
    run: Run, hub_server: HubServer, tiny_checkpoint: Path, own_cache: Path, tmp_path: Path
) -> None:
    files = {path.name: path.read_bytes() for path in tiny_checkpoint.iterdir()}
    hub_server.add(NAME, files | {"config.json": b'{"model_type": "mixtral"}'})
    for line in (["run", NAME, "the sea"], ["export", NAME, tmp_path / "out"]):
        code, out, err = run(*line)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "mixtral" in err
    assert hub_server.asked(WEIGHTS) == []
    assert kinds(own_cache) == []


def test_room_for_download_and_model_is_found_missing_before_the_weights(
    run: Run, hub_server: HubServer, commit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pocketlm.export.writing.free_space", lambda path: 50_000)
    code, out, err = run("run", NAME, "the sea")
    assert (code, out, err.count("\n")) == (4, "", 1)
    assert re.search("found 50.0 kB free in .*, expected 4.15 MB for its download and the", err)
    code, out, err = run("export", NAME, tmp_path / "out")
    assert (code, err.count("\n")) == (4, 1)
    assert re.search("expected .* kB for its download; free some space", err)
    assert hub_server.asked(WEIGHTS) == []


# Many at a time -----------------------------------------------------------------------------------


def test_eight_processes_download_and_export_once(
    hub_server: HubServer, commit: str, own_cache: Path, tiny_checkpoint: Path
) -> None:
    program = [sys.executable, "-c", LOAD]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    children = [subprocess.Popen(program, **pipes) for _ in range(8)]  # type: ignore[call-overload]
    ended = [child.communicate(timeout=120) for child in children]
    assert [child.returncode for child in children] == [0] * 8, ended
    assert len({out for out, _ in ended}) == 1
    assert hub_server.bytes_sent(WEIGHTS) == (tiny_checkpoint / WEIGHTS).stat().st_size
    assert len(hub_server.asked(INFO)) == 8
    assert kinds(own_cache) == ["int8"]
    for _, said in ended:
        assert not said or f", which is making {NAME}" in said


def test_when_the_maker_is_killed_another_goes_on(
    hub_server: HubServer, commit: str, own_cache: Path, tiny_checkpoint: Path
) -> None:
    size = (tiny_checkpoint / WEIGHTS).stat().st_size
    hub_server.faults.append(Fault(WEIGHTS, "slow", at=size // 100))
    program = [sys.executable, "-c", LOAD]
    children = [subprocess.Popen(program, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    wait_for(lambda: hub_server.bytes_sent(WEIGHTS) >= size // 3)
    maker = int(store.Repository(own_cache, NAME).lock.read_text())
    os.kill(maker, signal.SIGKILL)
    said = {child.pid: child.communicate(timeout=60)[1] for child in children}
    codes = {child.pid: child.returncode for child in children}
    assert codes.pop(maker) == -signal.SIGKILL
    assert list(codes.values()) == [0, 0], said
    assert kinds(own_cache) == ["int8"]
    assert hub_server.bytes_sent(WEIGHTS) < 2 * size


def test_whoever_waits_says_for_whom(hub_server: HubServer, commit: str, own_cache: Path) -> None:
    lock = store.Repository(own_cache, NAME).lock
    program = [sys.executable, "-c", LOAD]
    with locked(lock, lambda holder: None):
        child = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert child.stderr is not None
        said = child.stderr.readline()
    out, _ = child.communicate(timeout=60)
    assert said == f"pocketlm: waiting for process {os.getpid()}, which is making {NAME}\n"
    assert Path(out.strip()).is_dir()


def test_a_lock_is_free_when_its_holder_is_killed(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    program = f"""
import time
from pathlib import Path
from pocketlm.export.lock import locked
from pocketlm.models.reference import find_reference
with locked(Path({str(lock)!r}), print):
    print("held", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        child.kill()
    waited: list[str] = []
    with locked(lock, waited.append):
        assert lock.read_text() == f"{os.getpid()}\n"
    assert waited == []
    assert not lock.exists()


def test_a_file_system_without_locks_counts_as_a_free_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    waited: list[str] = []
    with locked(tmp_path / "lock", waited.append), locked(tmp_path / "lock", waited.append):
        assert waited == []


def test_without_locks_the_same_model_made_twice_is_one_model(
    hub_server: HubServer, commit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process publishes while this one exports: its model is as good."""
    model = pocketlm.load(NAME)
    expected = text(model)
    path = model.folder.path
    aside = path.with_name("aside")
    path.rename(aside)
    exports, observer = counting()

    def progress(written: int, total: int) -> None:
        if aside.exists():
            aside.rename(path)

    observer = replace(observer, progress=progress)
    assert text(pocketlm.load(NAME, observer=observer)) == expected
    assert len(exports) == 1


# The command line ---------------------------------------------------------------------------------


def test_run_downloads_and_prints_the_text_alone(
    run: Run, hub_server: HubServer, commit: str
) -> None:
    arguments = ["the sea", "--temperature", "0", "--max-tokens", "5"]
    code, out, err = run("run", NAME, *arguments)
    assert (code, err) == (0, "")
    assert out == text(pocketlm.load(NAME)) + "\n"
    assert run("run", NAME, *arguments, "--offline") == (0, out, "")
    assert run("run", "tiny-gpt2", *arguments, "--offline") == (0, out, "")


def test_chat_takes_the_template_of_the_repository(
    run: Run, hub_server: HubServer, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    source = tmp_path / "chatty"
    shutil.copytree(tiny_checkpoint, source)
    template = "{% for m in messages %}{{ m.role }} {{ m.content }}.{% endfor %}"
    (source / "chat_template.jinja").write_text(template)
    hub_server.add(NAME, source)
    arguments = ["the sea", "--chat", "--temperature", "0", "--max-tokens", "5"]
    code, out, err = run("run", NAME, *arguments)
    assert (code, err) == (0, "")
    assert (code, out, err) == run("run", source, *arguments)
    assert out != run("run", NAME, *[word for word in arguments if word != "--chat"])[1]


def test_one_word_is_a_model_of_the_hub_only_if_it_is_cached(
    run: Run, hub_server: HubServer, commit: str
) -> None:
    greedy = ["--temperature", "0", "--max-tokens", "3", "--json"]
    code, out, _ = run("run", NAME, *greedy)
    assert (code, json.loads(out)["prompt"]) == (0, NAME)
    assert hub_server.log == []
    pocketlm.load(NAME)
    code, out, _ = run("run", NAME, *greedy, "--offline")
    assert (code, json.loads(out)["prompt"]) == (0, "")
    assert NAME.replace("/", "--") in json.loads(out)["model"]["path"]


@pytest.mark.parametrize(
    "name", ["./acme/tiny-gpt2", "../acme/tiny-gpt2", "acme/tiny-gpt2/", "a/b/c"]
)
def test_a_mistyped_path_makes_no_request(
    run: Run, hub_server: HubServer, commit: str, name: str
) -> None:
    for line in (["run", name, "the sea"], ["export", name, "out"], ["chat", name], ["info", name]):
        code, out, err = run(*line)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert f"{name!r}: found nothing at this path" in err
    assert hub_server.log == []


def test_a_name_that_could_be_a_path_says_both(
    run: Run, hub_server: HubServer, working_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (working_folder / "out" / "int8-weight").mkdir(parents=True)
    path = working_folder / "out" / "int8"
    both = f"; nor is there a folder {path} - did you mean out/int8-weight?\n"
    code, _, err = run("run", "out/int8", "the sea")
    assert code == 3
    assert "out/int8: found no repository of this name that http://127" in err
    assert err.endswith(both)
    assert run("run", "out/int8", "the sea", "--offline")[2].endswith(both)
    monkeypatch.setattr("pocketlm.models.making.ATTEMPTS", 1)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    code, _, err = run("run", "out/int8", "the sea")
    assert (code, "found no usable connection to http://127.0.0.1:1" in err) == (3, True)
    assert err.endswith(both)


def test_info_and_quantize_take_names_of_what_is_in_the_cache(
    run: Run, hub_server: HubServer, commit: str, tmp_path: Path
) -> None:
    code, out, err = run("info", NAME)
    assert (code, out) == (2, "")
    assert f"{NAME}: found no model of this name in the cache" in err
    pocketlm.load(NAME)
    assert f" of {NAME} at {commit}\n" in run("info", NAME)[1]
    quantize = ["quantize", NAME, tmp_path / "out", "--to", "int8"]
    assert "found no model of this name in fp32 in the cache" in run(*quantize)[2]
    pocketlm.load(NAME, precision="fp32")
    assert run(*quantize)[0] == 0


@pytest.mark.parametrize("name", ["acme/nothing", "acme/nothing@v1"])
def test_what_the_hub_has_not_ends_with_3(run: Run, hub_server: HubServer, name: str) -> None:
    code, out, err = run("run", name, "the sea")
    assert (code, out, err.count("\n")) == (3, "", 1)
    assert "found no repository of this name that http://" in err
    assert f"; nor is there a folder {Path('acme/nothing').absolute()}\n" in err
    code, out, err = run("run", name, "the sea", "--offline")
    assert (code, out, err.count("\n")) == (3, "", 1)
    assert "found neither this model nor its download in the cache for revision" in err


def test_info_tells_repository_and_commit(run: Run, hub_server: HubServer, commit: str) -> None:
    folder = pocketlm.load(NAME).folder.path
    code, out, err = run("info", folder)
    assert (code, err) == (0, "")
    assert f" of {NAME} at {commit}\n" in out


def test_export_takes_a_name_and_gives_the_folders_bytes(
    run: Run,
    hub_server: HubServer,
    commit: str,
    tiny_checkpoint: Path,
    tmp_path: Path,
    own_cache: Path,
) -> None:
    out = tmp_path / "out"
    assert run("export", NAME, out, "--precision", "int8", "--quiet") == (0, "", "")
    local = ["export", tiny_checkpoint, tmp_path / "local", "--precision", "int8", "--quiet"]
    assert run(*local) == (0, "", "")
    for name in ("model.onnx", "model.onnx_data", "tokenizer.json"):
        assert (out / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
    assert json.loads((out / MANIFEST).read_text())["source"]["commit"] == commit
    assert kinds(own_cache) == []
    kept = ["--keep-download", "--revision", commit]
    assert run("export", NAME, tmp_path / "kept", *kept, "--quiet") == (0, "", "")
    assert kinds(own_cache) == ["download"]


def test_a_place_that_is_taken_is_found_before_the_download(
    run: Run, hub_server: HubServer, commit: str, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("somebody's")
    code, out, err = run("export", NAME, tmp_path / "out")
    assert (code, out) == (2, "")
    assert "found a folder that is not empty" in err
    assert hub_server.log == []


def test_a_tokenizer_that_cannot_be_run_is_refused_before_the_weights_come(
    run: Run, hub_server: HubServer, own_cache: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    files = {path.name: path.read_bytes() for path in tiny_checkpoint.iterdir()}
    whole = files["tokenizer.json"]
    hub_server.add(NAME, files | {"tokenizer.json": whole.replace(b'"BPE"', b'"Markov"')})
    code, out, err = run("run", NAME, "x")
    assert (code, out) == (2, "") and "tokenizer.json: reading it failed" in err
    assert "model.safetensors" not in requests(hub_server)
    given = tmp_path / "tokenizer.json"
    given.write_bytes(whole)
    assert run("export", NAME, tmp_path / "out", "--tokenizer", given)[0] == 0


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("generation_config.json", b"[]", "generation_config.json holds a JSON array"),
        ("generation_config.json", b'{"eos_token_id": "x"}', "eos_token_id is 'x', expected"),
        ("tokenizer.json", None, "found no tokenizer, expected one beside the weights"),
        ("config.json", b'"vocab_size": 200', "found 300 tokens, expected at most 200"),
    ],
    ids=str,
)
def test_what_needs_no_weights_to_be_refused_is_refused_before_they_come(
    name: str,
    content: bytes | None,
    message: str,
    run: Run,
    hub_server: HubServer,
    own_cache: Path,
    tiny_checkpoint: Path,
) -> None:
    files = {path.name: path.read_bytes() for path in tiny_checkpoint.iterdir()}
    if content is None:
        del files[name]
    elif name == "config.json":
        files[name] = re.sub(rb'"vocab_size": \d+', content, files[name])
    else:
        files[name] = content
    hub_server.add(NAME, files)
    code, out, err = run("run", NAME, "x")
    assert (code, out) == (2, "") and message in err
    assert "model.safetensors" not in requests(hub_server)


def test_torch_weights_are_for_those_who_ask_and_new_ones_are_fetched(
    hub_server: HubServer, own_cache: Path
) -> None:
    files = {"config.json": b"{}", "pytorch_model.bin": b"first"}
    options = making.HubOptions()
    for weights in (b"first", b"other"):
        commit = hub_server.add(NAME, files | {"pytorch_model.bin": weights})
        named = find_reference(NAME)
        with making.checkpoint_folder(named, options, for_torch=True) as (folder, origin):
            assert (folder / "pytorch_model.bin").read_bytes() == weights
            assert origin == {"repository": NAME, "commit": commit}
        assert not folder.exists()
    with making.checkpoint_folder(find_reference(own_cache), options) as found:
        assert found == (own_cache, {})


def test_a_dry_run_fetches_config_json_alone(
    run: Run, hub_server: HubServer, commit: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    arguments = ["--precision", "int4", "--dry-run", "--json"]
    code, out, err = run("export", NAME, tmp_path / "out", *arguments)
    assert (code, err) == (0, "")
    assert requests(hub_server) == ["main", "config.json"]
    local = json.loads(run("export", tiny_checkpoint, tmp_path / "out", *arguments)[1])
    for name in ("architecture", "num_parameters", "bytes_to_write"):
        assert json.loads(out)[name] == local[name]
    assert run("export", NAME, tmp_path / "out", *arguments, "--offline")[0] == 3


def test_list_shows_what_there_is(
    run: Run, hub_server: HubServer, commit: str, own_cache: Path, tiny_checkpoint: Path
) -> None:
    assert run("list") == (0, f"nothing in {own_cache}\n{DEMO_LINE}", "")
    assert run("list", "--json") == (0, "[]\n", "")
    pocketlm.load(NAME, keep_download=True)
    pocketlm.load(NAME, precision="int4")
    pocketlm.load(tiny_checkpoint)
    code, out, err = run("list", "--json")
    assert (code, err) == (0, "")
    listed = json.loads(out)
    assert sorted((e["name"], e["kind"], e["precision"]) for e in listed) == [
        (NAME, "download", None),
        (NAME, "model", "int4"),
        (NAME, "model", "int8"),
        ("gpt2", "model", "int8"),
    ]
    for entry in listed:
        files = [path for path in Path(entry["path"]).rglob("*") if path.is_file()]
        assert entry["num_bytes"] == sum(path.stat().st_size for path in files) > 0
        assert entry["commit"] == (commit if entry["name"] == NAME else None)
        assert entry["source"] == (None if entry["name"] == NAME else str(tiny_checkpoint))
    assert len({entry["id"] for entry in listed}) == len(listed)
    code, out, err = run("list")
    lines = out.splitlines()
    assert lines[0].split() == ["NAME", "PRECISION", "SIZE", "WHEN", "ID", "FROM"]
    assert sum(commit[:12] in line for line in lines) == 3
    assert sum("(download)" in line for line in lines) == 1
    assert sum(line.endswith(str(tiny_checkpoint)) for line in lines) == 1
    assert lines[-2].endswith(f" kB in {own_cache}")
    assert lines[-1] + "\n" == DEMO_LINE


def test_without_a_home_nothing_is_listed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pocketlm.commands.list.cache_folder", lambda: None)
    nothing = "nothing in the cache: no home folder, and no POCKETLM_CACHE\n"
    assert run("list")[1] == nothing + DEMO_LINE


def test_a_download_is_drawn_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def drawn(quiet: bool) -> str:
        with shown(quiet) as observer, observer.download(NAME, 4_000_000) as progress:
            progress(1_000_000, 4_000_000)
            progress(4_000_000, 4_000_000)
        out, err = capsys.readouterr()
        assert out == ""
        return err

    assert drawn(quiet=False) == ""
    monkeypatch.setenv("FORCE_COLOR", "1")  # stands for a terminal
    assert drawn(quiet=True) == ""
    text = re.sub("\x1b[^a-zA-Z]*[a-zA-Z]", "", drawn(quiet=False))
    assert text.startswith(f"downloading {NAME}, 4.00 MB\n")
    assert "4.0/4.0 MB" in text


def test_remove_says_what_it_freed_and_leaves_the_rest(
    run: Run, hub_server: HubServer, commit: str, own_cache: Path, tiny_checkpoint: Path
) -> None:
    pocketlm.load(NAME, keep_download=True)
    pocketlm.load(NAME, precision="int4")
    pocketlm.load(tiny_checkpoint)
    assert run("remove", NAME, "--precision", "int8")[:2] == (
        0,
        f"removed {NAME} (int8): 123 kB freed\n",
    )
    assert sorted(kinds(own_cache)) == ["download", "int4", "int8"]
    code, out, _ = run("remove", "tiny-gpt2")
    assert code == 0
    assert out.startswith(f"removed {NAME} (int4, download): ")
    assert [entry.name for entry in store.entries(own_cache)] == ["gpt2"]
    assert list((own_cache / "hub").iterdir()) == []
    assert (tiny_checkpoint / WEIGHTS).is_file()
    assert run("remove", "gpt2")[0] == 0
    assert run("list") == (0, f"nothing in {own_cache}\n{DEMO_LINE}", "")


def test_remove_of_what_is_not_there_lists_what_is(
    run: Run, hub_server: HubServer, commit: str, own_cache: Path
) -> None:
    code, out, err = run("remove", "acme/other")
    assert (code, out) == (2, "")
    assert "acme/other: found nothing of this name" in err and "(the cache is empty)" in err
    pocketlm.load(NAME)
    assert f"expected one of: {NAME}; see: pocketlm list" in run("remove", "acme/other")[2]
    assert "in int4: found nothing" in run("remove", NAME, "--precision", "int4")[2]
    assert kinds(own_cache) == ["int8"]


def test_unfinished_and_damaged_models_are_listed_and_can_be_removed(
    run: Run, hub_server: HubServer, commit: str, own_cache: Path
) -> None:
    model = pocketlm.load(NAME, precision="int8-weight").folder.path
    left = model.with_name(f".{model.name}.partial-0123456789ab")
    left.mkdir()
    (left / "model.onnx").write_bytes(b"half")
    local = own_cache / "models" / "my-model-int4-0123456789abcdef"
    local.mkdir(parents=True)
    found = {(e.name, e.kind, e.precision) for e in store.entries(own_cache)}
    assert found == {
        (NAME, "model", "int8-weight"),
        (NAME, "unfinished", "int8-weight"),
        ("my-model", "damaged", "int4"),
    }
    assert "(unfinished)" in run("list")[1] and "(damaged)" in run("list")[1]
    assert run("remove", NAME)[0] == run("remove", "my-model")[0] == 0
    assert store.entries(own_cache) == []


def test_remove_waits_for_whoever_makes_the_model(
    run: Run, hub_server: HubServer, commit: str, own_cache: Path
) -> None:
    model = pocketlm.load(NAME).folder.path
    ended: list[tuple[int, str, str]] = []
    remover = threading.Thread(target=lambda: ended.append(run("remove", NAME)))
    with locked(store.Repository(own_cache, NAME).lock, lambda holder: None):
        remover.start()
        remover.join(0.3)
        assert model.is_dir()
    remover.join()
    assert not model.exists()
    assert ended[0][2] == f"pocketlm: waiting for process {os.getpid()}, which uses it\n"


def test_of_a_link_in_place_of_a_download_only_the_link_goes(
    hub_server: HubServer, commit: str, own_cache: Path, tmp_path: Path
) -> None:
    pocketlm.load(NAME, keep_download=True)
    (download,) = own_cache.glob("hub/*/checkpoint-*")
    moved = download.rename(tmp_path / "elsewhere")
    (moved / store.KEEP).unlink()
    download.symlink_to(moved)
    pocketlm.load(NAME, precision="fp32")
    assert (moved / WEIGHTS).is_file()
    assert not download.is_symlink()


@pytest.mark.parametrize("name", ["..", "../here", ".", "", "/", "refs", "hub", "models"])
def test_remove_never_leaves_the_cache(
    run: Run, hub_server: HubServer, commit: str, own_cache: Path, working_folder: Path, name: str
) -> None:
    (own_cache / "models").mkdir(parents=True)
    (working_folder / "file").write_text("somebody's")
    os.symlink(working_folder, own_cache / "models" / "here-int8-0123456789abcdef")
    assert run("remove", name)[0] == 2
    assert run("remove", "here")[0] == 2
    assert (working_folder / "file").is_file()


def test_an_ambiguous_short_name_is_no_name(run: Run, hub_server: HubServer, commit: str) -> None:
    hub_server.add("other/tiny-gpt2", hub_server.repos[NAME].commits[commit])
    for name in (NAME, "other/tiny-gpt2"):
        pocketlm.load(name)
    assert run("remove", "tiny-gpt2")[0] == 2
    assert run("remove", "other/tiny-gpt2")[0] == 0
    assert run("remove", "tiny-gpt2")[0] == 0
