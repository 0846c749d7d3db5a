"""The demo model in the package: small, described, and writing the same text as when frozen.

Level: golden. The frozen tokens were made with ``pocketlm.load(precision="fp32")``, greedy, and
onnxruntime 1.32; at every step the runner-up is at least 0.14 behind in logits, far beyond what
another processor's rounding moves them (about 1e-4).
"""

from __future__ import annotations

import io
import math
import re
import shutil
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from command_line import Run

import pocketlm
from pocketlm.benchmarks.bench import BenchPlan
from pocketlm.export.errors import CheckpointError, RequestError
from pocketlm.models.local import demo_checkpoint

DEMO_FILES = demo_checkpoint()
FROZEN = {
    "It was a dark and stormy night": (
        [12, 279, 263, 1224, 310, 779, 12, 279, 263, 1224]
        + [310, 779, 12, 279, 263, 1224, 310, 779, 12, 279],
        ", and the sun was still, and the sun was still, and the sun was still, and",
    ),
    " Once upon a time there": (
        [310, 259, 657, 1598, 282, 263, 869, 12, 279, 263]
        + [869, 310, 259, 657, 430, 12, 279, 263, 869, 310],
        " was a great deal of the world, and the world was a great man, and the world was",
    ),
}


@pytest.fixture(scope="module")
def demo() -> pocketlm.Model:
    return pocketlm.load(precision="fp32", threads=1)


def test_demo_is_small_and_complete() -> None:
    files = {file.name: file.stat().st_size for file in demo_checkpoint().iterdir()}
    assert files.keys() == {"README.md", "config.json", "model.safetensors", "tokenizer.json"}
    assert sum(files.values()) <= 16_000_000


def test_card_states_data_licence_and_perplexity() -> None:
    card = (demo_checkpoint() / "README.md").read_text("utf-8")
    for part in ("Training data", "public domain", "Held out", "Treasure Island", "Licence"):
        assert part in card
    perplexity, nats = re.findall(r"\d+\.\d+", card.split("Perplexity")[1].replace("\n", " "))[::3]
    assert math.exp(float(nats)) == pytest.approx(float(perplexity), rel=1e-3)


@pytest.mark.parametrize("prompt", FROZEN)
def test_greedy_text_is_frozen(demo: pocketlm.Model, prompt: str) -> None:
    token_ids, text = FROZEN[prompt]
    result = demo.generate(prompt, temperature=0, max_tokens=20)
    assert result.token_ids == token_ids
    assert result.text == text


def test_default_precision_writes_english() -> None:
    """What ``pocketlm run PROMPT`` does; int8 may differ from fp32, but not in kind."""
    text = pocketlm.load(threads=1).generate("It was a dark", max_tokens=60, seed=1).text
    words = re.findall(r"[a-z]+", text.lower())
    common = {"the", "and", "of", "to", "a", "was", "in", "he", "she", "it", "i", "that", "had"}
    assert len(words) >= 20 and len(common & set(words)) >= 4


# By name -----------------------------------------------------------------------------------------


def test_demo_is_a_name_that_load_takes(demo: pocketlm.Model) -> None:
    assert pocketlm.load("demo", precision="fp32").folder.path == demo.folder.path


@pytest.mark.parametrize(
    ("line", "printed"),
    [
        ("run demo sea --max-tokens 2 --json", '"prompt": "sea"'),
        ("export demo OUT --dry-run --precision int8", "parameters    7,498,240"),
        ("info demo", "precision     int8, "),
        ("quantize demo OUT --to int8", "7,498,240 parameters, to int8"),
        ("eval demo --against demo --text TEXT --window 64 --output csv", "demo-fp32"),
    ],
)
def test_demo_is_a_name_that_the_verbs_take(
    demo: pocketlm.Model, run: Run, tmp_path: Path, line: str, printed: str
) -> None:
    (tmp_path / "text").write_text("It was a dark and stormy night. " * 20)
    places = {"OUT": tmp_path / "out", "TEXT": tmp_path / "text"}
    ended = run(*[places.get(word, word) for word in line.split()])
    assert ended.code == 0, ended
    assert printed in ended.out + ended.err


def test_demo_is_a_name_that_bench_takes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def plan_only(plan: BenchPlan, on_event: object) -> dict[str, Any]:
        raise RequestError(f"planned {', '.join(plan.folders)}")

    monkeypatch.setattr("pocketlm.commands.bench.run_bench", plan_only)
    assert run("bench", "demo").err == "pocketlm: planned demo-int8\n"


def test_demo_is_a_name_that_chat_takes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
    ended = run("chat", "demo", "--max-tokens", "2")
    assert (ended.code, ended.out != "") == (0, True)


def test_demo_is_listed_and_removed_by_name_wherever_it_lies(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A frozen application may unpack it anew, with new times, at every start."""
    monkeypatch.setenv("POCKETLM_CACHE", str(tmp_path / "cache"))
    assert run("list").out.endswith(
        "demo: comes with pocketlm; exported to the cache when it first runs\n"
    )
    paths = []
    for start in ("one", "two"):
        place = tmp_path / start / "demo"
        place.mkdir(parents=True)
        for file in DEMO_FILES.iterdir():
            (place / file.name).write_bytes(file.read_bytes())
        monkeypatch.setattr(pocketlm, "__file__", str(place.with_name("__init__.py")))
        paths.append(pocketlm.load("demo").folder.path)
    assert paths[0] == paths[1]
    heading, row, size = run("list").out.splitlines()
    assert row.split()[:2] == ["demo", "int8"] and size.startswith("8.")
    assert run("remove", "demo").out.startswith("removed demo (int8): 8.")
    assert run("remove", "demo").code == 2


def test_an_application_without_the_demos_files_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pocketlm, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(resources, "files", lambda package: tmp_path)
    message = 'found no demo model.*has to freeze it where "pocketlm.export." is installed'
    with pytest.raises(CheckpointError, match=message):
        demo_checkpoint()


def test_a_frozen_application_brings_the_demo_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = pocketlm.load("demo").folder.path
    carried = shutil.copytree(made, tmp_path / "pocketlm" / "demo-int8")
    monkeypatch.setattr(pocketlm, "__file__", str(carried.with_name("__init__.py")))
    for environment in ("/dev/null", str(tmp_path / "cache")):
        monkeypatch.setenv("POCKETLM_CACHE", environment)
        assert pocketlm.load().folder.path == carried
    assert not (tmp_path / "cache" / "models").exists()
