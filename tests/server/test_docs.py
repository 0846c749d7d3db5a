"""docs/server.md: every command and program in it works as it is typed, on the server it describes.

Where it says port 8080 a free one is meant.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from command_line import Run
from source_tree import ROOT

from pocketlm.commands.api_key import find_key
from pocketlm.commands.serve import command as SERVE

pytestmark = pytest.mark.serve

TEXT = (ROOT / "docs" / "server.md").read_text("utf-8")
URL = "http://127.0.0.1:8080"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


LINES = [line for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines()]


def lines(*beginnings: str) -> list[str]:
    """Commands that begin so."""
    return [line for line in LINES if line.startswith(beginnings)]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where ``pocketlm serve`` listens, as the page begins."""
    assert lines("pocketlm serve")[0] == "pocketlm serve"
    command = [sys.executable, "-m", "pocketlm", "serve", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        said = (re.search(r"http://127\.0\.0\.1:\d+", line) for line in server.stderr)
        server_url = next(found[0] for found in said if found)
        # What it says is read, or it would wait for that one day.
        log = subprocess.Popen(["cat"], stdin=server.stderr, stdout=subprocess.DEVNULL)
        yield server_url
        server.terminate()
        assert server.wait(60) == 0
        log.wait(60)


def ran(
    url: str, command: str | list[str], environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A shell's command, or a program, without a key of anybody."""
    given = {**os.environ, "OPENAI_API_KEY": "", "NO_PROXY": "127.0.0.1", **(environment or {})}
    ended = subprocess.run(
        command.replace(URL, url) if isinstance(command, str) else command,
        shell=isinstance(command, str),
        cwd=ROOT,
        env={name: value for name, value in given.items() if name != "OPENAI_API_KEY" or value},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr + ended.stdout
    return ended


def test_every_command_is_of_a_kind_that_is_tried() -> None:
    known = ["pip install", "pocketlm serve", "pocketlm run", "pocketlm chat", "curl ", "llm "]
    known += ["OPENAI_BASE_URL=", "lm_eval ", "python -c "]
    assert [line for line in LINES if not line.startswith(tuple(known))] == []


@pytest.mark.parametrize("line", lines("pocketlm serve"))
def test_what_serves_has_these_options(line: str) -> None:
    SERVE.make_context("serve", shlex.split(line)[2:])


def test_the_service_of_systemd_has_these_options() -> None:
    (block,) = blocks("ini")
    unit = configparser.ConfigParser(interpolation=None)
    unit.read_string(block)
    assert unit.sections() == ["Unit", "Service", "Install"]
    program, verb, *words = shlex.split(unit["Service"]["ExecStart"])
    assert (program, verb) == ("%h/venv/bin/pocketlm", "serve")
    SERVE.make_context("serve", words)


def test_the_command_makes_a_key(tmp_path: Path) -> None:
    (line,) = lines("python -c ")
    command = line.replace("python ", f"{shlex.quote(sys.executable)} ", 1)
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    assert len(find_key(tmp_path / "key.txt") or "") > 40
    assert (tmp_path / "key.txt").stat().st_mode & 0o77 == 0


@pytest.mark.parametrize("line", lines("curl"))
def test_requests_are_answered(line: str, url: str) -> None:
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    said = ran(url, line.replace("curl ", "curl -sS ")).stdout
    if '"stream": true' in line:
        assert said.endswith("data: [DONE]\n\n") and '"error"' not in said
    elif line.endswith("/metrics"):
        assert said.startswith("# HELP ")
    else:
        assert json.loads(said).get("error") is None, said


@pytest.mark.parametrize("line", lines("pocketlm run"))
def test_run_asks_the_server(line: str, url: str, run: Run) -> None:
    ended = run(*shlex.split(line.replace(URL, url))[1:])
    assert ended.code == 0 and ended.out.strip(), ended.err


@pytest.mark.parametrize("line", lines("pocketlm chat"))
def test_chat_asks_the_server(line: str, url: str, run: Run) -> None:
    ended = run(*shlex.split(line.replace(URL, url))[1:], lines="Who are you?\nWhy?\n")
    assert ended.code == 0 and len(ended.out.splitlines()) >= 2, ended.err


@pytest.mark.clients
def test_a_program_without_a_line_about_us_works(url: str) -> None:
    pytest.importorskip("openai")
    (line,) = lines("OPENAI_BASE_URL=")
    said = ran(url, line.replace(" python ", f" {shlex.quote(sys.executable)} ")).stdout
    assert f"{url}/v1/ has demo" in said and "The likeliest first words:" in said


@pytest.mark.clients
@pytest.mark.parametrize("number, package", [(0, "openai"), (1, "langchain_openai")])
def test_programs_in_python_work(number: int, package: str, url: str) -> None:
    pytest.importorskip(package)
    program = blocks("python")[number].replace(URL, url)
    assert len(ran(url, [sys.executable, "-c", program]).stdout.split()) > 4
    assert len(blocks("python")) == 2


@pytest.mark.clients
def test_llm_asks_the_server(url: str, tmp_path: Path) -> None:
    pytest.importorskip("llm")
    (settings,), (line,) = blocks("yaml"), lines("llm ")
    (tmp_path / "extra-openai-models.yaml").write_text(settings.replace(URL, url))
    command = [sys.executable, "-m", *shlex.split(line)]
    assert len(ran(url, command, {"LLM_USER_PATH": str(tmp_path)}).stdout.split()) > 5


@pytest.mark.lm_eval
def test_the_harness_asks_the_server(url: str, tmp_path: Path) -> None:
    """With a task of two questions, in place of one that would be downloaded."""
    if shutil.which("lm_eval") is None:
        pytest.skip("needs lm_eval")
    (line,) = lines("lm_eval ")
    pairs = [("The night was", " dark"), ("He took off his", " hat")]
    asked = [json.dumps({"context": context, "end": end}) for context, end in pairs]
    (tmp_path / "asked.jsonl").write_text("\n".join(asked))
    task = {
        "task": "ends",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "asked.jsonl")}},
        "test_split": "test",
        "output_type": "loglikelihood",
        "doc_to_text": "{{context}}",
        "doc_to_target": "{{end}}",
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "ends.yaml").write_text(json.dumps(task))  # which YAML is, too
    line = line.replace("lambada_openai", f"ends --include_path {tmp_path}")
    said = ran(url, line, {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}).stdout
    assert re.search(r"\|ends +\|.*\|acc ", said), said
