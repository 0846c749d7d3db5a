"""Numbers, sizes and durations as a reader wants them: three digits or more, and a unit that fits.

Units are decimal: 1 kB is 1000 bytes. What is written grows with what it is of, and only 0 is 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from .errors import RequestError
from .strict_json import shown

ByteProgress = Callable[[int, int], None]  # bytes done so far, bytes in all
MINUS = "\N{MINUS SIGN}"
BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B"))
# From 100 of one unit on it is the next: 99 s are easier to grasp than 1.7 min.
SECONDS = ((6e3, 3600, "h"), (1e2, 60, "min"), (1, 1, "s"), (1e-3, 1e-3, "ms"), (0, 1e-6, "µs"))


def number_text(value: float, digits: int = 3) -> str:
    """A finite number to ``digits`` significant digits or more, with commas: 1,234, 12.3, 0.00123.

    What is before the point is always written out.
    """
    if value == 0:
        return "0"
    if abs(value) < 1e-4:
        return signed(f"{value:.{digits - 1}e}".replace("e-0", "e-"))
    return signed(f"{value:,.{decimals(value, digits)}f}")


def size_text(num_bytes: float) -> str:
    """A number of bytes: 512 B, 29.7 MB, 63.0 GB."""
    # 0.9995 would be written 1.00: it is one of the larger unit already.
    scale, unit = next((pair for pair in BYTES if abs(num_bytes) >= 0.9995 * pair[0]), BYTES[-1])
    if scale == 1 and float(num_bytes).is_integer():
        return f"{num_bytes:.0f} B"
    return f"{number_text(num_bytes / scale)} {unit}"


def megabytes(num_bytes: float) -> str:
    """How many MB, for a column of them: 0.0123, 29.7, 16,061."""
    return number_text(num_bytes / 1e6)


def duration_text(seconds: float, digits: int = 3) -> str:
    """A time: 830 µs, 57.1 ms, 1.24 s, 12.0 min, 3.41 h; to two ``digits`` where it is a guess."""
    if seconds == 0:
        return "0 s"
    rounded = float(f"{seconds:.{digits - 1}e}")  # 0.9996 s are 1.00 s, not 1,000 ms
    _, scale, unit = next(row for row in SECONDS if rounded >= row[0])
    return f"{number_text(seconds / scale, digits)} {unit}"


def decimals(value: float, digits: int) -> int:
    """Decimals that show ``digits`` significant digits of a number after rounding to them."""
    exponent = int(f"{abs(value):.{digits - 1}e}".partition("e")[2])
    return max(0, digits - 1 - exponent)


def signed(text: str) -> str:
    """A number's text with a real minus sign; none where rounding left nothing."""
    if not text.strip("-0.,"):
        return text.removeprefix("-")
    return text.replace("-", MINUS, 1) if text.startswith("-") else text


UNITS = {unit: int(scale) for scale, unit in BYTES} | {
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
}
_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,6})?) ?([A-Za-z]{0,3})")


def parse_size(text: str) -> int:
    """Bytes of "80MB", "1.5 GiB" or "4096"; RequestError for what is no size above 0."""
    from fractions import Fraction  # not above: it brings decimal, and only options are parsed

    match = _SIZE.fullmatch(text.strip())
    units = {name.lower(): size for name, size in UNITS.items()}
    unit = units.get((match[2] or "B").lower()) if match else None
    size = int(Fraction(match[1]) * unit) if match and unit else 0  # exact, as a float is not
    if size <= 0:
        raise RequestError(
            f"found the size {shown(text)}, expected a number above 0 and its unit, such as 80MB "
            f"({', '.join(UNITS)})"
        )
    return size
