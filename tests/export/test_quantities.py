"""Sizes and durations as text: they grow with what they are of, and keep two digits or more.

And sizes as they are read: exact, in any unit.
"""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pocketlm.export.errors import RequestError
from pocketlm.export.quantities import duration_text, megabytes, parse_size, size_text

UNITS = {
    **{"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12},
    **{"µs": 1e-6, "ms": 1e-3, "s": 1, "min": 60, "h": 3600},
}
sizes = st.integers(0, 10**16) | st.integers(0, 10**7)
times = st.floats(0, 1e7) | st.floats(0, 1)


def read(text: str) -> float:
    """What a text says, in bytes or seconds."""
    value, unit = text.split(" ")
    return float(value.replace(",", "")) * UNITS[unit]


def digits(text: str) -> int:
    """Significant digits that are written."""
    return len(re.sub(r"^0+|e.*", "", re.sub(r"[^\de]", "", text.partition(" ")[0])))


@given(sizes, sizes)
@example(999_499, 999_500)
@example(999_499_999, 999_500_000)
def test_a_larger_size_never_reads_as_a_smaller_one(one: int, other: int) -> None:
    less, more = sorted((one, other))
    assert read(size_text(less)) <= read(size_text(more))
    assert float(megabytes(less).replace(",", "")) <= float(megabytes(more).replace(",", ""))


@given(times, times, st.sampled_from([2, 3]))
@example(99.94, 99.96, 3)
@example(0.99949, 0.9995, 3)
def test_a_longer_time_never_reads_as_a_shorter_one(one: float, other: float, count: int) -> None:
    less, more = (duration_text(seconds, count) for seconds in sorted((one, other)))
    assert read(less) <= read(more) * (1 + 1e-12)  # units of time are no powers of ten


@given(sizes)
@example(62_989_800_000)
def test_a_size_is_what_it_says_in_a_unit_that_fits(num_bytes: int) -> None:
    for text, said in (
        (size_text(num_bytes), read(size_text(num_bytes))),
        (f"{megabytes(num_bytes)} MB", 1e6 * float(megabytes(num_bytes).replace(",", ""))),
    ):
        assert said == pytest.approx(num_bytes, rel=0.0051)
        assert digits(text) >= 2 or num_bytes < 10
    assert "," not in size_text(num_bytes) or num_bytes >= 10**15


@given(st.floats(1e-6, 1e7), st.sampled_from([2, 3]))
def test_a_duration_is_what_it_says(seconds: float, count: int) -> None:
    text = duration_text(seconds, count)
    assert read(text) == pytest.approx(seconds, rel=0.51 * 10 ** (1 - count))
    assert digits(text) >= count


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (size_text(0), "0 B"),
        (size_text(7), "7 B"),
        (size_text(1234), "1.23 kB"),
        (size_text(154_400_000), "154 MB"),
        (size_text(62_989_800_000), "63.0 GB"),
        (size_text(31.8e9), "31.8 GB"),
        (megabytes(12_345), "0.0123"),
        (megabytes(16_061_000_000), "16,061"),
        (duration_text(0), "0 s"),
        (duration_text(0.00083), "830 µs"),
        (duration_text(0.0571), "57.1 ms"),
        (duration_text(8.7, 2), "8.7 s"),
        (duration_text(85.4, 2), "85 s"),
        (duration_text(720, 2), "12 min"),
        (duration_text(12_300, 2), "3.4 h"),
    ],
)
def test_sizes_and_times_read_well(text: str, expected: str) -> None:
    assert text == expected


# Sizes that are read ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("4096", 4096),
        ("80MB", 80_000_000),
        ("80 mb", 80_000_000),
        (" 1.5 GiB ", 3 << 29),
        ("0.25kB", 250),
        ("2TB", 2 * 10**12),
        ("1b", 1),
    ],
)
def test_a_size_is_read_with_its_unit(text: str, num_bytes: int) -> None:
    assert parse_size(text) == num_bytes


@given(st.integers(1, 10**12), st.sampled_from(["B", "kB", "MB", "GB", "TB", "KiB", "MiB", "GiB"]))
def test_whole_numbers_of_any_unit_are_exact(number: int, unit: str) -> None:
    scale = 1024 ** " KMG".index(unit[0]) if "i" in unit else int(UNITS[unit])
    number = max(1, number // scale)
    assert parse_size(f"{number}{unit}") == parse_size(f"{number} {unit.lower()}") == number * scale


@given(sizes.filter(lambda size: size > 0))
def test_a_size_as_it_is_written_is_read_as_nearly_the_same(num_bytes: int) -> None:
    written = size_text(num_bytes).replace(",", "")
    assert parse_size(written) == pytest.approx(num_bytes, rel=6e-3)


@pytest.mark.parametrize(
    "text", ["", "MB", "80 cows", "-1MB", "0", "0.1B", "1e9", "1_000", "nan", "inf GB", "1" * 20]
)
def test_what_is_no_size_is_refused_with_the_units(text: str) -> None:
    with pytest.raises(RequestError, match="expected a number above 0 and its unit, such as 80MB"):
        parse_size(text)
