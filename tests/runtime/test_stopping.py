"""Stop strings: the streamed text is the joined text, cut at the first match."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketlm.export.errors import RequestError
from pocketlm.runtime import stopping
from pocketlm.runtime.stopping import SpecialStops, StopMatcher

two_letters = st.text("ab", max_size=24)
some_stops = st.lists(st.text("ab", min_size=1, max_size=5), max_size=4)


def cut_at_first_match(text: str, stops: list[str]) -> tuple[str, bool]:
    """The slow twin: all the text at once."""
    starts = [start for start in range(len(text)) if text.startswith(tuple(stops), start)]
    return (text[: starts[0]], True) if starts else (text, False)


def stream(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    matcher = StopMatcher(stops)
    shown = [matcher.add(piece)[0] for piece in pieces]
    shown.append(matcher.finish())
    return "".join(shown), matcher.stopped


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.text("ab", max_size=6), max_size=12), some_stops)
def test_any_split_equals_cut_of_joined_text(pieces: list[str], stops: list[str]) -> None:
    assert stream(pieces, stops) == cut_at_first_match("".join(pieces), stops)


@settings(deadline=None)  # a busy machine is no failure
@given(two_letters, some_stops)
def test_held_back_is_only_what_may_become_a_stop(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    shown = ""
    for character in text:
        safe, stopped = matcher.add(character)
        shown += safe
        if stopped:
            return
        assert text.startswith(shown)
    held = text[len(shown) :]
    prefixes = {stop[:length] for stop in stops for length in range(1, len(stop))}
    suffixes = [text[start:] for start in range(len(text)) if text[start:] in prefixes]
    assert held == (suffixes[0] if suffixes else "")


def test_stop_inside_an_emoji_sequence() -> None:
    family = "\N{MAN}\N{ZERO WIDTH JOINER}\N{WOMAN}\N{ZERO WIDTH JOINER}\N{GIRL}"
    assert stream(list("x" + family + "y"), ["\N{WOMAN}"]) == ("x" + family[:2], True)


def test_leftmost_start_wins_over_earlier_completion() -> None:
    matcher = StopMatcher(["abcd", "bc"])
    assert matcher.add("abc") == ("", False)
    assert matcher.add("d") == ("", True)
    matcher = StopMatcher(["abcd", "bc"])
    assert matcher.add("abc") == ("", False)
    assert matcher.add("x") == ("a", True)
    matcher = StopMatcher(["abcd", "bc"])
    assert matcher.add("abc") == ("", False)
    assert matcher.finish() == "a" and matcher.stopped


def test_first_to_complete_wins_at_one_start() -> None:
    matcher = StopMatcher(["abc", "ab"])
    assert matcher.add("xab") == ("x", True)
    assert matcher.add("more") == ("", True)
    assert matcher.finish() == ""


def test_no_stops_pass_everything_on() -> None:
    matcher = StopMatcher([])
    assert matcher.add("text") == ("text", False)
    assert matcher.finish() == ""


@pytest.mark.parametrize(
    ("stops", "message"),
    [
        ("END", r"stop is a single str, expected a list of strings; put it into a list"),
        (["x"] * 65, r"stop has 65 strings, expected at most 64; give fewer"),
        (["x", 7], r"stop\[1\] is of type int, expected a string"),
        (["x", ""], r"stop\[1\] has 0 characters, expected 1 to 4096"),
        (["x" * 4097], r"stop\[0\] has 4097 characters, expected 1 to 4096"),
    ],
)
def test_bad_stops_are_refused(stops: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        StopMatcher(stops)


def test_examples_in_docstrings_are_true() -> None:
    assert doctest.testmod(stopping).failed == 0


# Special tokens ----------------------------------------------------------------------------------


def stopped(stops: list[str], tokens: list[str], held: int) -> tuple[str, bool]:
    """The text of ``tokens``, of which "<e>" and "<ee>" are special, up to a stop string.

    The last ``held`` characters are held back, as by a decoder that may change them yet.
    """
    special = SpecialStops(stops, {7: "<e>", 8: "<ee>", 9: "<f>"})
    ids = {"<e>": 7, "<ee>": 8, "<f>": 9}
    matcher = StopMatcher(special.stops)
    text = waits = ""
    for token in tokens:
        if token not in ids:
            waits += token
            certain = max(0, len(waits) - held)
            text += matcher.add(special.through(waits[:certain]))[0]
            waits = waits[certain:]
        elif ids[token] in special:
            special.wait(ids[token], waits)
    text += matcher.add(special.through(waits))[0] + matcher.finish()
    return special.unmarked(text), matcher.stopped


@pytest.mark.parametrize("held", [0, 1, 2, 9])
@pytest.mark.parametrize(
    ("stops", "tokens", "expected"),
    [
        (["<e>"], ["a", "<f>", "b", "<e>", "c"], ("ab", True)),
        (["b<e>c"], ["a", "b", "<e>", "c"], ("a", True)),
        (["b<e>c"], ["a", "b", "<e>", "d"], ("abd", False)),
        (["<ee>"], ["a", "<e>", "b", "<ee>"], ("ab", True)),
        (["<e>"], ["a", "<", "e", ">b"], ("a", True)),  # spelled by ordinary tokens
        (["<e><f>"], ["a", "<e>", "b", "<e>", "<f>"], ("ab", True)),
        (["x"], ["a", "<e>", "b"], ("ab", False)),
        ([], ["a", "<e>"], ("a", False)),
    ],
)
def test_a_stop_that_spells_a_special_token_is_found_in_it(
    stops: list[str], tokens: list[str], expected: tuple[str, bool], held: int
) -> None:
    assert stopped(stops, tokens, held) == expected
