"""Models of ours in simonw/llm: which there are, what is asked of them, and what comes back."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from model_folders import with_files
from source_tree import ROOT

import pocketlm
from pocketlm.export.errors import RequestError
from pocketlm.export.folder import ModelFolder

llm: Any = pytest.importorskip("llm")
pytestmark = pytest.mark.plugins

PAGE = (ROOT / "docs" / "plugins.md").read_text("utf-8")
GREEDY = {"temperature": 0.0, "max_tokens": 5, "threads": 1}
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, tiny_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two model folders in it: out/, and chat/ with a template."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "out").symlink_to(tiny_folder.path)
    with_files(tiny_folder, tmp_path / "here" / "chat", {"chat_template.jinja": TEMPLATE})
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path / "user"))
    monkeypatch.setenv("POCKETLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def chatting(place: Path) -> pocketlm.Model:
    return pocketlm.load(place / "chat", threads=1)


def command(*words: str, typed: str = "") -> Result:
    from llm.cli import cli

    return CliRunner().invoke(cli, words, input=typed)


def ids() -> list[str]:
    found = [model.model_id for model in llm.get_models()]
    return [name for name in found if name.startswith("pocketlm/")]


def test_the_program_of_llm_finds_a_folder_beside_it(
    tiny_model: pocketlm.Model, place: Path
) -> None:
    words = ["-m", "pocketlm/out", "the house", "-o", "temperature", "0", "-o", "max_tokens", "5"]
    done = subprocess.run([sys.executable, "-m", "llm", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    alone = tiny_model.generate("the house", temperature=0, max_tokens=5)
    assert done.stdout == alone.text + "\n"


def test_registering_loads_no_onnxruntime() -> None:
    code = "import llm, sys; assert llm.get_model('pocketlm/demo'); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "'pocketlm.llm_plugin'" in done.stdout, done.stderr
    assert not any(f"'{name}'" in done.stdout for name in ("onnxruntime", "tokenizers"))


def test_models_are_those_here_those_added_those_in_the_cache_and_the_demo(
    place: Path, tiny_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = place.parent / "cache"
    for name in ("hub/org--name/int8-0123456789abcdef", "models/novel-int4-0123456789abcdef"):
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / name).symlink_to(tiny_folder.path)
    (cache / "hub" / "org--other" / "checkpoint-0123456789abcdef").mkdir(parents=True)
    here = ["pocketlm/chat", "pocketlm/out"]
    rest = ["pocketlm/demo", "pocketlm/novel-int4", "pocketlm/org/name"]
    assert sorted(ids()) == sorted([*here, *rest])
    monkeypatch.chdir(place / "chat")
    assert sorted(ids()) == sorted(["pocketlm/chat", *rest])
    monkeypatch.chdir(place.parent)
    assert sorted(ids()) == rest
    done = command("pocketlm", "add", str(place / "out"), "--name", "mine")
    assert done.output == "added pocketlm/mine\n"
    assert "pocketlm/mine" in ids()
    model = llm.get_model("pocketlm/novel-int4")
    assert model.prompt("the house", **GREEDY).text()


def test_what_is_added_is_known_everywhere_until_it_is_removed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("pocketlm", "add", "chat").exit_code == 0
    monkeypatch.chdir("/")
    assert "pocketlm/chat" in ids()
    assert command("pocketlm", "remove", "pocketlm/chat").exit_code == 0
    assert "pocketlm/chat" not in ids()
    assert (place / "chat" / "pocketlm.json").exists()
    named = command("pocketlm", "add", str(place / "chat"), "--name", "pocketlm/mine")
    assert named.output == "added pocketlm/mine\n" and "pocketlm/mine" in ids()
    assert command("pocketlm", "remove", "mine").exit_code == 0
    gone = command("pocketlm", "remove", "chat")
    assert gone.exit_code == 1 and "found no added model of this name" in gone.output
    wrong = command("pocketlm", "add", str(place / "nothing"))
    assert wrong.exit_code == 1 and "found nothing at this path" in wrong.output


def test_a_damaged_list_of_added_models_is_told_and_takes_no_other_model(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (Path(llm.user_dir()) / "pocketlm-models.json").write_text("[1]")
    assert "pocketlm/out" in ids()
    assert "expected what llm pocketlm add wrote; remove the file" in capsys.readouterr().err


def test_a_current_folder_that_is_gone_takes_no_other_model(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = place / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert ids() == ["pocketlm/demo"]
    monkeypatch.undo()
    os.chdir(place)


def test_a_base_model_continues_and_tells_its_tokens(tiny_model: pocketlm.Model) -> None:
    model = llm.get_model("pocketlm/out")
    response = model.prompt("the house", **GREEDY)
    alone = tiny_model.generate("the house", temperature=0, max_tokens=5)
    assert response.text() == alone.text and "".join(response) == alone.text
    usage = response.usage()
    assert (usage.input, usage.output) == (alone.timings.prompt_tokens, 5)
    assert response.response_json == {"finish_reason": "length"}


def test_a_base_model_gets_a_conversation_as_a_script(tiny_model: pocketlm.Model) -> None:
    conversation = llm.get_model("pocketlm/out").conversation()
    first = conversation.prompt("the house", **GREEDY).text()
    second = conversation.prompt("went", **GREEDY).text()
    messages = [
        {"role": "user", "content": "the house"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "went"},
    ]
    asked = tiny_model.chat_prompt(messages, transcript=True)
    assert second == tiny_model.generate(asked, temperature=0, max_tokens=5).text


def test_a_template_answers_the_conversation_and_its_system_prompt(
    chatting: pocketlm.Model,
) -> None:
    conversation = llm.get_model("pocketlm/chat").conversation()
    first = conversation.prompt("the house", system="and", **GREEDY).text()
    second = conversation.prompt("went", **GREEDY).text()
    messages = [{"role": "system", "content": "and"}, {"role": "user", "content": "the house"}]
    options = {"temperature": 0, "max_tokens": 5}
    assert first == chatting.generate(chatting.chat_prompt(messages), **options).text
    messages += [{"role": "assistant", "content": first}, {"role": "user", "content": "went"}]
    assert second == chatting.generate(chatting.chat_prompt(messages), **options).text


def test_plain_leaves_the_template_out(chatting: pocketlm.Model) -> None:
    model = llm.get_model("pocketlm/chat")
    plain = model.prompt("the house", plain=True, **GREEDY)
    alone = chatting.generate("the house", temperature=0, max_tokens=5)
    assert plain.text() == alone.text
    assert (
        plain.usage().input
        == alone.timings.prompt_tokens
        < model.prompt("the house", **GREEDY).usage().input
    )


def test_options_of_the_command_line_reach_the_model(tiny_model: pocketlm.Model) -> None:
    chosen = {"seed": 7, "top_p": 0.9, "top_k": 20, "min_p": 0.01, "repetition_penalty": 1.1}
    words = [word for name, value in chosen.items() for word in ("-o", name, str(value))]
    alone = tiny_model.generate("the house", max_tokens=6, **chosen).text
    done = command("-m", "pocketlm/out", "the house", "-o", "max_tokens", "6", *words)
    assert done.output == alone + "\n"
    stopped = llm.get_model("pocketlm/out").prompt("the house", stop=alone[2], seed=7, max_tokens=6)
    assert alone[2] not in stopped.text()


def test_commands_of_the_docs_work(place: Path) -> None:
    (block,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    lines = [line for line in block.splitlines() if line.startswith("llm ")]
    assert len(lines) == 3
    for line in lines:
        done = command(*shlex.split(line, comments=True)[1:], typed="quit\n")
        assert done.exit_code == 0 and done.output, line
    options = re.search(r"Options are `-o NAME VALUE`: (.*?) of `pocketlm.load`", PAGE, re.DOTALL)
    assert options
    named = set(re.findall(r"`(\w+)`", options[1]))
    assert named | {"plain"} == set(llm.get_model("pocketlm/out").Options.model_fields)


def test_what_cannot_be_is_a_line(place: Path) -> None:
    done = command("-m", "pocketlm/out", "the house", "-o", "temperature", "-1")
    assert done.exit_code == 1
    assert done.output.startswith("Error: temperature is -1") and done.output.count("\n") == 1
    done = command("-m", "pocketlm/out", "the house", "-o", "heat", "1")
    assert done.exit_code == 1 and "heat" in done.output
    (place / "out").unlink()
    model_file = place / "chat" / "model.onnx"
    model_file.write_bytes(model_file.read_bytes()[:-1])
    done = command("-m", "pocketlm/chat", "the house")
    assert done.exit_code == 1 and "model.onnx" in done.output


def test_a_schema_holds_the_answer_to_a_form() -> None:
    pytest.importorskip("llguidance")
    schema = {"enum": ["cat", "dog"]}
    text = llm.get_model("pocketlm/out").prompt("the ", schema=schema, threads=1).text()
    assert json.loads(text) in schema["enum"]


def test_a_model_is_opened_again_for_options_that_ask_for_another(
    int8_kv_folder: ModelFolder, place: Path
) -> None:
    (place / "both").symlink_to(int8_kv_folder.path)
    model = llm.get_model("pocketlm/both")
    int8 = pocketlm.load(int8_kv_folder.path, kv="int8", threads=1)
    assert model.prompt("the house", **GREEDY).text()
    text = model.prompt("the house", kv="int8", **GREEDY).text()
    assert text == int8.generate("the house", temperature=0, max_tokens=5).text


def test_a_model_for_event_loops_answers_several_prompts_at_once(
    tiny_model: pocketlm.Model,
) -> None:
    prompts = ["the house", "and a", "went"]

    async def ask() -> list[Any]:
        model = llm.get_async_model("pocketlm/out")
        return await asyncio.gather(*(answer(model, prompt) for prompt in prompts))

    async def answer(model: Any, prompt: str) -> tuple[str, int, int]:
        response = model.prompt(prompt, **GREEDY)
        text = await response.text()
        usage = await response.usage()
        return text, usage.input, usage.output

    for prompt, (text, given, new) in zip(prompts, asyncio.run(ask()), strict=True):
        alone = tiny_model.generate(prompt, temperature=0, max_tokens=5, reproducible=True)
        assert (text, given, new) == (alone.text, alone.timings.prompt_tokens, 5)


def test_errors_of_a_model_for_event_loops_are_raised() -> None:
    async def ask() -> None:
        model = llm.get_async_model("pocketlm/out")
        await model.prompt("the house", max_tokens=-1, threads=1).text()

    with pytest.raises(RequestError, match="max_tokens is -1"):
        asyncio.run(ask())
