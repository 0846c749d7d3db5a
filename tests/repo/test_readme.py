"""README and docs are true: commands and Python run, tables are those of the results."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint_files import (
    gpt2_config,
    gpt2_tensors,
    write_checkpoint,
    write_llmc,
    write_tokenizer,
)
from command_line import Run
from hub_server import HubServer
from llama_checkpoints import llama_config, llama_tensors
from source_tree import ROOT

from pocketlm.benchmarks.readme_tables import fill

# What makes a command quicker that does its work many times, or on many tokens.
QUICKER = {
    "pocketlm bench": " -r 1",
    "--precision int4 --dry-run": "",
    "--precision int4": " --calibrate none",
}
SHELL = re.compile(r"[|&;<>$`]")  # what only a shell understands, wherever it stands
README = (ROOT / "README.md").read_text("utf-8")
PAGES = ["index.md", "own-model.md", "benchmark.md"]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


# Pages whose commands go on from one another, in this order.
FIRST_STEPS = [README, *((ROOT / "docs" / page).read_text("utf-8") for page in PAGES)]


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands() -> list[str]:
    """Every line of a shell block that installs nothing, once."""
    texts = [block for text in FIRST_STEPS for block in blocks("sh", text)]
    lines = [line.split("   #")[0].strip() for text in texts for line in text.splitlines()]
    return list(dict.fromkeys(line for line in lines if line and "pip install" not in line))


def environment(folder: Path) -> dict[str, str]:
    """``pocketlm`` on the path is this interpreter's module, whatever is installed elsewhere."""
    program = folder / "bin" / "pocketlm"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pocketlm "$@"\n')
    program.chmod(0o755)
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "POCKETLM_CACHE": str(folder / "cache")}


def test_commands_of_the_readme_and_the_first_pages_work(
    tmp_path: Path, run: Run, hub_server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pasted one after another into one folder, with what a user has there.

    What needs no shell is run in this process: twenty starts would take most of the time.
    """
    config = gpt2_config(vocab_size=300, n_positions=1024)
    write_checkpoint(tmp_path / "path" / "to" / "gpt2-folder", config, gpt2_tensors(config))
    write_llmc(tmp_path / "model_00019560.bin", config, gpt2_tensors(config))
    write_tokenizer(tmp_path / "gpt2-tokenizer-folder", 300)
    hub_server.add(
        "meta-llama/Llama-3.2-1B-Instruct", write_llama(tmp_path / "path" / "to" / "llama-folder")
    )
    write_texts(tmp_path)
    shutil.copytree(ROOT / "docs" / "examples", tmp_path / "docs" / "examples")
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    lines = commands()
    assert len(lines) >= 10
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        for line in lines:
            line += next((QUICKER[words] for words in QUICKER if words in line), "")
            if line.startswith("pocketlm ") and not SHELL.search(line):
                ended = run(*shlex.split(line)[1:])
                assert ended.code == 0, (line, ended.err)
            else:
                done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
                assert done.returncode == 0, (line, done.stderr)


def write_texts(folder: Path) -> None:
    """What the commands that measure are given, in the forms that the README names."""
    story = "It was a dark and stormy night, and the old house stood silent upon the hill. "
    (folder / "held-out.txt").write_text(story * 60)
    lambada = {"context": "It was a dark and stormy", "continuation": "night"}
    hellaswag = {
        "activity_label": "Reading",
        "ctx_a": "A man sits down.",
        "ctx_b": "he",
        "label": 1,
    }
    hellaswag |= {"endings": ["flies away.", "opens a book.", "melts.", "sings to a stone."]}
    piqa = {"query": "Question: How to light a fire?", "choices": ["Use dry wood.", "Use water."]}
    items = {"lambada": lambada, "hellaswag": hellaswag | {"label": 1}, "piqa": piqa | {"gold": 0}}
    for name, item in items.items():
        (folder / f"{name}.jsonl").write_text(f"{json.dumps(item)}\n" * 3)


def write_llama(folder: Path) -> Path:
    """A tiny Llama that can chat."""
    config = llama_config()
    write_checkpoint(folder, config, llama_tensors(config))
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    return folder


def test_first_command_is_the_demo() -> None:
    assert blocks("sh")[0].startswith('pip install ".[cli]" && pocketlm run "')


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_the_first_page_has_the_python_of_the_readme() -> None:
    assert blocks("python", FIRST_STEPS[1])[0] == blocks("python")[0]


def test_python_runs_as_printed(tmp_path: Path) -> None:
    block = blocks("python")[0]
    program = block + "print(result.finish_reason, len(result.token_ids))\n"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(tmp_path), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"\w+ \d+\n$", done.stdout)


@pytest.mark.parametrize(
    "words",
    sorted(
        {
            words
            for document in DOCUMENTS
            for words in re.findall(
                r"^    python -m (pocketlm\.benchmarks[\w.]*)", document.read_text("utf-8"), re.M
            )
        }
    ),
)
def test_benchmarks_named_in_the_readme_explain_themselves(words: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", words, "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "--threads" in done.stdout


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_tables_are_those_of_the_results(document: Path) -> None:
    text = document.read_text("utf-8")
    name = document.relative_to(ROOT)
    assert fill(text, ROOT / "benchmarks" / "results") == text, (
        f"run: python -m pocketlm.benchmarks.readme_tables {name} benchmarks/results"
    )


def test_the_readme_has_the_app_of_its_page() -> None:
    page = (ROOT / "docs" / "app.md").read_text("utf-8")
    assert blocks("python", page)[0] == blocks("python")[1]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text("utf-8")):
        assert (document.parent / link).exists(), link
