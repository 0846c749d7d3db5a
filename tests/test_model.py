"""``Model``: what a generation gives back, how it ends, and what is refused before it runs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import pocketlm
from pocketlm.export.errors import RequestError
from pocketlm.export.folder import ModelFolder
from pocketlm.runtime.cancellation import Cancellation

Model = pocketlm.Model


def test_generate_is_the_stream_joined(tiny_model: Model) -> None:
    stream = tiny_model.stream("the", temperature=0, max_tokens=20)
    text = "".join(piece.text for piece in stream)
    result = tiny_model.generate("the", temperature=0, max_tokens=20)
    assert (result.text, result.token_ids) == (text, stream.token_ids)
    assert result.finish_reason == stream.finish_reason == "length"
    assert result.timings.new_tokens == 20
    assert result.logprobs is None


def test_logprobs_come_when_asked_for(tiny_model: Model) -> None:
    result = tiny_model.generate("the", max_tokens=8, seed=1, logprobs=True)
    assert result.logprobs is not None and len(result.logprobs) == 8
    assert all(-20 < logprob < 0 for logprob in result.logprobs)


def test_seed_decides_the_tokens(tiny_model: Model) -> None:
    def ids(seed: int | None) -> tuple[int, ...]:
        return tuple(tiny_model.generate("the", max_tokens=20, seed=seed).token_ids)

    assert ids(1) == ids(1)
    assert len({ids(seed) for seed in (1, 2, 3)}) == 3
    assert ids(None) != ids(None)


def test_an_empty_prompt_starts_from_end_of_text(tiny_model: Model) -> None:
    found = tiny_model.generate(temperature=0, max_tokens=5)
    assert found.token_ids == tiny_model.generate([299], temperature=0, max_tokens=5).token_ids
    assert found.timings.prompt_tokens == 1


def test_a_model_without_end_of_text_needs_a_prompt(tiny_folder: ModelFolder) -> None:
    model = Model(tiny_folder, threads=1)
    model.start_id = None
    with pytest.raises(pocketlm.RequestError, match="the prompt is empty, expected at least one"):
        model.stream("")
    assert model.generate("a", max_tokens=2).token_ids


def test_every_finish_reason_has_its_name(tiny_model: Model, tiny_folder: ModelFolder) -> None:
    ids = tiny_model.generate("the", temperature=0, max_tokens=20).token_ids
    text = tiny_model.generate("the", temperature=0, max_tokens=20).text
    cancellation = Cancellation()
    cancellation.cancel()

    def reason(prompt: Any = "the", **options: Any) -> str:
        return tiny_model.generate(prompt, temperature=0, **options).finish_reason

    assert reason(max_tokens=3) == "length"
    assert reason([5] * 158, max_tokens=50) == "context"
    assert reason(stop=text[4:7]) == "stop"
    assert reason(stop=[text[4:7], text[2]]) == "stop"
    assert reason(cancellation=cancellation) == "cancelled"
    ending = Model(tiny_folder, threads=1)
    ending.end_ids = frozenset({ids[4]})
    result = ending.generate("the", temperature=0)
    assert result.finish_reason == "eos"
    assert result.token_ids[-1] == ids[4] and len(result.token_ids) == ids.index(ids[4]) + 1
    assert ending.generate("the", temperature=0, max_tokens=20, ignore_eos=True).token_ids == ids


@pytest.mark.parametrize(
    "name, value",
    [
        ("temperature", -1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", True),
        ("temperature", "1"),
        ("top_p", 0),
        ("top_p", 1.5),
        ("min_p", -0.1),
        ("min_p", 2),
        ("top_k", -1),
        ("top_k", 1.5),
        ("repetition_penalty", 0),
        ("typical_p", 0),
        ("frequency_penalty", math.nan),
        ("presence_penalty", 101),
        ("penalty_window", 0),
        ("no_repeat_ngram_size", -1),
        ("logit_bias", {"a": 1}),
        ("min_tokens", -1),
        ("seed", -1),
        ("max_tokens", 0),
        ("max_tokens", True),
        ("max_tokens", 1.5),
        ("stop", ""),
        ("stop", [""]),
        ("stop", ["a", 1]),
        ("stop", ["a", None]),
        ("logprobs", -1),
        ("logprobs", 101),
        ("logprobs", 1.5),
        ("logprobs", "5"),
        ("ignore_eos", 1),
        ("stop", 5),
        ("stop", b"a"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_runs(
    tiny_model: Model, name: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_model, "session", ShapeAlone(tiny_model))
    with pytest.raises(RequestError, match=name) as caught:
        tiny_model.stream("the", **{name: value})
    assert "expected" in str(caught.value)
    with pytest.raises(RequestError):
        tiny_model.generate("the", **{name: value})


def test_numbers_of_numpy_and_no_stop_string_will_do(tiny_model: Model) -> None:
    expected = tiny_model.generate("the", max_tokens=3, top_k=4, seed=1)
    found = tiny_model.generate(
        "the", max_tokens=np.int64(3), top_k=np.int32(4), seed=np.uint8(1), stop=None
    )
    assert found.token_ids == expected.token_ids
    assert not tiny_model.generate("the", max_tokens=1, logprobs=np.False_).logprobs


def test_an_integer_too_long_to_spell_is_refused_as_any_other(tiny_model: Model) -> None:
    for options in ({"max_tokens": -(10**5000)}, {"prompt": [10**5000]}):
        with pytest.raises(RequestError, match="is an integer of|id an integer of"):
            tiny_model.generate(**options)


class ShapeAlone:
    """Stands where a session would, and cannot run."""

    def __init__(self, model: Model) -> None:
        self.shape = model.session.shape
