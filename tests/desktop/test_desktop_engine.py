"""The process of the example that holds a model, here in threads: asked and telling."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from pathlib import Path

import pytest
from engine import Engine
from messages import Asked, Failed, Finished, Generate, Load, Loaded, Stop, Told, Turn, Written

import pocketlm
from pocketlm.export.folder import ModelFolder

NO_MODEL = "found no open model, expected one to generate with; open one first"
Ask = Callable[..., list[Told]]


@pytest.fixture
def ask() -> Iterator[Ask]:
    """Sends requests, and returns all that is told until as many are done."""
    ours, theirs = Pipe()
    engine = Engine(theirs)
    threads = [threading.Thread(target=run) for run in (engine.listen, engine.work)]
    for thread in threads:
        thread.start()

    def send(*asked: Asked) -> list[Told]:
        for each in asked:
            ours.send(each)
        told: list[Told] = []
        waiting = sum(not isinstance(each, Stop) for each in asked)
        while waiting:
            told.append(ours.recv())
            waiting -= isinstance(told[-1], Loaded | Finished | Failed)
        return told

    yield send
    ours.close()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "the end of the connection did not end it"


def text_of(told: list[Told]) -> str:
    return "".join(each.text for each in told if isinstance(each, Written))


def test_it_tells_the_model_and_writes_what_the_model_generates(
    ask: Ask, tiny_folder: ModelFolder, tiny_model: pocketlm.Model
) -> None:
    *_, loaded = ask(Load(str(tiny_folder.path)))
    assert isinstance(loaded, Loaded)
    assert (loaded.precision, loaded.precisions, loaded.kvs) == ("fp32", ("fp32",), ("fp32",))
    told = ask(Generate(1, "ab", temperature=0, max_tokens=12))
    expected = tiny_model.generate("ab", temperature=0, max_tokens=12, logprobs=8)
    assert text_of(told) == expected.text
    choices = [
        choice
        for each in told
        if isinstance(each, Written)
        for part in each.parts
        for choice in part.choices
    ]
    assert len(choices) == 12
    assert all(choice.probability == choice.likeliest[0][1] for choice in choices)  # greedy
    assert all(0 < probability <= 1 for choice in choices for _, probability in choice.likeliest)
    end = told[-1]
    assert isinstance(end, Finished)
    assert (end.number, end.reason, end.new_tokens) == (1, "length", 12)
    assert end.memory_bytes > 0


def test_a_stop_that_follows_at_once_ends_the_text(ask: Ask, tiny_folder: ModelFolder) -> None:
    ask(Load(str(tiny_folder.path)))
    *_, end = ask(Generate(7, "ab", max_tokens=100), Stop(7), Stop(8))
    assert isinstance(end, Finished) and end.reason == "cancelled"
    *_, end = ask(Generate(8, "ab", max_tokens=3))
    assert isinstance(end, Finished) and end.reason == "length", "stopped before it was asked"


def test_what_fails_is_told_and_the_model_stays(
    ask: Ask, tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    assert ask(Generate(1, "ab")) == [Failed(1, NO_MODEL)]
    ask(Load(str(tiny_folder.path)))
    *_, failed = ask(Load(str(tmp_path / "nothing")))
    assert isinstance(failed, Failed) and failed.number is None
    assert "found nothing at this path" in failed.text
    *_, failed = ask(Generate(2, "ab " * 400))
    assert isinstance(failed, Failed) and "the context length" in failed.text
    assert isinstance(ask(Generate(3, "ab", max_tokens=2))[-1], Finished)


def test_a_conversation_is_answered(ask: Ask, tiny_folder: ModelFolder) -> None:
    ask(Load(str(tiny_folder.path)))
    turns = (Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"))
    told = ask(Generate(1, turns, max_tokens=5))
    assert isinstance(told[-1], Finished)
