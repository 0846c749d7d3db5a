"""What pocketlm leaves of a process as it finds it: everything, at import, at work and after.

Its own is one variable of the environment, set for ONNX Runtime; and while a model is open, the
threads that compute.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import typing
from inspect import isclass, isfunction
from pathlib import Path
from typing import Any

import pytest

import pocketlm
from pocketlm.export.folder import ModelFolder

STAGES = """
import json, sys
sys.flags.interactive  # nothing of ours yet
import asyncio, contextlib, decimal, locale, logging, os, random, signal, threading, time, warnings

import numpy, tokenizers
path, report = sys.argv[1:]
os.environ.pop("ORT_DISABLE_TELEMETRY", None)

def state():
    root = logging.getLogger()
    loggers = [root, *map(logging.getLogger, sorted(logging.root.manager.loggerDict))]
    return {
        "environment": dict(os.environ),
        "signals": [str(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
        "wakeup": signal.set_wakeup_fd(-1),
        "logging": [[one.name, one.level, len(one.handlers), one.disabled] for one in loggers],
        "warnings": len(warnings.filters),
        "hooks": [str(hook) for hook in (sys.excepthook, sys.unraisablehook, threading.excepthook)],
        "streams": [id(stream) for stream in (sys.stdin, sys.stdout, sys.stderr)],
        "paths": [os.getcwd(), sys.path, len(sys.meta_path), len(sys.path_hooks)],
        "numbers": [str(numpy.geterr()), str(decimal.getcontext()), locale.setlocale(locale.LC_ALL)],
        "chance": [hash(random.getstate()), hash(str(numpy.random.get_state()))],
        "limits": [sys.getrecursionlimit(), sys.getswitchinterval(), os.umask(os.umask(0o22))],
        "tracing": [str(sys.gettrace()), str(threading.gettrace())],
        "python threads": threading.active_count(),
        "threads": len(os.listdir("/proc/self/task")) if os.path.exists("/proc/self/task") else 0,
    }

stages = {"before": state()}
import pocketlm
stages["imported"] = state()
for name in pocketlm.__all__:
    getattr(pocketlm, name)
stages["every name imported"] = state()
model = pocketlm.load(path, threads=2)
stages["loaded"] = state()
model.generate("abc", max_tokens=3)
model.generate([5] * 100, max_tokens=3, seed=1)
model.score("a", ["b"])
list(model.chat([{"role": "user", "content": "Hi"}], transcript=True, max_tokens=3))
model.new_session().append("a")
stages["generated"] = state()
model.submit("a", max_tokens=3).result()

async def read():
    async for _ in model.astream("a", max_tokens=3):
        pass

asyncio.run(read())
model.close()
deadline = time.monotonic() + 60
while state()["threads"] > stages["before"]["threads"] and time.monotonic() < deadline:
    time.sleep(0.01)
stages["closed"] = state()
with open(report, "w") as file:
    json.dump(stages, file)
"""


@pytest.fixture(scope="module")
def stages(
    tiny_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    report = tmp_path_factory.mktemp("hygiene") / "report.json"
    command = [sys.executable, "-c", STAGES, str(tiny_folder.path), str(report)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")  # nothing is printed
    found: dict[str, dict[str, Any]] = json.loads(report.read_text())
    return found


@pytest.mark.parametrize("stage", ["imported", "every name imported", "generated", "closed"])
def test_a_process_stays_as_it_was(stages: dict[str, dict[str, Any]], stage: str) -> None:
    before, found = dict(stages["before"]), dict(stages[stage])
    environment = {**before.pop("environment"), "ORT_DISABLE_TELEMETRY": "1"}
    assert found.pop("environment") == environment
    if stage == "generated":
        more = found.pop("threads") - before.pop("threads")
        assert more in (0, 1)  # of two that compute one is the caller
    assert found == before


def test_a_model_starts_no_thread_but_those_that_compute(
    stages: dict[str, dict[str, Any]],
) -> None:
    before, loaded = stages["before"], stages["loaded"]
    assert loaded["python threads"] == before["python threads"]
    assert loaded["threads"] - before["threads"] in (0, 1)


# Telemetry ---------------------------------------------------------------------------------------

SPY = """
import importlib.abc, os, sys

class Spy(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.startswith("onnxruntime.capi.onnxruntime_pybind11_state"):
            print("telemetry off:", os.environ.get("ORT_DISABLE_TELEMETRY"), flush=True)

sys.meta_path.insert(0, Spy())
"""
ENTRIES = {
    "load": "import pocketlm; pocketlm.load",
    "runtime": "import pocketlm.runtime.model",
    "engine": "from pocketlm.runtime import engine",
    "export": "import pocketlm.export.writing; import pocketlm.runtime.session",
    "python -m": "import runpy; sys.argv[1:] = ['run', folder, 'a', '--max-tokens', '1']\n"
    "runpy.run_module('pocketlm', run_name='__main__')",
    "script": "from pocketlm.cli import main; main(['run', folder, 'a', '--max-tokens', '1'])",
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_telemetry_is_off_before_onnxruntime_starts(entry: str, tiny_folder: ModelFolder) -> None:
    """Whichever module is imported first: before its library is even looked for."""
    code = f"{SPY}\nfolder = sys.argv[1]\n{ENTRIES[entry]}"
    environment = {name: value for name, value in os.environ.items() if "TELEMETRY" not in name}
    command = [sys.executable, "-c", code, str(tiny_folder.path)]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert (ended.returncode, ended.stdout.splitlines()[0]) == (0, "telemetry off: 1"), ended.stderr


# Types -------------------------------------------------------------------------------------------


def public_functions() -> dict[str, Any]:
    """Every function, method and property of what ``import pocketlm`` offers, and its classes."""
    found: dict[str, Any] = {}
    for name in pocketlm.__all__:
        offered = getattr(pocketlm, name)
        if isfunction(offered) or isclass(offered):
            found[name] = offered
        for owner in getattr(offered, "__mro__", ()):
            if not owner.__module__.startswith("pocketlm."):
                continue
            for part, value in vars(owner).items():
                function = getattr(value, "fget", None) or getattr(value, "func", value)
                function = getattr(function, "__func__", function)
                if isfunction(function) and (part[0] != "_" or part == "__init__"):
                    found[f"{owner.__name__}.{part}"] = function
    return found


def test_types_can_be_asked_for_although_they_are_imported_late() -> None:
    """As IDEs do, and libraries that make forms of signatures."""
    functions = public_functions()
    assert {"load", "Model.chat", "Model.chat_template", "TextSession.__init__"} <= functions.keys()
    hints = {name: typing.get_type_hints(function) for name, function in functions.items()}
    assert hints["Model.submit"]["return"] is pocketlm.Job
    assert hints["Model.beams"]["return"] == list[pocketlm.Beam]
    assert hints["Model.stream"]["return"] is pocketlm.TextStream
    late = [
        name
        for name, found in hints.items()
        for hint in found.values()
        if "ForwardRef" in str(hint)
    ]
    assert late == []
