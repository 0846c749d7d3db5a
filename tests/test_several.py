"""Several texts, alternatives to tokens, and loops that guess: in the shell and in Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import gpt2_config, gpt2_tensors, write_checkpoint
from command_line import Run

import pocketlm
from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.errors import RequestError
from pocketlm.export.folder import ModelFolder
from pocketlm.export.writing import export_model
from pocketlm.runtime.model import Model
from pocketlm.runtime.speculation import Pace

SHORT = ("--max-tokens", "6", "--seed", "3", "--ignore-eos")


def test_completions_are_those_of_their_seeds(run: Run, tiny_folder: ModelFolder) -> None:
    ended = run("run", tiny_folder.path, "the", "--n", "3", *SHORT, "--json")
    assert (ended.code, ended.err) == (0, "")
    found = [one["token_ids"] for one in json.loads(ended.out)["completions"]]
    model = pocketlm.load(tiny_folder.path, threads=1)
    options: dict[str, Any] = {"max_tokens": 6, "ignore_eos": True}
    expected = [model.generate("the", seed=3 + i, **options, reproducible=True) for i in range(3)]
    assert found == [result.token_ids for result in expected]
    assert [result.token_ids for result in model.completions("the", 3, seed=3, **options)] == found
    assert len({tuple(ids) for ids in found}) == 3


def test_each_text_has_its_heading(run: Run, tiny_folder: ModelFolder) -> None:
    out = run("run", tiny_folder.path, "the", "--n", "2", *SHORT, "--temperature", "0").out
    assert out.count("--- 1 of 2\n") == out.count("--- 2 of 2\n") == 1
    first, second = out.removeprefix("--- 1 of 2\n").split("--- 2 of 2\n")
    assert first == second


def test_beams_print_the_likeliest_text(run: Run, tiny_model: Model) -> None:
    line = ["run", tiny_model.folder.path, "the", "--beams", "4", "--max-tokens", "5"]
    ended = run(*line, "--ignore-eos")
    best, *others = tiny_model.beams("the", 4, max_tokens=5, ignore_eos=True)
    assert (ended.code, ended.out) == (0, f"{best.text}\n")
    assert best.text == tiny_model.tokenizer.decode(best.token_ids)
    assert [beam.score for beam in others] == sorted((b.score for b in others), reverse=True)
    told = json.loads(run(*line, "--ignore-eos", "--n", "2", "--json").out)["completions"]
    assert [one["token_ids"] for one in told] == [[*best.token_ids], [*others[0].token_ids]]
    assert told[0]["score"] == best.score


def test_logprobs_follow_the_text(run: Run, tiny_folder: ModelFolder) -> None:
    line = ("run", tiny_folder.path, "the", *SHORT, "--logprobs", "2")
    ended = run(*line)
    assert (ended.code, ended.err) == (0, "")
    rows = ended.out.splitlines()[-6:]
    assert all(float(row.split()[0]) < 0 for row in rows)
    told = json.loads(run(*line, "--json").out)
    assert len(told["logprobs"]) == len(told["top_logprobs"]) == 6
    assert all(len(top) == 2 for top in told["top_logprobs"])


@pytest.mark.parametrize("limit", range(1, 24))
def test_a_text_that_is_guessed_ends_where_it_would(
    tiny_model: Model, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several of its last tokens come out of one step, and all of them are text."""
    monkeypatch.setattr(Pace, "num_guesses", lambda self, sure, available: min(5, available))
    options: dict[str, Any] = {"max_tokens": limit, "seed": 3, "ignore_eos": True}
    plain = tiny_model.generate("the the the the", **options)
    found = tiny_model.generate("the the the the", **options, draft=tiny_model)
    assert (found.text, found.token_ids) == (plain.text, plain.token_ids)
    assert found.finish_reason == plain.finish_reason == "length"


def test_a_draft_is_named_as_a_model_is(run: Run) -> None:
    line = ("run", "demo", "the", "--max-tokens", "5", "--temperature", "0")
    ended = run(*line, "--draft", "demo")
    assert (ended.code, ended.out) == (0, run(*line).out)
    ended = run(*line, "--draft", "nobody/nothing", "--offline")  # which holds of the draft, too
    assert ended.code != 0 and "nobody/nothing" in ended.err and "offline" in ended.err


def test_logprobs_follow_each_of_several_texts(run: Run, tiny_folder: ModelFolder) -> None:
    ended = run("run", tiny_folder.path, "the", *SHORT, "--n", "2", "--logprobs", "1")
    first, second = ended.out.removeprefix("--- 1 of 2\n").split("--- 2 of 2\n")
    for text in (first, second):
        assert all(float(row.split()[0]) < 0 for row in text.splitlines()[-6:])


@pytest.mark.parametrize("how", ["--lookup", "--draft"])
def test_guesses_are_told_and_change_nothing(run: Run, tiny_folder: ModelFolder, how: str) -> None:
    line = ["run", tiny_folder.path, "the the the the", "--max-tokens", "60", "--seed", "3"]
    plain = run(*line)
    options = [how] if how == "--lookup" else [how, str(tiny_folder.path)]
    ended = run(*line, *options, "--stats")
    assert (ended.code, ended.out) == (0, plain.out)
    assert "guesses right" in ended.err or how == "--lookup"


def test_a_draft_with_other_tokens_is_refused(tmp_path: Path, tiny_model: Model) -> None:
    config = gpt2_config(vocab_size=260)
    checkpoint = write_checkpoint(tmp_path / "gpt2", config, gpt2_tensors(config))
    other = Model(export_model(open_checkpoint(checkpoint), tmp_path / "out"), threads=1)
    with pytest.raises(RequestError, match="found other tokens than those of"):
        tiny_model.stream("a", draft=other)
    with pytest.raises(RequestError, match="draft is 5, expected a Model"):
        tiny_model.stream("a", draft=5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--n", "0"], "--n is 0, expected an integer from 1 up"),
        (["--n", "5", "--beams", "4"], "found --n 5 of --beams 4, expected at most 4"),
        (["--beams", "0"], "--beams is 0, expected an integer from 1 to 64"),
        (["--beams", "2", "--json-schema", __file__], "found --json-schema with --beams"),
        (["--beams", "2", "--choice", "a,b"], "found --choice with --beams"),
        (["--beams", "2", "--stop", "a"], "found --stop with --beams"),
        (["--beams", "2", "--ban", "a"], "found --ban with --beams"),
        (["--beams", "2", "--max-seconds", "1"], "found --max-seconds with --beams"),
        (["--beams", "2", "--logprobs", "0"], "found --logprobs with --beams"),
        (["--beams", "2", "--recipe", "assistant"], "found --recipe with --beams"),
        (["--n", "2", "--stats"], "found --stats with --n or --beams"),
        (["--length-penalty", "1"], "found --length-penalty without --beams"),
        (["--choice", ""], "pocketlm: --choice has an empty string, expected"),
        (["--ban", ""], "pocketlm: --ban has '' of type str, expected"),
        (["--regex", ""], "pocketlm: --regex: the empty text alone satisfies it"),
        (["--regex", "("], "pocketlm: --regex was refused"),
        (["--beams", "2", "--length-penalty", "nan"], "--length-penalty is nan, expected a number"),
        (["--lookup", "--n", "2"], "found --lookup with --n or --beams"),
        (["--prompt-cache", "x", "--n", "2"], "found --prompt-cache with --n or --beams"),
        (["--context", "slide", "--beams", "2"], "found --context with --beams, expected one of"),
        (["--lookup", "--reproducible"], "found --lookup and --reproducible, expected one"),
        (["--logprobs", "-1"], "'--logprobs': -1 is not in the range 0<=x<=100"),
        (["--logprobs", "101", "--n", "2"], "'--logprobs': 101 is not in the range 0<=x<=100"),
        (["--top-k", "-1", "--n", "2"], "pocketlm: --top-k is -1, expected"),
        (["--max-seconds", "-1"], "--max-seconds is -1.0, expected a number of seconds"),
        (["--draft", "./nowhere/x"], "nowhere"),
    ],
)
def test_what_does_not_go_together_is_refused(
    run: Run, tiny_folder: ModelFolder, options: list[str], message: str
) -> None:
    ended = run("run", tiny_folder.path, "the", *options)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err and "Traceback" not in ended.err
