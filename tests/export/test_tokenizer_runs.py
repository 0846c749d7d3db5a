"""A tokenizer that cannot be run is refused before anything is published, and in a plan already."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import Run

from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.errors import CheckpointError
from pocketlm.export.folder_tokenizer import read_tokenizer
from pocketlm.export.plan import open_headers
from pocketlm.export.tokenizers import open_tokenizer
from pocketlm.export.writing import export_model, plan_export
from pocketlm.runtime.tokenizer import Tokenizer

VOCABULARY = 300  # rows of the tiny checkpoint


def around(token_id: int) -> dict[str, Any]:
    """A post-processor that puts ``token_id`` before every text."""
    begin = {"SpecialToken": {"id": "<b>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    tokens = {"<b>": {"id": "<b>", "ids": [token_id], "tokens": ["<b>"]}}
    sides = {"single": [begin, text], "pair": [begin, text]}
    return {"type": "TemplateProcessing", **sides, "special_tokens": tokens}


BROKEN: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a merge of no tokens": (lambda c: c["model"]["merges"].append(["no", "such"]), "reading it"),
    "an unknown model": (lambda c: c["model"].update(type="Markov"), "reading it failed"),
    "no such pre-tokenizer": (lambda c: c.update(pre_tokenizer={"type": "x"}), "reading it failed"),
    "a template without its token": (
        lambda c: c.update(post_processor=around(0) | {"special_tokens": {}}),
        "encoding a text failed .Panic",
    ),
    "a template beyond the vocabulary": (
        lambda c: c.update(post_processor=around(VOCABULARY)),
        "found the token id 300 put around every text, expected 0 to 299",
    ),
}


@pytest.fixture
def tokenizer(tiny_checkpoint: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Writes the tiny checkpoint's tokenizer, broken in one way."""

    def write(case: str) -> Path:
        content = json.loads((tiny_checkpoint / "tokenizer.json").read_text("utf-8"))
        BROKEN[case][0](content)
        file = tmp_path / "tokenizer.json"
        file.write_text(json.dumps(content), "utf-8")
        return file

    return write


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_run_is_not_exported(
    case: str, tiny_checkpoint: Path, tokenizer: Callable[[str], Path], tmp_path: Path
) -> None:
    file, out = tokenizer(case), tmp_path / "out"
    for act in (
        lambda: export_model(open_checkpoint(tiny_checkpoint, file), out),
        lambda: plan_export(open_headers(tiny_checkpoint, file), out),
    ):
        with pytest.raises(CheckpointError, match=f"tokenizer.json: {BROKEN[case][1]}"):
            act()
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("verb", [["export"], ["export", "--dry-run"], ["run"]])
def test_the_command_line_says_so_in_a_line(
    verb: list[str],
    run: Run,
    tiny_checkpoint: Path,
    tokenizer: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    name, *options = verb
    words = [tiny_checkpoint, tmp_path / "out" if name == "export" else "prompt"]
    ended = run(name, *words, *options, "--tokenizer", tokenizer("an unknown model"))
    assert (ended.code, ended.out) == (2, "")
    assert "reading it failed" in ended.err and len(ended.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_plan_of_weights_without_a_tokenizer_is_refused_as_the_export_is(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    shutil.copytree(
        tiny_checkpoint, tmp_path / "in", ignore=shutil.ignore_patterns("tokenizer.json")
    )
    with pytest.raises(CheckpointError, match="found no tokenizer, expected one beside"):
        plan_export(open_headers(tmp_path / "in"), tmp_path / "out")


def test_a_plan_from_config_alone_opens_the_tokenizer_it_is_given(
    tiny_checkpoint: Path, tokenizer: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "headers").mkdir()
    config = (tiny_checkpoint / "config.json").read_bytes()
    (tmp_path / "headers/config.json").write_bytes(config)
    plan_export(open_headers(tmp_path / "headers"), tmp_path / "out")
    with pytest.raises(CheckpointError, match="reading it failed"):
        headers = open_headers(tmp_path / "headers", tokenizer("an unknown model"))
        plan_export(headers, tmp_path / "out")


def test_what_is_exported_can_be_run(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """However a tokenizer is damaged, export and run are of one mind."""
    generator = random.Random(1)
    whole = (tiny_checkpoint / "tokenizer.json").read_bytes()
    file, published = tmp_path / "tokenizer.json", tmp_path / "published.json"
    num_refused, rounds = 0, 150
    for _ in range(rounds):
        content = bytearray(whole)
        for _ in range(generator.randint(1, 3)):
            content[generator.randrange(len(content))] = generator.randrange(256)
        file.write_bytes(content)
        try:
            files, _ = read_tokenizer(open_tokenizer(file), VOCABULARY)
        except CheckpointError as error:
            assert "tokenizer.json" in str(error) and "\n" not in str(error)
            num_refused += 1
        else:
            published.write_bytes(files["tokenizer.json"])
            opened = Tokenizer.open(published)
            opened.decode(range(VOCABULARY))
    assert 0 < num_refused < rounds
