"""Versions as they are compared: by the numbers that they begin with."""

from __future__ import annotations

import pytest

from pocketlm.export.release import release


@pytest.mark.parametrize(
    ("version", "numbers"),
    [
        ("1.32.0", (1, 32, 0)),
        ("1.32.0rc1", (1, 32, 0)),
        ("1.33.0.dev20261101", (1, 33, 0)),
        ("2", (2,)),
        ("1.31+cuda12.8", (1, 31)),
        ("unknown", ()),
    ],
)
def test_a_version_is_its_numbers(version: str, numbers: tuple[int, ...]) -> None:
    assert release(version) == numbers


def test_numbers_are_compared_as_numbers() -> None:
    assert release("1.9") < release("1.10") < release("1.10.1")
