"""A GGUF file is a model by its name: run, planned, exported and shown like any checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checkpoint_files import gpt2_config, gpt2_tensors, write_checkpoint
from command_line import Run, assert_refused
from gguf_files import write_gguf

import pocketlm
from pocketlm.export.folder import ModelFolder

Q8_0 = 8
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}<|endoftext|>"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """m.gguf and q.gguf (Q8_0), and the checkpoint hf/ that the first was made from."""
    folder = tmp_path_factory.mktemp("gguf")
    config = gpt2_config(vocab_size=300, n_positions=160)
    tensors = {
        name: values * 5 if values.ndim == 2 else values
        for name, values in gpt2_tensors(config, seed=1).items()
    }
    hf = write_checkpoint(folder / "hf", config, tensors)
    tokenizer = hf / "tokenizer.json"
    template = {"tokenizer.chat_template": TEMPLATE}
    write_gguf(folder / "m.gguf", config, tensors, tokenizer, entries=template)
    write_gguf(folder / "q.gguf", config, tensors, tokenizer, Q8_0, template)
    return folder


def test_it_says_what_its_checkpoint_says(models: Path, run: Run) -> None:
    greedy = ("--temperature", "0", "--max-tokens", "24")
    expected = run("run", models / "hf", "once upon a time", *greedy)
    found = run("run", models / "m.gguf", "once upon a time", *greedy)
    assert found.code == 0 and found.out == expected.out and len(found.out) > 20


def test_it_is_exported_once(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = pocketlm.load(models / "q.gguf").folder.path

    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("exported again")

    monkeypatch.setattr("pocketlm.models.making._export", never)
    assert pocketlm.load(models / "q.gguf").folder.path == first
    assert first.name.startswith("q-int8-")


def test_it_answers_by_its_own_template(models: Path, run: Run) -> None:
    found = run("run", models / "q.gguf", "hello", "--chat", "--max-tokens", "8", "--json")
    told = json.loads(found.out)
    assert found.code == 0 and told["prompt_tokens"] == 1 + len(
        pocketlm.load(models / "q.gguf").tokenizer.encode("hello")
    )


def test_plan_and_info_say_what_the_weights_were(models: Path, run: Run, tmp_path: Path) -> None:
    lost = "weights were Q8_0: what was lost stays lost"
    planned = run("export", models / "q.gguf", tmp_path / "out", "--dry-run")
    assert planned.code == 0 and lost in planned.out and not (tmp_path / "out").exists()
    as_json = run("export", models / "q.gguf", tmp_path / "out", "--dry-run", "--json")
    assert json.loads(as_json.out)["quantized"] == ["Q8_0"]
    exported = run("export", models / "q.gguf", tmp_path / "out")
    assert exported.code == 0 and lost in exported.err
    assert f"source        gguf: q.gguf; {lost}" in run("info", tmp_path / "out").out
    assert ModelFolder.open(tmp_path / "out").manifest.source.quantized == ("Q8_0",)
    again = run("quantize", tmp_path / "out", tmp_path / "int8", "--to", "int8")
    assert again.code == 0 and lost in run("info", tmp_path / "int8").out


def test_plain_weights_have_lost_nothing(models: Path, run: Run, tmp_path: Path) -> None:
    planned = run("export", models / "m.gguf", tmp_path / "out", "--dry-run")
    assert planned.code == 0 and "stays lost" not in planned.out


def test_a_damaged_file_is_refused_in_a_line(models: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes((models / "q.gguf").read_bytes()[:-100])
    assert_refused(run("run", tmp_path / "cut.gguf", "x"), "cut.gguf has .* it is cut off")
    assert_refused(
        run("export", tmp_path / "cut.gguf", tmp_path / "out"), "cut.gguf has .* it is cut off"
    )
    assert not (tmp_path / "out").exists()


def test_ends_that_the_vocabulary_lacks_are_left_out_and_told(
    models: Path, run: Run, tmp_path: Path
) -> None:
    config = gpt2_config(vocab_size=300)
    beyond = {"tokenizer.ggml.eot_token_id": 999}
    tokenizer = models / "hf" / "tokenizer.json"
    write_gguf(tmp_path / "m.gguf", config, gpt2_tensors(config), tokenizer, entries=beyond)
    made = run("export", tmp_path / "m.gguf", tmp_path / "out")
    assert "eos_token_id has 999, expected ids of the vocabulary, 0 to 299; ignored" in made.err
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert written["eos_token_id"] == [config["eos_token_id"]]


def test_ends_are_those_of_the_file_also_without_tokens_in_it(
    models: Path, run: Run, tmp_path: Path
) -> None:
    config = gpt2_config(vocab_size=300)
    entries = {"tokenizer.ggml.model": "none", "tokenizer.ggml.eos_token_id": 7}
    write_gguf(tmp_path / "m.gguf", config, gpt2_tensors(config), entries=entries)
    made = run("export", tmp_path / "m.gguf", tmp_path / "out", "--tokenizer", models / "hf")
    assert made.code == 0
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert written["eos_token_id"] == 7


def test_a_gguf_file_is_no_tokenizer(run: Run, models: Path, tmp_path: Path) -> None:
    options = ["--tokenizer", models / "q.gguf"]
    ended = run("export", models / "hf", tmp_path / "out", *options)
    assert (ended.code, ended.out) == (2, "")
    assert "found a GGUF file, expected a tokenizer.json or a folder with one" in ended.err
