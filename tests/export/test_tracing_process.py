"""The child that traces: what it is given, and every way it can end. Others play it here."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

import pocketlm
from pocketlm.export.errors import CheckpointError, StorageError
from pocketlm.export.traced import process
from pocketlm.export.traced.process import SETTINGS, run_trace


@pytest.fixture(autouse=True)
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch and its company seem to be installed."""
    monkeypatch.setattr(process, "PACKAGES", ("numpy",))


def play(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """``code`` runs in place of the child; it finds the folders in ``checkpoint`` and ``out``."""
    start = "import json, os, sys, pathlib; checkpoint, out = map(pathlib.Path, sys.argv[1:])\n"
    program = [sys.executable, "-c", start + textwrap.dedent(code)]
    monkeypatch.setattr(process, "_program", lambda: program)


ANSWER = '(out / "trace.json").write_text(json.dumps({"versions": dict(os.environ), "sizes": {}}))'


def test_the_child_gets_no_network_no_secrets_and_weights_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    play(monkeypatch, ANSWER)
    environment = run_trace(tmp_path, tmp_path).versions
    assert {name: environment[name] for name in SETTINGS} == SETTINGS
    assert SETTINGS["HF_HUB_OFFLINE"] == SETTINGS["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"
    assert not {"HF_TOKEN", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"} & environment.keys()


def test_the_child_is_a_module_of_ours_without_the_current_folder(tmp_path: Path) -> None:
    program = process._program()
    assert program[1:] == ["-P", "-m", "pocketlm.export.traced.child"]
    assert importlib.util.find_spec(program[-1]) is not None


ENDS: dict[str, tuple[str, type[Exception], str]] = {
    "its own word": (
        '(out / "error.json").write_text(json.dumps({"message": "no such thing", "disk": False}))\n'
        "raise SystemExit(1)",
        CheckpointError,
        "Optimum cannot export it: no such thing",
    ),
    "full disk": (
        '(out / "error.json").write_text(json.dumps({"message": "ENOSPC", "disk": True}))\n'
        "raise SystemExit(1)",
        StorageError,
        r"the disk is full \(ENOSPC\), expected room .* nothing was kept",
    ),
    "killed": (
        "os.kill(os.getpid(), 9)",
        CheckpointError,
        "was ended by SIGKILL; the memory was probably too small",
    ),
    "crashed": ("os.kill(os.getpid(), 11)", CheckpointError, "was ended by SIGSEGV$"),
    "a traceback": (
        'print("torch says a lot"); raise ValueError("last word")',
        CheckpointError,
        "the tracing process failed: ValueError: last word",
    ),
    "silent": ("raise SystemExit(3)", CheckpointError, "failed: no message"),
    "no answer": ("pass", CheckpointError, "trace.json"),
    "a wrong answer": (
        '(out / "trace.json").write_text("{}")',
        CheckpointError,
        "trace.json: found no versions and sizes",
    ),
}


@pytest.mark.parametrize("name", ENDS)
def test_every_end_becomes_one_error(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code, error, message = ENDS[name]
    play(monkeypatch, code)
    with pytest.raises(error, match=message):
        run_trace(tmp_path, tmp_path)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(process, "PACKAGES", ("numpy", "no_such_package"))
    with pytest.raises(pocketlm.MissingExtraError) as caught:
        run_trace(tmp_path, tmp_path)
    assert "--via optimum needs the package 'no_such_package'" in str(caught.value)
    assert 'pip install "pocketlm[optimum]"' in str(caught.value)


def test_the_child_may_be_of_another_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(process, "PACKAGES", ("no_such_package",))
    other = tmp_path / "python"
    other.write_text(
        "#!/bin/sh\nfor out; do :; done\n"
        """echo '{"versions": {"by": "'$3'"}, "sizes": {}}' > "$out/trace.json"\n"""
    )
    other.chmod(0o755)
    monkeypatch.setenv("POCKETLM_OPTIMUM_PYTHON", str(other))
    assert run_trace(tmp_path, tmp_path).versions == {"by": "pocketlm.export.traced.child"}


def test_another_environment_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("POCKETLM_OPTIMUM_PYTHON", str(tmp_path / "nowhere"))
    with pytest.raises(pocketlm.MissingExtraError, match="POCKETLM_OPTIMUM_PYTHON: found no prog"):
        run_trace(tmp_path, tmp_path)


def gone(pid: int) -> bool:
    """Whether the process has ended, asked for a while."""
    for _ in range(300):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


PARENT = """
import sys
from pathlib import Path
from pocketlm.export.traced import process
process.PACKAGES = ()
code = '''
import os, sys, threading, time
from pocketlm.export.traced.child import end_with_parent
threading.Thread(target=end_with_parent, daemon=True).start()
print(os.getpid(), file=open(sys.argv[2] + "/pid.new", "w"), flush=True)
os.rename(sys.argv[2] + "/pid.new", sys.argv[2] + "/pid")
time.sleep(60)
'''
process._program = lambda: [sys.executable, "-c", code]
process.run_trace(Path(sys.argv[1]), Path(sys.argv[1]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_the_child_ends_with_its_parent(number: int, tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stderr=-3)
    try:
        for _ in range(600):
            if (tmp_path / "pid").exists():
                break
            time.sleep(0.05)
        child = int((tmp_path / "pid").read_text())
        assert Path(f"/proc/{child}").exists()
        os.kill(parent.pid, number)
        assert parent.wait() != 0
        assert gone(child)
    finally:
        parent.kill()
        parent.wait()


def test_the_parent_never_loads_torch() -> None:
    code = """
        import sys
        import pocketlm.commands.export, pocketlm.export.via_optimum
        print(sorted({"torch", "transformers", "optimum"} & set(sys.modules)))
    """
    done: Any = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout.replace("'", '"')) == []
