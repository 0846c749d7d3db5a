"""The same request gives the same tokens, alone or in company, whatever prompts share.

Over every precision and both KV caches, bit by bit: the logprobs are compared as numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pocketlm
from pocketlm.export.folder import ModelFolder
from pocketlm.quantize.precisions import PRECISIONS
from pocketlm.runtime.model import Model
from pocketlm.runtime.text import Result

WORDS = [int(number) for number in np.random.default_rng(1).integers(0, 290, 700)]
SAMPLINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0},
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 1.0, "repetition_penalty": 1.2, "top_k": 20},
    {"temperature": 0.9, "banned_tokens": [5, 6], "frequency_penalty": 0.3},
    {"temperature": 1.0, "regex": "[a-z ,.]{4,30}"},
)


@pytest.fixture(
    scope="module",
    params=[*PRECISIONS, "int8 KV cache", "second weights", "second weights, int8 KV cache"],
)
def model(
    request: pytest.FixtureRequest, int8_kv_folder: ModelFolder, prefill_folder: ModelFolder
) -> Model:
    """The demo in every precision; tiny ones with an int8 cache, and with weights for prompts."""
    if request.param not in PRECISIONS:
        kv = "int8" if request.param.endswith("int8 KV cache") else "fp32"
        if request.param.startswith("second weights"):
            return Model(prefill_folder, threads=2, kv=kv, prefill="int8")
        return Model(int8_kv_folder, threads=2, kv=kv)
    return pocketlm.load(precision=request.param, threads=2)


@st.composite
def requests(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Some begin alike, a few are the same; long prompts of several chunks among short ones."""
    shared = WORDS[: draw(st.sampled_from([1, 3, 40, 90]))]
    asked = []
    for number in range(draw(st.integers(2, 9))):
        start, length = draw(st.integers(100, 300)), draw(st.integers(0, 40))
        prompt = (shared if draw(st.booleans()) else WORDS[start : start + 4]) + WORDS[start:][
            :length
        ]
        limit = {"max_tokens": draw(st.integers(1, 12))}
        asked.append(
            {"prompt": prompt, "seed": number, **limit, **draw(st.sampled_from(SAMPLINGS))}
        )
    return asked


@settings(max_examples=8, deadline=None)
@given(asked=requests(), rows=st.integers(2, 8), data=st.data())
def test_company_changes_no_bit(
    model: Model, asked: list[dict[str, Any]], rows: int, data: st.DataObject
) -> None:
    """In whatever order, with some that are cancelled, a session that is forked, and guesses."""
    order = data.draw(st.permutations(range(len(asked))))
    jobs = [model.submit(**asked[index], logprobs=True, ignore_eos=True) for index in order]
    ended = data.draw(st.sets(st.integers(0, len(jobs) - 1), max_size=2))
    for place in ended:
        jobs[place].cancel()
    beside = data.draw(st.sampled_from(range(len(asked))))
    forked = _of_a_fork(model, **asked[beside])
    guessed = model.generate(**asked[beside], ignore_eos=True, lookup=True)
    together = model.generate_many(
        [asked[index] for index in order], rows=rows, logprobs=True, ignore_eos=True
    )
    found = {order[result.index]: result for result in together}
    for place, index in enumerate(order):
        alone = model.generate(**asked[index], logprobs=True, ignore_eos=True, reproducible=True)
        result = found[index]
        assert (result.token_ids, result.logprobs) == (alone.token_ids, alone.logprobs)
        submitted = jobs[place].result(timeout=60)
        if place not in ended:
            assert submitted.logprobs == alone.logprobs
        assert alone.token_ids[: len(submitted.token_ids)] == submitted.token_ids
        if index == beside:
            assert (forked.token_ids, forked.logprobs) == (alone.token_ids, alone.logprobs)
            if model.folder.manifest.precision.name == "fp32" and model.session.kv == "fp32":
                assert guessed.token_ids == alone.token_ids


def _of_a_fork(model: Model, prompt: list[int], **options: Any) -> Result:
    """What a session says that was forked after it had said something else."""
    session = model.new_session()
    session.append(prompt)
    session.generate(max_tokens=2, seed=99, ignore_eos=True)
    fork = session.fork()
    fork.truncate(len(prompt))
    session.generate(max_tokens=2, seed=98, ignore_eos=True)
    return fork.generate(**options, logprobs=True, ignore_eos=True, reproducible=True)


def test_company_changes_no_bit_of_a_prompt_of_one_token(model: Model) -> None:
    """Which is fed as any new token is: in a group of rows, alone too."""
    options: dict[str, Any] = {"max_tokens": 3, "logprobs": True, "ignore_eos": True, "seed": 1}
    for prompt in ("", [5]):
        alone = model.generate(prompt, reproducible=True, **options)
        model.prefix_cache.clear()
        model.generate(prompt, **options)  # in plain steps: nothing of it is to be shared
        assert model.generate(prompt, reproducible=True, **options).logprobs == alone.logprobs
        assert model.submit(prompt, **options).result(timeout=60).logprobs == alone.logprobs
        for result in model.generate_many([prompt, prompt, WORDS[:7]], **options):
            if result.index < 2:
                assert result.logprobs == alone.logprobs
