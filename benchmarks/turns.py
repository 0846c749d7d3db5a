"""Tests that take turns, so that what slows the machine down for a while slows all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def rates(tests: Sequence[Callable[[], float]], rounds: int) -> list[list[float]]:
    """Of every test those of the rounds, after one that does not count."""
    found: list[list[float]] = [[] for _ in tests]
    for number in range(rounds + 1):
        order = list(zip(tests, found, strict=True))
        for test, results in order if number % 2 else reversed(order):
            result = test()
            if number:
                results.append(result)
    return found
