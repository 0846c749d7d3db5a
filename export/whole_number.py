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
