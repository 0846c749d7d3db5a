"""The likeliest tokens of a place are what they were given as, in a tenth of the memory."""

from __future__ import annotations

import json
import pickle
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pocketlm
from pocketlm.export.folder import ModelFolder
from pocketlm.runtime.logprobs import TopLogprobs

PAIRS = st.lists(
    st.tuples(st.integers(0, 2**31 - 1), st.floats(max_value=0, allow_nan=False)), max_size=20
)


def packed(pairs: list[tuple[int, float]]) -> TopLogprobs:
    ids, values = [token for token, _ in pairs], [value for _, value in pairs]
    return TopLogprobs(np.array(ids, np.int64), np.array(values, np.float64))


@given(PAIRS, st.integers(-25, 25), st.integers(-25, 25))
def test_they_are_read_as_the_pairs_are(
    pairs: list[tuple[int, float]], start: int, stop: int
) -> None:
    found, expected = packed(pairs), tuple(pairs)
    assert found == expected and expected == found and len(found) == len(expected)
    assert list(found) == pairs and found[start:stop] == expected[start:stop]
    assert hash(found) == hash(expected) and repr(found) == repr(expected)
    assert pickle.loads(pickle.dumps(found)) == expected
    for place in (start, stop):
        if -len(pairs) <= place < len(pairs):
            assert found[place] == expected[place]
        else:
            with pytest.raises(IndexError):
                found[place]
    assert found != (*expected, (1, 0.0)) and found != 1


def test_they_take_a_tenth_of_the_memory_and_nothing_of_what_they_were_cut_from() -> None:
    rows = np.random.default_rng(0).random((200, 1000))

    def bytes_of(kept: Callable[[TopLogprobs], object]) -> int:
        tracemalloc.start()
        all_kept = [kept(TopLogprobs(np.arange(1000, 1100), row[:100])) for row in rows]
        taken, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(all_kept) == len(rows)
        return taken

    assert bytes_of(lambda found: found) < 0.15 * bytes_of(tuple)


def test_those_of_a_result_are_plain_pairs(tiny_folder: ModelFolder) -> None:
    model = pocketlm.load(tiny_folder.path, threads=1)
    found = model.generate("a", max_tokens=4, logprobs=3, ignore_eos=True)
    assert found.top_logprobs is not None and found.tops is not None
    assert all(type(top) is tuple and len(top) == 3 for top in found.top_logprobs)
    assert all(isinstance(top, TopLogprobs) for top in found.tops)
    assert found.top_logprobs == found.tops
    assert json.loads(json.dumps(found.top_logprobs)) == [
        [list(pair) for pair in top] for top in found.tops
    ]
