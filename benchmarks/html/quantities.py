"""Numbers of a report: those of ``export.quantities``, and an error to two digits.

Every function takes None for what is not known and gives a dash.
"""

from __future__ import annotations

import math

from ...export.quantities import decimals, duration_text, number_text, signed, size_text

UNKNOWN = "–"


def number(value: float | None, digits: int = 3) -> str:
    """A number to ``digits`` significant digits, with commas: 1,234, 12.3, 0.00123."""
    return UNKNOWN if value is None or not math.isfinite(value) else number_text(value, digits)


def with_error(value: float | None, error: float | None) -> tuple[str, str]:
    """A mean and its standard error, both to the error's second digit: ('0.0413', '± 0.0011').

    Without an error the second is empty.
    """
    if value is None or not error or not math.isfinite(value + error):
        return number(value, 4), ""
    places = decimals(error, 2)
    if places > 7:
        return number(value), f"± {number(error, 2)}"
    return signed(f"{value:,.{places}f}"), f"± {error:,.{places}f}"


def percent(share: float | None) -> str:
    """A share as percent: 97.6 %."""
    return UNKNOWN if share is None else f"{number(100 * share)} %"


def size(num_bytes: float | None) -> str:
    """A number of bytes: 512 B, 29.7 MB, 1.24 GB."""
    return UNKNOWN if num_bytes is None else size_text(num_bytes)


def duration(seconds: float | None) -> str:
    """A time: 1.24 s, 57.1 ms, 830 µs."""
    return UNKNOWN if seconds is None else duration_text(seconds)


def count(whole: int | None) -> str:
    """A whole number with commas: 1,023."""
    return UNKNOWN if whole is None else f"{whole:,}"


def counted(whole: int, noun: str) -> str:
    """A number of things: 1 thread, 2 threads."""
    return f"{whole:,} {noun}{'s' * (whole != 1)}"


def times(ratio: float | None) -> str:
    """A ratio: 4.61×, 0.80×."""
    return UNKNOWN if ratio is None else f"{number(ratio, 3 if abs(ratio) >= 0.9995 else 2)}×"
