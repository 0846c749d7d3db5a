"""Strings that a text never contains, against a twin that looks at every token."""

from __future__ import annotations

import re
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pocketlm
from pocketlm.export.errors import RequestError
from pocketlm.runtime.banned_strings import BannedStrings, TokenTexts
from pocketlm.runtime.sampling import SamplingOptions, make_sampler, process_logits

FOUR = TokenTexts([b"a", b"b", b"ab", b"c"])


@pytest.mark.parametrize(
    ("strings", "generated", "completing"),
    [
        (["ab"], [], [2]),
        (["ab"], [0], [1, 2]),
        (["ab"], [1], [2]),
        (["aba"], [0, 1], [0, 2]),
        (["aba"], [2], [0, 2]),
        (["abc", "bb"], [2], [1, 3]),
        (["c"], [0, 0], [3]),
        (["é", "x"], [0], []),
    ],
)
def test_tokens_of_four_that_complete_a_string(
    strings: list[str], generated: list[int], completing: list[int]
) -> None:
    assert sorted(set(BannedStrings(FOUR, strings).completed_by(generated))) == completing


@given(
    texts=st.lists(st.text("abé", max_size=4).map(str.encode), min_size=1, max_size=12),
    strings=st.lists(st.text("abé", min_size=1, max_size=5), min_size=1, max_size=3),
    data=st.data(),
)
def test_removed_are_the_tokens_after_which_the_text_has_one(
    texts: list[bytes], strings: list[str], data: st.DataObject
) -> None:
    generated = data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=6))
    before = b"".join(texts[token] for token in generated)
    banned = [string.encode() for string in strings]
    if any(one in before for one in banned):
        return
    found = set(BannedStrings(TokenTexts(texts), strings).completed_by(generated).tolist())
    assert found == {
        token for token, text in enumerate(texts) if any(one in before + text for one in banned)
    }


def test_banned_strings_take_little_memory() -> None:
    tokens = TokenTexts([bytes([i]) for i in range(256)] + [b"ab" * 8])
    tracemalloc.start()
    try:
        banned = BannedStrings(tokens, [chr(97 + i % 26) * 4096 for i in range(64)])
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    assert set(banned.completed_by([97] * 4095)) == {97, 256}


def test_a_sampler_draws_what_completes_none() -> None:
    banned = BannedStrings(FOUR, ["ab"])
    logits = np.array([2, 1, 4, -1], np.float32)
    sampler = make_sampler(SamplingOptions(temperature=0), 1, banned=banned)
    assert [sampler(logits, [0]), sampler(logits, [0, 0])] == [0, 0]  # the prompt does not count
    low = SamplingOptions(logit_bias={0: -100.0}, temperature=0)
    assert make_sampler(low, 1, banned=banned)(logits, [0, 0]) == 3
    found = process_logits(logits, [0, 0], SamplingOptions(), 1, banned=banned)
    np.testing.assert_array_equal(found, np.array([2, -np.inf, -np.inf, -1], np.float32))


def test_a_text_has_none_of_them(tiny_model: pocketlm.Model) -> None:
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 40, "ignore_eos": True}
    text = tiny_model.generate("the sea", **options).text
    banned = re.findall("[ -~]{1,2}", text)[:4]
    assert len(banned) == 4
    other = tiny_model.generate("the sea", banned_strings=banned, **options).text
    assert other and not any(one in other for one in banned)


@pytest.mark.parametrize(
    ("banned", "message"),
    [
        ("ab", "banned_strings is 'ab' of type str, expected a list of strings"),
        (3, "banned_strings is 3 of type int, expected a list of strings"),
        (["a", 3], "banned_strings has 3 of type int, expected strings of 1 to 4096 characters"),
        ([""], "banned_strings has '' of type str, expected strings of 1 to 4096 characters"),
        (["x" * 4097], "of type str, expected strings of 1 to 4096 characters"),
        (["\ud800"], "with a lone surrogate, expected Unicode text"),
        (["a"] * 65, "banned_strings has 65 strings, expected at most 64"),
    ],
)
def test_strings_that_are_none_are_named(
    tiny_model: pocketlm.Model, banned: Any, message: str
) -> None:
    with pytest.raises(RequestError, match=re.escape(message)):
        tiny_model.stream("a", banned_strings=banned)
