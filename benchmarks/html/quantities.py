"""Numbers as a reader wants them: three or four digits, a unit, and an error to two digits.

Every function takes None for what is not known and gives a dash.
"""

from __future__ import annotations

import math

UNKNOWN = "–"
MINUS = "\N{MINUS SIGN}"


def number(value: float | None, digits: int = 3) -> str:
    """A number to ``digits`` significant digits, with commas: 1,234, 12.3, 0.00123."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if value == 0:
        return "0"
    if abs(value) < 1e-4:
        return _signed(f"{value:.{digits - 1}e}".replace("e-0", "e-"))
    return _signed(f"{value:,.{_decimals(value, digits)}f}")


def with_error(value: float | None, error: float | None) -> tuple[str, str]:
    """A mean and its standard error, both to the error's second digit: ('0.0413', '± 0.0011').

    Without an error the second is empty.
    """
    if value is None or not error or not math.isfinite(value + error):
        return number(value, 4), ""
    decimals = _decimals(error, 2)
    if decimals > 7:
        return number(value), f"± {number(error, 2)}"
    return _signed(f"{value:,.{decimals}f}"), f"± {error:,.{decimals}f}"


def percent(share: float | None) -> str:
    """A share as percent: 97.6 %."""
    return UNKNOWN if share is None else f"{number(100 * share)} %"


def size(num_bytes: float | None) -> str:
    """A number of bytes: 512 B, 29.7 MB, 1.24 GB."""
    return _scaled(num_bytes, ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B")))


def duration(seconds: float | None) -> str:
    """A time: 1.24 s, 57.1 ms, 830 µs."""
    return _scaled(seconds, ((1, "s"), (1e-3, "ms"), (1e-6, "µs")))


def count(whole: int | None) -> str:
    """A whole number with commas: 1,023."""
    return UNKNOWN if whole is None else f"{whole:,}"


def counted(whole: int, noun: str) -> str:
    """A number of things: 1 thread, 2 threads."""
    return f"{whole:,} {noun}{'s' * (whole != 1)}"


def times(ratio: float | None) -> str:
    """A ratio: 4.61×, 0.80×."""
    return UNKNOWN if ratio is None else f"{number(ratio, 3 if abs(ratio) >= 0.9995 else 2)}×"


def _scaled(value: float | None, units: tuple[tuple[float, str], ...]) -> str:
    """In the largest unit of which there is at least one; without it, the smallest."""
    if value is None:
        return UNKNOWN
    # 0.9995 would be written 1.00: it is one of the larger unit already.
    scale, unit = next((pair for pair in units if abs(value) >= 0.9995 * pair[0]), units[-1])
    return f"{number(value / scale)} {unit}"


def _decimals(value: float, digits: int) -> int:
    """Decimals that show ``digits`` significant digits after rounding to them."""
    exponent = int(f"{abs(value):.{digits - 1}e}".partition("e")[2])
    return max(0, digits - 1 - exponent)


def _signed(text: str) -> str:
    """With a real minus sign; none where rounding left nothing."""
    if not text.strip("-0.,"):
        return text.removeprefix("-")
    return text.replace("-", MINUS, 1) if text.startswith("-") else text
