"""What becomes of a text that outgrows the context: an error, its end, or a part of it goes on."""

from __future__ import annotations

import json
from typing import Any

import click
import numpy as np
import pytest
from command_line import Run
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketlm.commands.batch import command as batch_command
from pocketlm.commands.run import command as run_command
from pocketlm.export.errors import RequestError
from pocketlm.export.folder import ModelFolder
from pocketlm.runtime.context_policy import POLICIES, window
from pocketlm.runtime.decode import generate
from pocketlm.runtime.model import Model
from pocketlm.runtime.request import GREEDY, Request
from pocketlm.runtime.session import Session

CONTEXT = 160
IDS = [int(number) for number in np.random.default_rng(29).integers(0, 299, 400)]
OPTIONS: dict[str, Any] = {"temperature": 0, "ignore_eos": True}


def twin(session: Session, prompt: list[int], count: int, keep: int) -> list[int]:
    """Sliding, as it is described: every token from an empty cache, greedily."""
    seen, found = list(prompt), []
    for _ in range(count):
        if len(seen) > CONTEXT:
            newest = (CONTEXT - keep) // 2
            seen = seen[:keep] + seen[-newest:]
        found.append(int(session.step(seen, session.new_cache()).argmax()))
        seen.append(found[-1])
    return found


@settings(max_examples=15, deadline=None)
@given(
    length=st.one_of(st.integers(1, 400), st.integers(158, 162)),
    keep=st.sampled_from([0, 1, 5, 100, 158]),
    count=st.integers(1, 120),
    chunk_size=st.sampled_from([16, 256]),
)
def test_sliding_gives_the_tokens_of_the_twin(
    tiny_session: Session, length: int, keep: int, count: int, chunk_size: int
) -> None:
    request = Request(
        IDS[:length], GREEDY, count, context="slide", keep=keep, chunk_size=chunk_size
    )
    found = [step.token for step in generate(tiny_session, request)]
    assert found == twin(tiny_session, IDS[:length], count, keep)


@settings(max_examples=15, deadline=None)
@given(length=st.integers(100, 200), keep=st.sampled_from([0, 1, 40]), count=st.integers(60, 150))
def test_guessing_does_not_show_where_the_context_slides(
    tiny_model: Model, length: int, keep: int, count: int
) -> None:
    """A prompt that says the same again and again, so that there is much to guess."""
    prompt = (IDS[:7] * 30)[:length]
    found = tiny_model.generate(
        prompt, max_tokens=count, context="slide", keep=keep, lookup=True, **OPTIONS
    )
    assert found.token_ids == twin(tiny_model.session, prompt, count, keep)


def test_guessing_goes_on_from_a_prompt_that_is_known(tiny_folder: ModelFolder) -> None:
    model = Model(tiny_folder, threads=1)
    options: dict[str, Any] = {"max_tokens": 20, **OPTIONS}
    expected = model.generate(IDS[:7] * 5, **options).token_ids
    found = model.generate(IDS[:7] * 5, lookup=True, **options)
    assert (found.token_ids, found.timings.reused_tokens) == (expected, 35)


def test_a_window_is_the_beginning_and_the_newest_half_of_the_rest() -> None:
    assert window(range(100, 112), 3, 10) == [100, 101, 102, 109, 110, 111]
    assert window(range(100, 112), 0, 10) == [107, 108, 109, 110, 111]
    assert window(range(100, 112), 8, 10) == [*range(100, 108), 111]
    with pytest.raises(RequestError, match="keep is 9, expected at most 8: the context has 10"):
        window(range(100, 112), 9, 10)


def test_what_slid_is_told(tiny_model: Model) -> None:
    """Of 158 tokens in a context of 160, three more are there before it is full."""
    slid = {"context": "slide", "keep": 4, **OPTIONS}
    timings = tiny_model.generate(IDS[:158], max_tokens=3, **slid).timings
    assert (timings.slides, timings.recomputed_tokens) == (0, 0)
    result = tiny_model.generate(IDS[:158], max_tokens=4, **slid)
    assert (result.timings.slides, result.timings.recomputed_tokens) == (1, 4 + 78)
    assert (result.finish_reason, len(result.token_ids)) == ("length", 4)
    result = tiny_model.generate(IDS[:158], max_tokens=3 + 79 + 1, **slid)
    assert (result.timings.slides, result.timings.recomputed_tokens) == (2, 2 * (4 + 78))
    result = tiny_model.generate(IDS[:161], max_tokens=2, **slid)
    assert (result.timings.slides, result.timings.recomputed_tokens) == (1, 0)
    assert result.timings.prompt_tokens == 161


@pytest.mark.parametrize("context", POLICIES)
def test_together_each_gets_what_it_gets_alone(tiny_model: Model, context: str) -> None:
    lengths = (3, 120, 158, 160, 100) + (() if context == "error" else (161, 300))
    many: list[dict[str, Any]] = [
        {"prompt": IDS[i : i + n], "max_tokens": 60} for i, n in enumerate(lengths)
    ]
    options: dict[str, Any] = {"context": context, "keep": 2, **OPTIONS}
    found = list(tiny_model.generate_many(many, rows=3, **options))
    assert sorted(result.index for result in found) == list(range(len(many)))
    for result in found:
        alone = tiny_model.generate(**many[result.index], **options, reproducible=True)
        assert (result.token_ids, result.finish_reason) == (alone.token_ids, alone.finish_reason)
        assert result.timings.slides == alone.timings.slides
        expected = "length" if context == "slide" or lengths[result.index] <= 100 else "context"
        assert result.finish_reason == expected
        if lengths[result.index] > CONTEXT and context == "stop":
            assert result.token_ids == [] and result.text == ""
    assert tiny_model.submit(**many[2], **options).result().token_ids == next(
        result.token_ids for result in found if result.index == 2
    )


def test_a_prompt_that_is_too_long_is_an_error_unless_something_else_is_asked_for(
    tiny_model: Model,
) -> None:
    with pytest.raises(RequestError, match="161 tokens, expected at most 160 .* set context to"):
        tiny_model.generate(IDS[:161])
    text = "word " * 5000  # more characters than any prompt that fits
    with pytest.raises(RequestError, match="text has 25000 characters, expected at most 2560"):
        tiny_model.generate(text)
    assert tiny_model.generate(text, context="stop").finish_reason == "context"
    assert tiny_model.generate(text, context="slide", max_tokens=3, **OPTIONS).timings.slides == 1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"context": "shift"}, "context is 'shift', expected one of: error, stop, slide"),
        ({"context": None}, "context is None, expected one of"),
        ({"keep": -1}, "keep is -1, expected an integer from 0 up"),
        ({"keep": 1.5}, "keep is 1.5, expected an integer from 0 up"),
        ({"keep": 159, "context": "slide"}, "keep is 159, expected at most 158"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(
    tiny_model: Model, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        tiny_model.stream("a", **options)
    with pytest.raises(RequestError, match=message):
        tiny_model.submit("a", **options)


def test_penalties_see_what_the_model_no_longer_sees(tiny_model: Model) -> None:
    options: dict[str, Any] = {"temperature": 0, "no_repeat_ngram_size": 1, "context": "slide"}
    found = tiny_model.generate(IDS[:100], max_tokens=100, ignore_eos=True, **options)
    assert found.timings.slides == 1
    assert len(set(found.token_ids)) == 100 and not set(found.token_ids) & set(IDS[:100])


def test_a_prompt_that_equals_a_window_is_computed(tiny_model: Model) -> None:
    """The logits after a window are not those after a prompt: nothing of one may end the other."""
    options: dict[str, Any] = {"context": "slide", "keep": 0, **OPTIONS}
    first = tiny_model.generate(IDS[:160], max_tokens=40, **options)
    same = [*IDS[81:160], first.token_ids[0]]
    asked: list[dict[str, Any]] = [{"prompt": IDS[:160], "max_tokens": 40}]
    asked.append({"prompt": same, "max_tokens": 20})
    for result in tiny_model.generate_many(asked, rows=2, **options):
        alone = tiny_model.generate(**asked[result.index], **options, reproducible=True)
        assert result.token_ids == alone.token_ids


def test_the_command_line_says_what_it_did(run: Run, tiny_folder: ModelFolder) -> None:
    command = ["run", tiny_folder.path, "the sea", "--temperature", "0", "--ignore-eos"]
    ended = run(*command, "--context", "slide", "--keep", "2", "--max-tokens", "200")
    assert ended.code == 0
    assert ended.err == (
        "the context of 160 tokens was full once: the model went on with the first tokens (see "
        "--keep) and the newest, 81 of them computed again\n"
    )
    told = json.loads(run(*command, "--context", "slide", "--max-tokens", "200", "--json").out)
    assert (told["slides"], told["new_tokens"], told["finish_reason"]) == (1, 200, "length")
    long = ["run", tiny_folder.path, "the sea " * 100]
    assert run(*long).code == 2
    ended = run(*long, "--context", "stop")
    assert (ended.code, ended.out) == (0, "\n")
    assert ended.err == "stopped: the context of 160 tokens is full\n"
    assert run(*long, "--context", "slide", "--keep", "500").code == 2


def test_every_policy_is_offered() -> None:
    for verb in (run_command, batch_command):
        (option,) = (option for option in verb.params if option.name == "context")
        assert isinstance(option.type, click.Choice) and tuple(option.type.choices) == POLICIES
