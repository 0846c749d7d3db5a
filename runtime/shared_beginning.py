"""How far two sequences are alike: what has been computed of one serves for the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def shared_beginning(first: Sequence[Any], second: Sequence[Any]) -> int:
    """How many elements two sequences begin with alike."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))
