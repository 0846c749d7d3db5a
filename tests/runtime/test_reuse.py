"""A cache kept between prompts: the same tokens as an empty one, and less work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketlm.benchmarks.machine import describe_machine
from pocketlm.export.errors import RequestError
from pocketlm.runtime import decode
from pocketlm.runtime.cancellation import Cancellation, Cancelled
from pocketlm.runtime.chunks import prefill
from pocketlm.runtime.request import GREEDY, Request
from pocketlm.runtime.reuse import ReusableCache
from pocketlm.runtime.sampling import SamplingOptions
from pocketlm.runtime.session import Session

CONTEXT = 160
TOLERANCE = 1e-5 if "avx512f" in describe_machine(1)["features"] else 0.0
ids = st.integers(0, 298)
# A turn: how much of what was said so far is kept, what follows it, how long the answer may be.
turns = st.lists(
    st.tuples(st.floats(0, 1), st.lists(ids, max_size=12), st.integers(1, 12)),
    min_size=1,
    max_size=6,
)


def generate(
    session: Session,
    prompt: Sequence[int],
    limit: int,
    cache: ReusableCache | None = None,
    **sampling: Any,
) -> list[int]:
    request = Request(prompt, SamplingOptions(**sampling), limit)
    return [step.token for step in decode.generate(session, request, cache)]


def rewind(cache: ReusableCache, prompt: Sequence[int]) -> list[int]:
    """What is still to be fed of a prompt."""
    sequence = cache.start(Request(prompt))
    assert sequence.num_reused == cache.cache.length
    return sequence.token_ids[sequence.num_reused :]


@given(turns=turns, temperature=st.sampled_from([0.0, 0.9]), penalty=st.sampled_from([1.0, 1.3]))
@settings(max_examples=60, deadline=None)
def test_reusing_gives_the_tokens_of_an_empty_cache(
    tiny_session: Session,
    turns: list[tuple[float, list[int], int]],
    temperature: float,
    penalty: float,
) -> None:
    """In float32, where the last bit of a row that was decoded alone decides no token."""
    sampling: dict[str, Any] = {
        "temperature": temperature,
        "repetition_penalty": penalty,
        "seed": 3,
    }
    cache = ReusableCache(tiny_session)
    said: list[int] = []
    for share, new, limit in turns:
        prompt = (said[: round(share * len(said))] + new)[-CONTEXT + 20 :] or [5]
        found = generate(tiny_session, prompt, limit, cache, **sampling)
        assert found == generate(tiny_session, prompt, limit, **sampling)
        said = prompt + found


@given(
    prompt=st.lists(ids, min_size=2, max_size=60),
    later=st.lists(ids, min_size=1, max_size=60),
    shared=st.integers(0, 60),
)
@settings(max_examples=60, deadline=None)
def test_rows_of_a_prompt_are_reused(
    tiny_session: Session, prompt: list[int], later: list[int], shared: int
) -> None:
    """Bit by bit, whatever is left to be fed: also where it would be one token alone.

    But for AVX-512, whose float32 product rounds a row by how many there are: 2e-6 was seen.
    """
    cache = ReusableCache(tiny_session)
    prefill(tiny_session, rewind(cache, prompt), cache.cache)
    second = prompt[:shared] + later
    found = prefill(tiny_session, rewind(cache, second), cache.cache)
    whole = prefill(tiny_session, second, tiny_session.new_cache())
    np.testing.assert_allclose(found, whole, rtol=0, atol=TOLERANCE * np.abs(whole).max())
    assert cache.cache.length == len(second)


@pytest.mark.parametrize(
    "held, prompt, fed",
    [
        ([], [1], [1]),
        ([], [1, 2, 3], [1, 2, 3]),
        ([1, 2, 3, 4], [1, 2, 3, 4, 5, 6], [5, 6]),
        ([1, 2, 3], [1, 2, 3, 4, 5], [3, 4, 5]),  # what is kept is even, as chunks are
        ([1, 2, 3], [1, 2, 3, 4], [3, 4]),  # one alone would be computed by another kernel
        ([1, 2, 3], [1, 2, 3], [1, 2, 3]),  # logits come from feeding
        ([1, 2, 3], [1, 2], [1, 2]),
        ([1, 2, 3], [1], [1]),
        ([1, 2, 3, 4], [1, 9, 3, 4], [1, 9, 3, 4]),
        ([1, 2, 3, 4], [1, 2, 9, 4, 5], [9, 4, 5]),
        ([1, 2, 3], [9, 2, 3, 4], [9, 2, 3, 4]),
    ],
)
def test_what_is_fed(
    tiny_session: Session, held: list[int], prompt: list[int], fed: list[int]
) -> None:
    cache = ReusableCache(tiny_session)
    if held:
        prefill(tiny_session, rewind(cache, held), cache.cache)
    assert rewind(cache, prompt) == fed
    assert cache.cache.length == len(prompt) - len(fed)


def test_an_answer_is_reused_but_for_its_last_token(tiny_session: Session) -> None:
    """The last token was chosen, not fed: nobody had asked for what follows it."""
    cache = ReusableCache(tiny_session)
    answer = generate(tiny_session, [5, 6, 7], 8, cache, temperature=0)
    assert rewind(cache, [5, 6, 7, *answer, 9]) == [answer[-1], 9]


def test_a_cancelled_prompt_is_reused_as_far_as_it_came(tiny_session: Session) -> None:
    cache = ReusableCache(tiny_session)
    cancellation = Cancellation()
    prompt = list(range(100))
    prefill(tiny_session, rewind(cache, prompt)[:40], cache.cache)
    cancellation.cancel()
    steps = decode.generate(tiny_session, Request(prompt, GREEDY, 5), cache, cancellation)
    with pytest.raises(Cancelled):
        next(steps)
    assert cache.cache.length == 40
    found = generate(tiny_session, prompt, 5, cache, temperature=0)
    assert found == generate(tiny_session, prompt, 5, temperature=0)


def test_a_generation_whose_cache_was_taken_does_not_go_on(tiny_session: Session) -> None:
    cache = ReusableCache(tiny_session)
    first = decode.generate(tiny_session, Request([1, 2, 3], GREEDY, 9), cache)
    next(first)
    second = generate(tiny_session, [1, 2, 3], 4, cache, temperature=0)
    with pytest.raises(RequestError, match="another generation uses the cache of this one"):
        next(first)
    assert second == generate(tiny_session, [1, 2, 3], 4, temperature=0)
