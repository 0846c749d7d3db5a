"""Versions of packages, as far as they are compared. Standard library only."""

from __future__ import annotations

import re


def release(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with: (1, 32, 0) of "1.32.0rc1"."""
    found = re.match(r"\d{1,9}(?:\.\d{1,9})*", version)
    return tuple(map(int, found[0].split("."))) if found else ()
