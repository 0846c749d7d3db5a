"""``pocketlm chat --server`` beside ``pocketlm chat``: of one model they print the same."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from command_line import Run, assert_refused
from serve_process import serve_process
from served import Served, served
from slow_model import Steps, slowed
from terminals import Terminal
from wrong_options import WRONG

import pocketlm
from pocketlm.commands.chat import command as CHAT
from pocketlm.export.folder import ModelFolder
from pocketlm.runtime.model import Model
from pocketlm.runtime.server.models.facts import facts_of
from pocketlm.runtime.server.models.pool import Source

pytestmark = pytest.mark.serve

GREEDY = ["--temperature", "0", "--max-tokens", "12"]
FORGETTING = "".join(f"{number} {'x' * 300}\n" for number in range(9))


@pytest.fixture(scope="module")
def server(chat_folders: dict[str, ModelFolder]) -> Iterator[Served]:
    """Of the models with a chat template and without, as ``pocketlm serve`` knows them."""
    sources = {
        name: Source(name, partial(pocketlm.load, folder.path, threads=1), facts_of(folder))
        for name, folder in chat_folders.items()
    }
    with served(sources) as running:
        yield running


@pytest.mark.parametrize(
    "model, words, lines",
    [
        ("plain", GREEDY, "Hi\nGo on\n\nAnd then?\n"),
        ("plain", [*GREEDY, "--system", "Be é."], "Hi\n/reset\nHi\n/save FILE\n"),
        ("plain", GREEDY, "one \\\ntwo\n/system Short.\n//three\n/help\n/save FILE\n/exit\nfour\n"),
        ("plain", ["--seed", "3", "--top-k", "5", "--max-tokens", "9"], "Hi\nGo on\n"),
        ("plain", [*GREEDY, "--stop", "e", "--ban", "a", "--ignore-eos"], "Hi\nGo on\n"),
        ("plain", [*GREEDY, "--choice", "yes,no"], "Hi\nGo on\n"),
        ("plain", GREEDY, f"{FORGETTING}/save FILE\n"),
        ("plain", GREEDY, "x" * 3000),
        ("plain", [*GREEDY, "--template-arg", "year=1"], "Hi\n"),
        ("base", GREEDY, "Hi\nGo on\n"),
        ("base", [*GREEDY, "--template-arg", "tools=1"], "Hi\n"),
    ],
    ids=lambda told: (told if isinstance(told, str) else " ".join(told))[:40],
)
def test_what_a_server_answers_is_printed_as_if_here(
    run: Run,
    server: Served,
    chat_folders: dict[str, ModelFolder],
    tmp_path: Path,
    model: str,
    words: list[str],
    lines: str,
) -> None:
    saved = tmp_path / "own.json", tmp_path / "remote.json"
    folder = chat_folders[model].path
    own = run(
        *("chat", folder, *words, "--threads", "1"), lines=lines.replace("FILE", str(saved[0]))
    )
    remote = run(
        *("chat", "--server", server.url, model, *words),
        lines=lines.replace("FILE", str(saved[1])),
    )
    assert remote.out == own.out and remote.code == own.code
    # A server names its model, and no folder.
    assert remote.err.replace(str(saved[1]), str(saved[0])) == own.err.replace(
        f"{folder}/tok", f"{model}/tok"
    )
    assert saved[0].exists() == saved[1].exists() == ("FILE" in lines)
    if "FILE" in lines:
        assert saved[0].read_text() == saved[1].read_text()
        assert len(json.loads(saved[0].read_text())) > 1


def test_the_oldest_messages_are_forgotten(run: Run, server: Served) -> None:
    """That the lines above come to it."""
    ended = run("chat", "--server", server.url, *GREEDY, lines=FORGETTING)
    assert ended.code == 0 and "the context is full: forgot the oldest " in ended.err


@pytest.mark.parametrize(
    "words",
    [
        [option, value]
        for option, values in WRONG.items()
        for value in values
        if any(option in parameter.opts for parameter in CHAT.params)
    ],
    ids=lambda words: " ".join(words)[:60],
)
def test_a_server_refuses_what_is_refused_here(
    run: Run,
    server: Served,
    chat_folders: dict[str, ModelFolder],
    tmp_path: Path,
    words: list[str],
) -> None:
    (tmp_path / "schema.json").write_text('{"type": "nothing"}')
    words = [str(tmp_path / "schema.json") if word == "SCHEMA" else word for word in words]
    own = run("chat", chat_folders["plain"].path, *words, "--threads", "1", lines="Hi\n")
    remote = run("chat", "--server", server.url, "plain", *words, lines="Hi\n")
    assert_refused(remote, rf"{words[0]}\b")
    assert remote == own


def test_a_model_that_is_not_there_is_told_before_a_line_is_read(run: Run, server: Served) -> None:
    ended = run("chat", "--server", server.url, "nobody", lines="")
    assert_refused(ended, "^pocketlm: found no model 'nobody', expected one of: plain, ")


def test_a_wrong_key_is_told_before_a_line_is_read(
    run: Run, chat_folders: dict[str, ModelFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = partial(pocketlm.load, chat_folders["plain"].path, threads=1)
    with served({"plain": opened}, api_key="right-key") as guarded:
        line = ["chat", "--server", guarded.url, *GREEDY]
        monkeypatch.setenv("POCKETLM_API_KEY", "wrong-key")
        assert_refused(run(*line, lines=""), "found no valid key.*; the option --api-key-file says")
        monkeypatch.setenv("POCKETLM_API_KEY", "right-key")
        assert run(*line, lines="Hi\n").code == 0


def test_what_is_tried_beforehand_is_not_generated(
    run: Run, chat_folders: dict[str, ModelFolder]
) -> None:
    steps = Steps(seconds=0.05)
    with served({"plain": slow(chat_folders["plain"], steps)}) as running:
        words = ["--ignore-eos", "--max-tokens", "1000"]
        assert run("chat", "--server", running.url, *words, lines="").code == 0
        wait_for(lambda: num_held(running) == 0)
    assert steps.count < 100


# At a terminal ------------------------------------------------------------------------------------


def slow(folder: ModelFolder, steps: Steps) -> Callable[[], Model]:
    """Opens a model that takes its time."""
    return lambda: slowed(pocketlm.load(folder.path, threads=1), steps)


@contextlib.contextmanager
def typing(url: str) -> Iterator[Terminal]:
    """A chat at a terminal, whose answers do not end by themselves."""
    pytest.importorskip("termios", reason="needs a pseudo-terminal")
    opened = Terminal("chat", "--server", url, "--ignore-eos", "--seed", "1")
    try:
        opened.wait_for("> ")
        yield opened
    finally:
        opened.close()


def test_ctrl_c_stops_the_answer_here_and_there_and_not_the_chat(
    chat_folders: dict[str, ModelFolder], tmp_path: Path
) -> None:
    file = tmp_path / "a.json"
    opened = slow(chat_folders["plain"], Steps(seconds=0.02))
    with served({"plain": opened}) as running, typing(running.url) as terminal:
        for _ in range(2):
            terminal.ask("Hi")
            terminal.type("\x03")
            terminal.wait_for("> ")
            wait_for(lambda: num_held(running) == 0)
        terminal.type(f"/save {file}\n")
        terminal.wait_for("wrote 4 messages")
        terminal.wait_for("> ")
        terminal.type("\x04")
        assert terminal.end() == 0
    answers = [message["content"] for message in json.loads(file.read_text())[1::2]]
    assert len(answers) == 2 and all(0 < len(answer) < 900 for answer in answers)


def test_a_server_that_goes_away_ends_the_answer_and_not_the_chat(
    chat_folders: dict[str, ModelFolder], tmp_path: Path
) -> None:
    steps = {"seconds": 0.02}
    with serve_process(chat_folders["plain"].path, steps=steps) as process:
        with typing(f"http://127.0.0.1:{process.port}") as terminal:
            terminal.ask("Hi")
            process.process.kill()
            process.ended()
            terminal.wait_for("the connection broke")
            terminal.wait_for("> ")
            terminal.type("Again\n")
            terminal.wait_for("found no server that answers")
            terminal.wait_for("> ")
            terminal.type(f"/save {tmp_path / 'a.json'}\n")
            terminal.wait_for("wrote 0 messages")
            terminal.type("/exit\n")
            assert terminal.end() == 0


def num_held(server: Served) -> int:
    """Texts of its model that are under way."""
    engine = server.service.pool.served["plain"].engine
    assert engine is not None
    return engine.num_held


def wait_for(condition: Callable[[], bool]) -> None:
    """Until it holds; fails where it never does."""
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never came about")
