"""``pocketlm translate``, and the recipes by which it and ``run`` ask a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Run, assert_refused
from source_tree import FRONT_FOLDER

import pocketlm
from pocketlm.commands.recipes import find, read_recipe
from pocketlm.export.folder import ModelFolder
from pocketlm.runtime.tokenizer import Tokenizer

LANGUAGES = ("--from", "Korean", "--to", "English")
# Without newlines, at which a translation ends: those of the tiny model come at once.
RECIPE = """
prompt = "{from}: {text} {to}:"
example = "{from}: {text} {to}: {translation} "
stop = ["e"]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "input.txt"
    path.write_text("the house\r\n\r\n a\\tb {to}\r\n", encoding="utf-8")
    return path


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


def greedy(model: pocketlm.Model, prompt: str, stop: str, max_tokens: int = 8) -> str:
    options = {"temperature": 0, "repetition_penalty": 1, "stop": stop, "max_tokens": max_tokens}
    return " ".join(model.generate(prompt, **options).text.splitlines()).strip()


def test_a_translation_is_greedy_after_examples_and_ends_with_its_line(
    run: Run,
    tiny_folder: ModelFolder,
    tiny_model: pocketlm.Model,
    file: Path,
    recipe: Path,
    tmp_path: Path,
) -> None:
    examples = tmp_path / "examples.tsv"
    examples.write_text("one\\\\\tuno\n\ntwo\tdue\n")
    options = (*LANGUAGES, "--examples", examples, "--recipe", recipe, "--max-tokens", 8)
    ended = run("translate", tiny_folder.path, file, *options)
    assert ended.code == 0
    shown = "Korean: one\\ English: uno Korean: two English: due "
    expected = [
        greedy(tiny_model, f"{shown}Korean: {text} English:", "e")
        for text in ("the house", "a\\tb {to}")
    ]
    assert all(expected)
    assert ended.out == f"{expected[0]}\n\n{expected[1]}\n"
    found = json.loads(run("translate", tiny_folder.path, file, *options, "--json").out)
    assert [result["translation"] for result in found["results"]] == expected
    assert [result["line"] for result in found["results"]] == [1, 3]


def test_the_recipe_that_comes_with_it_asks_in_lines(
    run: Run, tiny_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []
    stream = pocketlm.Model.stream

    def recorded(self: pocketlm.Model, prompt: list[int], **options: object) -> object:
        asked.append((self.tokenizer.decode(prompt), options["stop"]))
        return stream(self, "a", **{**options, "max_tokens": 1})  # type: ignore[arg-type]

    monkeypatch.setattr(pocketlm.Model, "stream", recorded)
    path = tmp_path / "input.txt"
    path.write_text("안녕\n", encoding="utf-8")
    options = (*LANGUAGES, "--examples", "ko-en.tsv")
    assert run("translate", tiny_folder.path, path, *options).code == 0
    prompt, stop = asked[-1]
    assert prompt.startswith("Translations from Korean to English.\n\nKorean: 안녕하세요.\nEngl")
    assert prompt.endswith("English: Thank you for your help.\n\nKorean: 안녕\nEnglish:")
    assert prompt.count("Korean: ") == 9
    assert stop == ("\n",)


def test_a_special_token_that_a_line_spells_is_text(
    run: Run, tiny_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def recorded(self: pocketlm.Model, prompt: list[int], **options: object) -> object:
        asked.append(prompt)
        raise KeyboardInterrupt

    monkeypatch.setattr(pocketlm.Model, "stream", recorded)
    path = tmp_path / "input.txt"
    path.write_text("a <|endoftext|>\n")
    assert run("translate", tiny_folder.path, path, *LANGUAGES).code == 130
    text = Tokenizer.open(tiny_folder.path / "tokenizer.json").decode(asked[0])
    assert text.endswith("Korean: a <|endoftext|>\nEnglish:")  # special ones would be left out


def test_a_translation_that_a_limit_cut_is_told(
    run: Run, tiny_folder: ModelFolder, file: Path, recipe: Path
) -> None:
    options = (*LANGUAGES, "--recipe", recipe, "--max-tokens", 1)
    ended = run("translate", tiny_folder.path, file, *options)
    assert ended.code == 0
    assert "input.txt, line 1: stopped after 1 tokens, see --max-tokens\n" in ended.err


def test_a_line_that_does_not_fit_is_refused_or_left_out(
    run: Run, tiny_folder: ModelFolder, tmp_path: Path, recipe: Path
) -> None:
    path = tmp_path / "input.txt"
    path.write_text(f"the\n{'z' * 200}\n")
    options = (*LANGUAGES, "--recipe", recipe, "--max-tokens", 2)
    ended = run("translate", tiny_folder.path, path, *options)
    assert_refused(ended, r"line 2: the prompt has 2\d\d tokens, expected at most 160")
    ended = run("translate", tiny_folder.path, path, *options, "--skip-bad")
    assert ended.code == 0
    assert ended.out.endswith("\n\n")
    assert "left out 1 bad line" in ended.err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "recipe.toml: found no prompt, expected one"),
        ("prompt", r"recipe.toml: found no TOML \(.*\), expected a recipe"),
        ("prompt = 1", "recipe.toml: prompt is '1', expected a text"),
        ("prompt = '{text}'\nstop = 'x'", "recipe.toml: stop is 'x', expected a list of texts"),
        ("prompt = '{text}'\nstops = []", "recipe.toml: found 'stops', expected prompt, start, ex"),
        ("prompt = 'what'", r"recipe.toml: prompt is 'what', expected \{text\} in it"),
        ("prompt = '{text} {into}'", r"found \{into\} in it, expected \{text\}, \{from\}, \{to\}"),
        ("prompt = '{text}'", "found no example in it, expected one with --examples"),
        ("prompt = '{text}'\nexample = '{text}'", r"example is .*, expected \{translation\} in it"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(
    run: Run, tiny_folder: ModelFolder, file: Path, recipe: Path, content: str, message: str
) -> None:
    recipe.write_text(content)
    options = (*LANGUAGES, "--recipe", recipe, "--examples", "ko-en")
    assert_refused(run("translate", tiny_folder.path, file, *options), message)


@pytest.mark.parametrize("language", ["", " \t"])
@pytest.mark.parametrize("option", ["--from", "--to"])
def test_a_language_without_a_name_is_refused(
    run: Run, tiny_folder: ModelFolder, file: Path, option: str, language: str
) -> None:
    ended = run("translate", tiny_folder.path, file, *LANGUAGES, option, language)
    assert_refused(ended, f"'{option}': found .*, expected the name of a language")


@pytest.mark.parametrize("option", ["--recipe", "--examples"])
def test_a_file_that_neither_is_there_nor_comes_with_it_is_refused(
    run: Run, tiny_folder: ModelFolder, file: Path, option: str
) -> None:
    ended = run("translate", tiny_folder.path, file, *LANGUAGES, option, "nowhere")
    assert_refused(ended, "nowhere: found no such file, expected one, or of ours")


def test_what_else_has_the_name_of_a_recipe_does_not_matter(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "translate").mkdir()
    (tmp_path / "ko-en.tsv").write_text("a\tb\n")
    assert find("translate", ".toml").read_text("utf-8").startswith("# How `pocketlm translate`")
    assert find("ko-en", ".tsv").read_text("utf-8").startswith("안녕")
    assert find("ko-en.tsv", ".tsv").read_text("utf-8") == "a\tb\n"


@pytest.mark.parametrize("name", ["assistant", "sentiment", "translate"])
def test_a_recipe_can_be_printed_to_be_edited(run: Run, name: str, tmp_path: Path) -> None:
    source = (FRONT_FOLDER / "recipes" / f"{name}.toml").read_text("utf-8")
    for verb in ("run", "translate"):
        ended = run(verb, "--print-recipe", name)
        assert (ended.code, ended.out, ended.err) == (0, source, "")
    own = tmp_path / "own.toml"
    own.write_text(source, encoding="utf-8")
    places = (("text",), ("from", "to"), ("translation",))
    assert read_recipe(str(own), *places) == read_recipe(name, *places)


def test_run_puts_its_prompt_into_a_recipe(
    run: Run, tiny_folder: ModelFolder, tiny_model: pocketlm.Model, recipe: Path
) -> None:
    recipe.write_text("prompt = 'the {text}:'\nstop = ['e']")
    options = ("--temperature", 0, "--max-tokens", 8, "--stop", "q")
    ended = run("run", tiny_folder.path, "house", "--recipe", recipe, *options, "--json")
    found = json.loads(ended.out)
    assert found["prompt"] == "the house:"
    given = {"temperature": 0, "max_tokens": 8, "stop": ["q", "e"]}
    assert found["text"] == tiny_model.generate("the house:", **given).text
    ended = run("run", tiny_folder.path, "house", "--recipe", recipe, "--chat")
    assert_refused(ended, "found --chat with --recipe, expected one of them")
    ended = run("run", tiny_folder.path, "", "--recipe", recipe)
    assert_refused(ended, "found --recipe and no prompt, expected what goes into it")
