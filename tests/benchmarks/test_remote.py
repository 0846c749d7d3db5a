"""A model in a process of its own: its answers, its errors, its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import gpt2_config, gpt2_tensors, write_checkpoint

from pocketlm.benchmarks.speed.remote import Remote, WorkerDied, WorkerStarved
from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.errors import ModelFolderError
from pocketlm.export.folder import ModelFolder
from pocketlm.export.writing import export_model

CONTEXT = 160  # of the tiny model


@pytest.fixture(scope="module")
def remote(tiny_folder: ModelFolder) -> Iterator[Remote]:
    with Remote("tiny", tiny_folder.path, 1) as remote:
        yield remote


def has_ended(remote: Remote) -> bool:
    """Whether its process is gone, and waited for."""
    return remote._process.returncode is not None


@pytest.mark.parametrize(
    ("prompt", "generation", "depth"),
    [
        (16, 0, 0),
        (0, 8, 0),
        (16, 8, 0),
        (16, 8, 32),
        (1, 0, 0),
        (0, 1, 0),
        (CONTEXT, 0, 0),
        (0, 8, CONTEXT - 8),
        (100, 50, CONTEXT - 150),
    ],
)
def test_a_test_fills_the_cache_with_its_depth_and_its_tokens(
    remote: Remote, prompt: int, generation: int, depth: int
) -> None:
    """The worker itself compares the cache's length with their sum, up to the full context."""
    answer = remote.ask("measure", prompt=prompt, generation=generation, depth=depth, batch=64)
    assert answer["seconds"] > 0
    assert 0 < answer["outside_kernel"] < 1
    assert answer["peak_rss_bytes"] > 10_000_000
    assert answer["joules"] is None or answer["joules"] >= 0


def test_an_error_of_ours_comes_with_the_models_name(tmp_path: Path) -> None:
    config = gpt2_config(vocab_size=300)
    tensors = {name: values * np.float32(1e37) for name, values in gpt2_tensors(config).items()}
    source = write_checkpoint(tmp_path / "overflowing", config, tensors)
    folder = export_model(open_checkpoint(source), tmp_path / "out")
    with Remote("bad", folder.path, 1) as remote:
        for _ in range(2):  # it goes on after an error
            with pytest.raises(ModelFolderError, match="bad: .*(NaN|infinite)"):
                remote.ask("first_token")


def test_opening_and_the_first_token_are_timed(remote: Remote) -> None:
    assert remote.load_seconds > 0
    assert 0 <= remote.ask("first_token")["token"] < 300


def test_a_folder_that_is_none_is_an_error_with_the_models_name(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="broken: .*missing: found nothing, expected a mod"):
        Remote("broken", tmp_path / "missing", 1)


def test_a_killed_process_is_an_error_that_says_how(tiny_folder: ModelFolder) -> None:
    remote = Remote("tiny", tiny_folder.path, 1)
    with pytest.raises(WorkerDied) as caught, remote:
        os.kill(remote._process.pid, signal.SIGKILL)
        remote.ask("measure", prompt=1, generation=0, depth=0, batch=1)
    assert str(caught.value) == (
        "tiny: found its process killed by signal 9 (Killed) at measure (the system does that "
        "when memory runs out), expected an answer; measure it alone, or a smaller one"
    )
    assert caught.value.exit_code == 4  # as that of any memory that ran out
    assert has_ended(remote)


def test_a_crash_is_not_called_want_of_memory(tiny_folder: ModelFolder) -> None:
    remote = Remote("tiny", tiny_folder.path, 1)
    with pytest.raises(WorkerDied, match="killed by signal 11") as caught, remote:
        os.kill(remote._process.pid, signal.SIGSEGV)
        remote.ask("first_token")
    assert caught.value.exit_code == 2


def starving(folder: ModelFolder, monkeypatch: pytest.MonkeyPatch, program: str) -> Remote:
    """A model of the folder's name whose worker begins with ``program``."""
    popen = subprocess.Popen

    def start(command: list[str], **options: Any) -> subprocess.Popen[str]:
        worker = f"import pocketlm.benchmarks.speed.worker as worker\n{program}\nworker.main()"
        return popen([sys.executable, "-P", "-c", worker, *command[4:]], **options)

    monkeypatch.setattr(subprocess, "Popen", start)
    return Remote("fp32", folder.path, 1)


FULL = "def full(*a, **k): raise MemoryError\n"


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (f"{FULL}worker.Tokenizer.open = full", "^fp32: opening it: found"),
        (f"{FULL}import onnxruntime; onnxruntime.InferenceSession = full", "^fp32: opening it: f"),
        (f"{FULL}worker.main = full", "^fp32: found its process ended .*MemoryError"),
    ],
)
def test_opening_without_memory_is_told_as_such(
    program: str, said: str, tiny_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(WorkerStarved, match=said) as caught:
        starving(tiny_folder, monkeypatch, program)
    assert caught.value.exit_code == 4


def test_a_request_without_memory_is_told_and_the_worker_goes_on(
    tiny_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with starving(tiny_folder, monkeypatch, f"{FULL}worker.prefill = full") as remote:
        with pytest.raises(WorkerStarved, match="^fp32: measure: found"):
            remote.ask("measure", prompt=8, generation=0, depth=0, batch=8)
        assert remote.ask("first_token")["token"] >= 0


def test_a_process_that_fails_is_an_error_with_its_last_line(tiny_folder: ModelFolder) -> None:
    with (
        pytest.raises(WorkerDied, match=r"exit code 1 at nonsense .AttributeError: .*'nonsense'"),
        Remote("tiny", tiny_folder.path, 1) as remote,
    ):
        remote.ask("nonsense")


def test_an_error_of_ours_leaves_no_process(tiny_folder: ModelFolder) -> None:
    with pytest.raises(KeyboardInterrupt), Remote("tiny", tiny_folder.path, 1) as remote:
        # Not waited for: it is killed in the middle of it.
        remote._process.stdin.write('{"do": "first_token"}\n')  # type: ignore[union-attr]
        raise KeyboardInterrupt
    assert has_ended(remote)


def test_the_worker_does_not_hear_ctrl_c_and_ends_with_its_pipe(tiny_folder: ModelFolder) -> None:
    remote = Remote("tiny", tiny_folder.path, 1)
    assert os.getpgid(remote._process.pid) != os.getpgid(0)
    os.kill(remote._process.pid, signal.SIGINT)
    assert remote.ask("first_token")["token"] >= 0
    remote.close()
    assert remote._process.returncode == 0


def test_what_else_is_printed_stays_out_of_the_answers(tiny_folder: ModelFolder) -> None:
    """fd 1 is where ONNX Runtime, say, would print; the worker keeps a copy for its answers."""
    program = (
        "import os, pocketlm.benchmarks.speed.worker as worker\n"
        "first = worker.Worker.first_token\n"
        "worker.Worker.first_token = lambda self: (os.write(1, b'noise'), first(self))[1]\n"
        "worker.main()"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, tiny_folder.path, "1", "fp32"],
        input='{"do": "first_token"}\n',
        capture_output=True,
        text=True,
        check=True,
    )
    assert [line[0] for line in done.stdout.splitlines()] == ["{", "{"]
    assert done.stderr == "noise"
