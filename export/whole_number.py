"""Whole numbers as callers give them: Python's own, NumPy's, or of any type that counts as one."""

from __future__ import annotations

import operator
from typing import Any


def whole_number(value: Any) -> int | None:
    """``value`` as an int, or None if it is no whole number: a truth value and 2.0 are none."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def brief(value: Any) -> str:
    """How ``value`` reads in a message: Python itself refuses to spell a very long integer."""
    if isinstance(value, int) and abs(value) > 10**30:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
