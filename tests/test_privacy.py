"""Nothing of a model, a prompt or a person leaves this machine: no address is ever asked for.

Held three ways: by what Python tells of sockets, everywhere; by the system calls of the process,
those of ONNX Runtime and its threads included; and where there is no network at all.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from model_folders import with_files

from pocketlm.export.folder import ModelFolder

pytest.importorskip("onnx")  # what exports a checkpoint
pytest.importorskip("jinja2")  # what chats

USE = """
import sys
asked = []
sys.addaudithook(lambda event, args: asked.append(event) if event.startswith("socket.") else None)
import pocketlm
from pocketlm.cli import main

checkpoint, folder = sys.argv[1:]
message = [{"role": "user", "content": "Hi"}]
with pocketlm.load(folder, threads=2) as model:
    model.generate("abc", max_tokens=5)
    model.generate(model.chat_prompt(message), max_tokens=5)
    model.submit("abc", max_tokens=5).result()
    list(model.generate_many(["a", "b"], max_tokens=5))
with pocketlm.load(checkpoint, precision="int8", threads=2) as model:
    model.score("a", ["b"])
try:
    main(["run", folder, "abc", "--max-tokens", "5"])
except SystemExit as ended:
    print(f"\\nexit code {ended.code}, sockets {asked}")
"""
CALLS = "connect,socket,socketpair,bind,sendto,sendmsg,sendmmsg,recvfrom"


@dataclass(frozen=True)
class Ended:
    """How it ended, and how strictly it was looked at."""

    code: int
    said: str
    errors: str
    was_alone: bool
    calls: str | None


@pytest.fixture(scope="module")
def ended(
    tiny_checkpoint: Path, tiny_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory
) -> Ended:
    """Exports, loads, generates and chats, as library and as a command, with an empty cache.

    Once, as strictly as this machine allows.
    """
    place = tmp_path_factory.mktemp("private")
    template = {"chat_template.jinja": "{{ messages[0]['content'] }}"}
    folder = with_files(tiny_folder, place / "folder", template)
    command = [sys.executable, "-c", USE, str(tiny_checkpoint), str(folder.path)]
    calls = place / "calls"
    trace = ["strace", "-f", "-qq", "-e", f"trace={CALLS}", "-e", "signal=none", "-o", str(calls)]
    is_traced = works([*trace, "true"])
    command = [*trace, *command] if is_traced else command
    alone = ["unshare", "--user", "--map-root-user", "--net"]
    is_alone = works([*alone, *command[: len(trace) * is_traced], "true"])
    found = subprocess.run(
        [*alone, *command] if is_alone else command,
        env=os.environ | {"POCKETLM_CACHE": str(place / "cache")},
        capture_output=True,
        text=True,
        timeout=600,
    )
    told = calls.read_text() if is_traced else None
    return Ended(found.returncode, found.stdout, found.stderr, is_alone, told)


def works(command: list[str]) -> bool:
    """Whether this machine has such a program, and lets us run it."""
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, capture_output=True).returncode == 0


def test_python_opens_no_socket(ended: Ended) -> None:
    assert ended.code == 0, ended.errors
    assert ended.said.splitlines()[-1] == "exit code 0, sockets []"


def test_no_thread_of_any_kind_makes_a_call_for_the_network(ended: Ended) -> None:
    if ended.calls is None:
        pytest.skip("strace is not installed, or may not trace here")
    assert re.findall(rf"^.*\b(?:{CALLS.replace(',', '|')})\(.*", ended.calls, re.M) == []


def test_where_there_is_no_network_all_of_it_works(ended: Ended) -> None:
    if not ended.was_alone:
        pytest.skip("unshare is not installed, or may make no network namespace here")
    assert ended.code == 0, ended.errors


def test_a_socket_would_be_seen() -> None:
    program = USE.partition("import pocketlm")[0] + (
        "import socket\ntry:\n    socket.create_connection(('127.0.0.1', 9), 1)\n"
        "except OSError:\n    print(asked)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout
    assert "socket.connect" in said
