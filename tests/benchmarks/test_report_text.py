"""Numbers and names as the report writes them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketlm.benchmarks.html import quantities
from pocketlm.benchmarks.html.quantities import UNKNOWN, number, times, with_error
from pocketlm.benchmarks.html.visible_text import (
    listed,
    printable,
    prose,
    shortened,
    token,
    told_apart,
)


@pytest.mark.parametrize(
    "value, text",
    [
        (0, "0"),
        (1234.5, "1,234"),
        (99.96, "100"),
        (9.996, "10.0"),
        (0.0413, "0.0413"),
        (0.00012345, "0.000123"),
        (0.000012345, "1.23e-5"),
        (-0.00103, "−0.00103"),
        (None, UNKNOWN),
        (math.nan, UNKNOWN),
        (math.inf, UNKNOWN),
    ],
)
def test_numbers_have_three_digits(value: float | None, text: str) -> None:
    assert number(value) == text


@given(st.floats(1e-12, 1e12), st.integers(1, 6), st.sampled_from([1, -1]))
def test_a_number_is_what_it_says_to_its_digits(size: float, digits: int, sign: int) -> None:
    read = float(number(sign * size, digits).replace("−", "-").replace(",", ""))
    assert math.isclose(read, sign * size, rel_tol=0.51 * 10 ** (1 - digits))


@pytest.mark.parametrize(
    "value, error, texts",
    [
        (0.0413, 0.00114, ("0.0413", "± 0.0011")),
        (30.354, 0.213, ("30.35", "± 0.21")),
        (97.561, 0.0996, ("97.56", "± 0.10")),
        (1234.56, 78.9, ("1,235", "± 79")),
        (-0.00001, 0.0021, ("0.0000", "± 0.0021")),
        (1e-9, 2e-10, ("1.00e-9", "± 2.0e-10")),
        (0.0413, None, ("0.04130", "")),
        (0.0413, 0.0, ("0.04130", "")),
        (None, None, (UNKNOWN, "")),
    ],
)
def test_an_error_decides_the_digits_of_its_mean(
    value: float | None, error: float | None, texts: tuple[str, str]
) -> None:
    assert with_error(value, error) == texts


@pytest.mark.parametrize(
    "unit, value, text",
    [
        ("size", 512, "512 B"),
        ("size", 30_315_368, "30.3 MB"),
        ("size", 999_960, "1.00 MB"),
        ("size", 2_470_000_000, "2.47 GB"),
        ("duration", 1.234, "1.23 s"),
        ("duration", 0.0571, "57.1 ms"),
        ("duration", 0.00083, "830 µs"),
        ("duration", 2e-9, "0.00200 µs"),
        ("count", 98_304, "98,304"),
        ("percent", 0.976, "97.6 %"),
        ("percent", 0.0, "0 %"),
        ("times", 4.613, "4.61×"),
        ("times", 0.8, "0.80×"),
        ("times", 12.34, "12.3×"),
        *((unit, None, UNKNOWN) for unit in ("size", "duration", "count", "percent", "times")),
    ],
)
def test_quantities_have_their_unit(unit: str, value: float | None, text: str) -> None:
    assert getattr(quantities, unit)(value) == text


def test_a_ratio_that_rounds_to_one_has_its_digits() -> None:
    assert [times(ratio) for ratio in (0.994, 0.9996, 1.004)] == ["0.99×", "1.00×", "1.00×"]


def test_what_cannot_be_seen_is_written_out() -> None:
    assert printable("a\x00\x1b[31m\u202e\udce9 é 中\n") == r"a\x00\x1b[31m\u202e\udce9 é 中\n"
    assert prose("a\x00\nb") == "a\\x00\nb"


@pytest.mark.parametrize(
    "text, shown", [(" a", "␣a"), ("\n\n", "↵↵"), ("\t", "⇥"), ("", "(nothing)"), ("é", "é")]
)
def test_tokens_show_their_spaces(text: str, shown: str) -> None:
    assert token(text) == shown


@given(st.text(), st.integers(2, 30))
def test_shortened_names_fit_and_keep_their_ends(text: str, length: int) -> None:
    found = shortened(text, length)
    assert len(found) <= length
    assert found[0:1] == printable(text)[0:1]


def test_names_lose_what_all_begin_with() -> None:
    names = ["llama-3.2-1b-int8", "llama-3.2-1b-int4-block32"]
    assert list(told_apart(names, 14).values()) == ["…int8", "…int4-block32"]
    assert list(told_apart(names, 30).values()) == names
    assert told_apart(["llama-3.2-1b-int8"], 10) == {"llama-3.2-1b-int8": "llama…int8"}


@pytest.mark.parametrize(
    "words, text",
    [([], ""), (["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")],
)
def test_words_are_listed(words: list[str], text: str) -> None:
    assert listed(words) == text
