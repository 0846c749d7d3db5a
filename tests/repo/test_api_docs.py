"""``help`` of what ``import pocketlm`` offers: complete, and its examples run."""

from __future__ import annotations

import inspect
import pydoc
import re
import textwrap
import threading
from typing import Any

import pytest

import pocketlm
from pocketlm.runtime.sequence import Step
from pocketlm.runtime.session import Session
from pocketlm.runtime.text_session import TextSession

DESCRIBED: list[type[Any]] = [
    *(pocketlm.Model, pocketlm.Result, pocketlm.TextStream, pocketlm.Piece, pocketlm.Timings),
    *(pocketlm.Classifier, pocketlm.Cancellation, pocketlm.Job, Session, Step, TextSession),
]


def test_every_option_of_stream_is_described_where_help_shows_it() -> None:
    doc = inspect.getdoc(pocketlm.Model.stream) or ""
    names = [name for name in inspect.signature(pocketlm.Model.stream).parameters if name != "self"]
    assert re.findall(r"^(\w+)  +\S", doc, re.MULTILINE) == names


@pytest.mark.parametrize(
    "owner",
    [
        *(pocketlm.Result, pocketlm.Timings, pocketlm.Piece),
        *(pocketlm.Score, pocketlm.TextLogprobs, pocketlm.LabelDistribution),
    ],
)
def test_every_field_of_a_result_is_described(owner: Any) -> None:
    described = re.findall(r"^(\w+)  +\S", inspect.getdoc(owner) or "", re.MULTILINE)
    assert described == list(owner.__dataclass_fields__)


def test_what_a_model_and_a_stream_hold_is_described(tiny_model: pocketlm.Model) -> None:
    for holder in (tiny_model, tiny_model.stream("a")):
        words = re.findall(r"^(\w[\w, ]*?)  +\S", inspect.getdoc(type(holder)) or "", re.MULTILINE)
        described = {name for word in words for name in word.split(", ")}
        held = {name for name in vars(holder) if not name.startswith("_")}
        assert described == held - {"chat_template"}  # a property, kept once it was asked for


def test_help_of_a_model_lists_what_one_calls() -> None:
    text = pydoc.plain(pydoc.render_doc(pocketlm.Model))
    listed = re.findall(r"^ \|  (\w+)(?:\(| = )", text, re.MULTILINE)
    methods = ["beams", "chat", "chat_prompt", "chat_template", "classifier", "completions"]
    methods += ["generate", "generate_many", "logprobs", "new_background", "new_cache", "new_job"]
    methods += ["new_scorer", "new_session"]
    methods += ["request", "score", "stream", "submit"]
    methods.insert(methods.index("completions"), "close")
    found = [name for name in listed if name != "astream" and not name.startswith("__")]
    assert found == ["Model", *methods]
    assert max(map(len, inspect.getdoc(pocketlm.Model.stream).splitlines())) <= 100  # type: ignore[union-attr]


def examples() -> list[str]:
    """The paragraphs, of the docstrings of classes and their methods, that are indented."""
    found = []
    for owner in DESCRIBED:
        methods = [value for value in vars(owner).values() if inspect.isfunction(value)]
        for place in (owner, *methods):
            for paragraph in (inspect.getdoc(place) or "").split("\n\n"):
                lines = paragraph.splitlines()
                if lines and all(line.startswith("    ") for line in lines):
                    found.append(textwrap.dedent(paragraph))
    return found


@pytest.fixture(scope="module")
def demo() -> pocketlm.Model:
    return pocketlm.load(threads=1)


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.split("(")[0])
def test_examples_run(
    example: str, demo: pocketlm.Model, capsys: pytest.CaptureFixture[str]
) -> None:
    exec(example, {"pocketlm": pocketlm, "model": demo, "threading": threading})


def test_there_are_examples() -> None:
    assert len(examples()) == 19
