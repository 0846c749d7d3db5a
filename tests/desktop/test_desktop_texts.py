"""What the example's window shows, without a window: passages, and where two texts part."""

from __future__ import annotations

import pytest
from messages import Choice
from parting import parting
from passages import Passages

CHOICES = (Choice("x", 0.5, (("x", 0.5),)),)


def test_every_character_finds_the_tokens_it_came_with_and_no_other() -> None:
    passages = Passages()
    passages.add(3, 5, CHOICES)
    passages.add(5, 5, CHOICES)  # half a character
    passages.add(8, 9, CHOICES)
    found = [passages.at(position) for position in range(10)]
    assert [None if each is None else each.start for each in found] == [
        *[None] * 3, 3, 3, *[None] * 3, 8, None,
    ]  # fmt: skip
    passages.clear()
    assert passages.at(3) is None


@pytest.mark.parametrize(
    "left, right, only_left, only_right",
    [
        ("", "", [], []),
        ("a b", "a b", [], []),
        ("a b c d", "a x c d", ["b"], ["x"]),
        ("a b c d", "a x y d", ["b", "c"], ["x", "y"]),
        ("a b c d e", "a b", ["c", "d e"], []),
        ("a  b\nc", "a b c", [], []),  # words, not what is between them
        ("a b c d", "x b c y", ["a", "d"], ["x", "y"]),
    ],
)
def test_texts_part_where_words_differ(
    left: str, right: str, only_left: list[str], only_right: list[str]
) -> None:
    found = parting(left, right)
    assert [left[start:end] for start, end in found.left] == only_left
    assert [right[start:end] for start, end in found.right] == only_right


def test_what_may_yet_come_is_no_difference() -> None:
    assert parting("a b c d", "a b c", complete=False).left == []
    assert parting("one two three", "one tw", complete=False).right == []
    found = parting("a b c d", "a x c d", complete=False)
    assert (found.left, found.right) == ([(2, 3)], [(2, 3)])
