"""What a name means, and what is said of one that means nothing. Nothing here asks the hub."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import Run, assert_refused

import pocketlm
from pocketlm.benchmarks import precisions, traced
from pocketlm.benchmarks.peers import __main__ as peers
from pocketlm.benchmarks.quality import cost
from pocketlm.export.errors import CheckpointError, RequestError
from pocketlm.export.folder import ModelFolder
from pocketlm.models.reference import Demo, OnDisk, OnHub, Reference, find_reference, names_model

EMPTY = ["", " ", "\t\n"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and a cache and a home beside it."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("POCKETLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return folder


def cache(tmp_path: Path, *repositories: str) -> None:
    """Makes the cache have a model of each repository, as far as its folders tell."""
    for name in repositories:
        (tmp_path / "cache" / "hub" / name.replace("/", "--") / "int8-0123").mkdir(parents=True)


# What is meant -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        (None, Demo()),
        ("demo", Demo()),
        ("acme/tiny", OnHub("acme/tiny", None)),
        ("acme/tiny@refs/pr/1", OnHub("acme/tiny", "refs/pr/1")),
        (".", OnDisk(Path("."))),
        (Path(""), OnDisk(Path("."))),
    ],
)
def test_a_name_is_the_demo_a_path_or_a_repository(name: str | Path, meant: Reference) -> None:
    assert find_reference(name) == meant


def test_a_folder_that_may_not_be_read_is_told(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "model").mkdir()
    stat = os.stat

    def refused(path: Any, **more: Any) -> os.stat_result:
        if isinstance(path, os.PathLike) and os.fspath(path).startswith("model" + os.sep):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return stat(path, **more)

    monkeypatch.setattr(os, "stat", refused)
    with pytest.raises(CheckpointError, match="model"):
        pocketlm.load("model")


def test_what_exists_comes_before_the_hub_and_the_cache(here: Path, tmp_path: Path) -> None:
    cache(tmp_path, "acme/tiny")
    assert find_reference("tiny") == OnHub("acme/tiny", None)
    (here / "acme" / "tiny").mkdir(parents=True)
    (here / "tiny").mkdir()
    for name in ("acme/tiny", "./acme/tiny", "acme/tiny/", "tiny"):
        assert find_reference(name) == OnDisk(Path(name))


def test_demo_is_the_demo_unless_a_folder_of_that_name_holds_a_model(here: Path) -> None:
    (here / "demo").mkdir()
    (here / "demo" / "index.html").touch()
    assert find_reference("demo") == Demo()
    assert find_reference("./demo") == find_reference(Path("demo")) == OnDisk(Path("demo"))
    (here / "demo" / "config.json").touch()
    assert find_reference("demo") == OnDisk(Path("demo"))


def test_a_tilde_is_home(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    assert find_reference("~/models") == OnDisk(tmp_path / "models")


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_name_is_not_the_demo(name: str) -> None:
    with pytest.raises(RequestError, match="model: found an empty name, expected a model folder"):
        find_reference(name)


# What can only be a path -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("./out/int8", "./int8", "../out/int8", "/out/int8", "~/out", "~nobody/out", "out/int8/"),
        *(
            "a/b/c",
            "a\\b",
            ".\\out\\int8",
            "C:\\models\\x",
            "C:/models",
            "a--b/c",
            "a/b c",
            "a/b\0",
        ),
    ],
)
def test_a_path_never_goes_to_the_hub(name: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        find_reference(name)
    assert str(caught.value).startswith(f"{name!r}: found nothing at this path, expected ")


def test_a_path_object_never_goes_to_the_hub() -> None:
    with pytest.raises(
        CheckpointError, match="'acme/tiny': .*name on the hub is given as a string"
    ):
        find_reference(Path("acme/tiny"))


def test_paths_that_are_spelled_almost_so_are_named(here: Path, tmp_path: Path) -> None:
    for name in ("llama-int8", "llama-int4", "notes"):
        (here / "out" / name).mkdir(parents=True)
    with pytest.raises(CheckpointError, match="did you mean out/llama-int8 or out/llama-int4?"):
        find_reference("./out/lama-int8")
    with pytest.raises(CheckpointError, match=r"'./ot/x': .*there is no folder ot either"):
        find_reference("./ot/x")
    with pytest.raises(CheckpointError, match=r"did you mean out\?"):
        find_reference("outt")
    with pytest.raises(CheckpointError, match=f"did you mean {here}"):
        find_reference("~/heer")
    with pytest.raises(CheckpointError, match=r"did you mean demo\?"):
        find_reference("deno")


# What is said of other names ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("https://huggingface.co/acme/tiny", "acme/tiny"),
        ("http://huggingface.co/acme/tiny/", "acme/tiny"),
        ("https://www.huggingface.co/acme/tiny/tree/main", "acme/tiny"),
        ("https://huggingface.co/acme/tiny/tree/v2?x=1#y", "acme/tiny@v2"),
        ("https://hf.co/acme/tiny/blob/refs%2Fpr%2F1/config.json", "acme/tiny@refs/pr/1"),
        ("hf.co/acme/tiny", "acme/tiny"),
        ("huggingface.co/acme/tiny/discussions", "acme/tiny"),
        ("hf://acme/tiny", "acme/tiny"),
        ("https://hub.example:8080/acme/tiny", "acme/tiny"),
        ("huggingface.co/gpt2", "openai-community/gpt2"),
    ],
)
def test_the_address_of_a_page_is_told_by_its_name(
    name: str, write: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example:8080")
    with pytest.raises(RequestError) as caught:
        find_reference(name)
    assert "found the address of a page, expected org/name" in str(caught.value)
    assert str(caught.value).endswith(f"; write {write}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("https://huggingface.co/datasets/acme/texts", "one of the datasets, choose a model"),
        ("https://huggingface.co/", "the last two words of the model's own page"),
        ("https://example.com/acme/tiny", "not of the hub.* download what is there and name its"),
        ("s3://bucket/tiny", "not of the hub"),
    ],
)
def test_other_addresses_are_refused(name: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        find_reference(name)


def test_a_single_word_gets_the_hint_how_names_of_the_hub_are_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="on the hub it is openai-community/gpt2: write that"):
        find_reference("gpt2")
    with pytest.raises(CheckpointError, match="a name on the hub is written org/name"):
        find_reference("tinyllama")
    cache(tmp_path, "acme/tiny", "other/tiny")
    message = "found 2 models in the cache of this name.*write acme/tiny or other/tiny"
    with pytest.raises(CheckpointError, match=message):
        find_reference("tiny")


def test_one_word_is_a_model_only_if_it_can_be_nothing_else(here: Path, tmp_path: Path) -> None:
    cache(tmp_path, "acme/tiny")
    (here / "out").mkdir()
    models = ["demo", "out", "./x", "../x", "/x", "~/x", "C:\\x", "https://hf.co/a/b", "acme/tiny"]
    prompts = ["tiny", "gpt2", "acme/other", "and/or", "./x and y", "Q:", "a\\nb", "/imagine a sea"]
    assert [word for word in [*models, *prompts] if names_model(word)] == models


# Every verb --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EMPTY)
@pytest.mark.parametrize(
    "line",
    [
        ["run", "NAME"],
        ["run", "NAME", "the sea"],
        ["chat", "NAME"],
        ["export", "NAME", "out"],
        ["export", "demo", "NAME"],
        ["export", "demo", "out", "--tokenizer", "NAME"],
        ["export", "demo", "out", "--dry-run", "--revision", "NAME"],
        ["quantize", "NAME", "out", "--to", "int8"],
        ["quantize", "demo", "NAME", "--to", "int8"],
        ["eval", "NAME", "--text", "text"],
        ["eval", "demo", "--against", "NAME", "--text", "text"],
        ["bench", "NAME"],
        ["bench", "demo", "NAME"],
        ["info", "NAME"],
        ["remove", "NAME"],
    ],
    ids=" ".join,
)
def test_every_verb_refuses_an_empty_name(
    run: Run, here: Path, tiny_folder: ModelFolder, line: list[str], name: str
) -> None:
    """Also in a folder that is a model: that is what an empty path stands for."""
    for file in tiny_folder.path.iterdir():
        (here / file.name).symlink_to(file)
    (here / "text").write_text("the sea " * 100)
    before = sorted(here.iterdir())
    ended = run(*[name if word == "NAME" else word for word in line])
    assert_refused(ended, "found (an|one) empty|is empty")
    assert sorted(here.iterdir()) == before


@pytest.mark.parametrize("options", [{"tokenizer": ""}, {"revision": " "}])
def test_load_refuses_empty_names(options: dict[str, str]) -> None:
    with pytest.raises(RequestError, match="found an empty name"):
        pocketlm.load("")
    with pytest.raises(RequestError, match="is empty, expected its name"):
        pocketlm.load(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        (precisions, [""]),
        (precisions, ["demo", "--tokenizer", ""]),
        (traced, ["--checkpoint", ""]),
        (cost, ["", "--text", "x"]),
        (peers, ["--checkpoint", " "]),
        (peers, ["--shape", "gpt2-124m", "--folder", ""]),
    ],
)
def test_the_measuring_scripts_refuse_an_empty_name(
    script: object,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["script", *arguments])
    with pytest.raises(SystemExit) as ended:
        script.main()  # type: ignore[attr-defined]
    assert ended.value.code == 2
    assert "found an empty name" in capsys.readouterr().err


def test_a_mistyped_model_is_no_prompt_and_a_prompt_like_a_name_is_said_to_be_one(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_refused(run("run", "./out/int8"), "'./out/int8': found nothing at this path")
    monkeypatch.delenv("POCKETLM_CACHE")
    monkeypatch.setattr("pocketlm.commands.writer.open_model", refuse)
    for word, name in (("gpt2", "openai-community/gpt2"), ("acme/tiny", "acme/tiny")):
        ended = run("run", word)
        assert f"{word} is taken for a prompt of the demo model" in ended.err
        assert f'pocketlm run {name} ""' in ended.err
    assert run("run", "the sea").err == "pocketlm: opened None\n"
    assert run("run").err == "pocketlm: opened None\n"
    assert run("run", "demo").err == "pocketlm: opened demo\n"


def refuse(path: str | None, options: object) -> None:
    raise RequestError(f"opened {path}")
