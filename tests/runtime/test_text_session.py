"""A text that is held: whatever was done to it, it gets the tokens of a fresh generation."""

from __future__ import annotations

import gc
import re
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pocketlm
from pocketlm.export.errors import RequestError
from pocketlm.export.folder import ModelFolder
from pocketlm.runtime.model import Model
from pocketlm.runtime.text_session import TextSession
from pocketlm.runtime.tokenizer import Tokenizer

IDS = [int(number) for number in np.random.default_rng(23).integers(0, 299, 200)]
OPTIONS: dict[str, Any] = {"temperature": 0, "ignore_eos": True}
actions = st.lists(
    st.tuples(
        st.sampled_from(["append", "generate", "fork", "other", "rewind", "truncate", "save"]),
        st.integers(0, 40),
    ),
    min_size=3,
    max_size=12,
)


@pytest.mark.parametrize("reproducible", [True, False])
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(done=actions)
def test_a_session_gets_what_a_fresh_model_gets(
    tiny_model: Model, tmp_path: Path, reproducible: bool, done: list[tuple[str, int]]
) -> None:
    """Bit by bit where that is asked for; else in float32 the tokens, which a bit decides not."""
    sessions, twins = [tiny_model.new_session()], [list[int]()]
    options = {**OPTIONS, "reproducible": reproducible, "logprobs": 2}
    for action, number in done:
        session, twin = sessions[-1], twins[-1]
        if action == "append" and len(twin) + number < 140:
            session.append(IDS[number : 2 * number])
            twin += IDS[number : 2 * number]
        elif action == "generate" and 0 < len(twin) < 140:
            found = session.generate(max_tokens=number % 8 + 1, **options)
            fresh = tiny_model.generate(twin, max_tokens=number % 8 + 1, **options)
            assert found.token_ids == fresh.token_ids
            if reproducible:
                assert found.logprobs == fresh.logprobs
                assert found.top_logprobs == fresh.top_logprobs
            twin += fresh.token_ids
        elif action == "fork":
            sessions.append(session.fork())
            twins.append(list(twin))
        elif action == "other":
            sessions.insert(0, sessions.pop())
            twins.insert(0, twins.pop())
        elif action == "rewind" and number <= len(twin):
            session.rewind(number)
            del twin[len(twin) - number :]
        elif action == "truncate" and number <= len(twin):
            session.truncate(number)
            del twin[number:]
        elif action == "save" and twin:
            session.save(tmp_path / "file")
            sessions[-1] = tiny_model.new_session(tmp_path / "file")
        for session, twin in zip(sessions, twins, strict=True):
            assert (session.token_ids, session.length) == (twin, len(twin))


def test_the_words_of_a_session(tiny_model: Model) -> None:
    chat = tiny_model.new_session()
    chat.append("Once upon")
    chat.append(" a time")
    assert chat.text == "Once upon a time"
    answer = chat.generate(max_tokens=6, **OPTIONS)
    assert chat.token_ids[-6:] == answer.token_ids
    fork = chat.fork()
    fork.rewind(6)
    assert fork.text == "Once upon a time"
    assert chat.length == fork.length + 6
    fork.truncate(0)
    assert (fork.text, fork.length, fork.token_ids) == ("", 0, [])


def test_what_a_session_generates_has_its_form(tiny_model: Model) -> None:
    pytest.importorskip("llguidance", reason="the extra 'grammar' is not installed")
    text = tiny_model.new_session()
    text.append("the ")
    first = text.generate(regex="[0-9]{2}", temperature=0, max_tokens=9)
    fork = text.fork()
    assert re.fullmatch("[0-9]{2}", first.text)
    assert fork.generate(choices=["yes"], max_tokens=9).text == "yes"
    assert text.generate(choices=["no"], max_tokens=9).text == "no"


def test_only_what_is_new_is_computed(tiny_model: Model) -> None:
    session = tiny_model.new_session()
    session.append(IDS[:60])
    assert session.generate(max_tokens=4, **OPTIONS).timings.reused_tokens == 0
    session.append(IDS[:3])
    assert session.generate(max_tokens=4, **OPTIONS).timings.reused_tokens == 62  # of 67
    fork = session.fork()
    assert fork.generate(max_tokens=1, **OPTIONS).timings.reused_tokens == 68  # of 71
    session.compute()
    assert session.generate(max_tokens=1, **OPTIONS).timings.reused_tokens == 68


def test_a_saved_prompt_needs_no_computation(
    tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the same file as a prompt cache's."""
    session = tiny_model.new_session()
    session.append(IDS[:50])
    session.save(tmp_path / "file")
    options: dict[str, Any] = {"max_tokens": 1, **OPTIONS}
    expected = tiny_model.generate(IDS[:50], **options).token_ids
    monkeypatch.setattr(type(tiny_model.session), "step_together", None)
    loaded = tiny_model.new_session(tmp_path / "file")
    loaded.compute()
    assert loaded.generate(reproducible=True, **options).token_ids == expected
    result = tiny_model.generate(IDS[:50], prompt_cache=tmp_path / "file", **options)
    assert (result.token_ids, result.timings.reused_tokens) == (expected, 50)


def test_int8_sessions_are_saved(int8_kv_folder: ModelFolder, tmp_path: Path) -> None:
    model = pocketlm.Model(int8_kv_folder, threads=1, kv="int8")
    session = model.new_session()
    session.append(IDS[:50])
    first = session.generate(max_tokens=5, **OPTIONS).token_ids
    session.save(tmp_path / "file")
    again = model.new_session(tmp_path / "file")
    assert again.token_ids == [*IDS[:50], *first]
    assert again.generate(max_tokens=5, **OPTIONS).token_ids == (
        session.generate(max_tokens=5, **OPTIONS).token_ids
    )
    with pytest.raises(RequestError, match="with a KV cache in int8, expected fp32"):
        pocketlm.Model(int8_kv_folder, threads=1).new_session(tmp_path / "file")


def test_what_is_done_next_ends_a_stream(tiny_model: Model) -> None:
    session = tiny_model.new_session()
    session.append(IDS[:10])
    stream = session.stream(max_tokens=50, **OPTIONS)
    next(stream)
    count = len(stream.token_ids)
    assert session.length == 10 + count
    session.append([5])
    list(stream)
    assert stream.finish_reason == "cancelled"
    assert session.token_ids == [*IDS[:10], *stream.token_ids[:count], 5]


def test_an_empty_session_starts_as_a_text_does(tiny_model: Model) -> None:
    session = tiny_model.new_session()
    found = session.generate(max_tokens=3, **OPTIONS).token_ids
    assert session.token_ids == [299, *found]


def test_a_text_begins_once(
    tiny_model: Model, starting_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tokenizer that begins every text with a token does so with the first part alone."""
    monkeypatch.setattr(tiny_model, "tokenizer", starting_tokenizer)
    session = tiny_model.new_session()
    session.append("ab")
    session.append("cd")
    assert session.token_ids.count(299) == 1 and session.token_ids[0] == 299


@pytest.mark.parametrize(
    "action, message",
    [
        (lambda s: s.rewind(4), "count is 4, expected an integer from 0 to 3"),
        (lambda s: s.rewind(-1), "count is -1, expected"),
        (lambda s: s.rewind(1.5), "count is 1.5, expected"),
        (lambda s: s.truncate(4), "length is 4, expected an integer from 0 to 3"),
        (lambda s: s.append(5), "prompt is 5 of type int, expected a string or"),
        (lambda s: s.append([300]), "prompt has the token id 300, expected 0 to 299"),
        (lambda s: s.generate(max_tokens=0), "max_tokens is 0"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(
    tiny_model: Model, action: Any, message: str
) -> None:
    session = tiny_model.new_session()
    session.append(IDS[:3])
    with pytest.raises(RequestError, match=message):
        action(session)
    assert session.token_ids == IDS[:3]
    assert session.generate(max_tokens=2, **OPTIONS).finish_reason == "length"


def test_a_session_that_nobody_has_any_more_is_gone_at_once(tiny_model: Model) -> None:
    """With its cache, and what else it holds of a model: not when Python next collects cycles."""
    session = tiny_model.new_session()
    session.append(IDS[:3])
    session.generate(max_tokens=2, **OPTIONS)
    held = weakref.ref(session._cache.cache)
    gc.disable()
    try:
        del session
        assert held() is None
    finally:
        gc.enable()


def test_an_empty_session_is_not_saved(tiny_model: Model, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="found no token ids, expected at least one"):
        tiny_model.new_session().save(tmp_path / "file")
    assert not (tmp_path / "file").exists()
    (tmp_path / "notes").write_text("mine")
    session: TextSession = tiny_model.new_session()
    session.append("a")
    with pytest.raises(RequestError, match="expected a new name, or a file that this"):
        session.save(tmp_path / "notes")
