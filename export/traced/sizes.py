"""Sizes as numbers, letters, and products of both; what cannot be named is None.

B batch, S new tokens, P past tokens, T = P + S; "B*4" is a product. Functions that are given None
return it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

BATCH, NEW, PAST, TOTAL = "B", "S", "P", "T"
Size = int | str | None
Dims = tuple[Size, ...]


def add(a: Any, b: Any) -> Any:
    """a + b, None where it has no name."""
    if is_number(a) and is_number(b):
        return a + b
    if {a, b} == {PAST, NEW}:
        return TOTAL
    return a if b == 0 else b if a == 0 else None


def subtract(a: Any, b: Any) -> Any:
    """a - b, None where it has no name."""
    if is_number(a) and is_number(b):
        return a - b
    if a == b and a is not None:
        return 0
    if b == 0:
        return a
    return {(TOTAL, NEW): PAST, (TOTAL, PAST): NEW}.get((a, b))


def multiply(a: Any, b: Any) -> Any:
    """a · b, None where it has no name."""
    if is_number(a) and is_number(b):
        return a * b
    if None in (a, b) or isinstance(a, float) or isinstance(b, float):
        return None
    (number, letters), (other, others) = factors(a), factors(b)
    return product(number * other, letters + others)


def factors(size: int | str) -> tuple[int, list[str]]:
    """The number and the letters in a size: (4, ["B"]) of B*4."""
    parts = str(size).split("*")
    letters = [part for part in parts if part.isalpha()]
    return math.prod(int(part) for part in parts if not part.isalpha()), letters


def product(number: int, letters: list[str]) -> int | str:
    """The inverse of ``factors``, with letters in order."""
    if not letters or number == 0:
        return number
    return "*".join([*sorted(letters), *([str(number)] if number != 1 else [])])


def divide(a: Any, b: Any) -> Any:
    """a / b, of integers rounded towards zero."""
    if isinstance(a, str) and isinstance(b, int):
        number, letters = factors(a)
        return product(number // b, letters) if b > 0 and number % b == 0 else None
    if not (is_number(a) and is_number(b)):
        return None
    return int(a / b) if isinstance(a, int) and isinstance(b, int) else a / b


def equal(a: Any, b: Any) -> Any:
    """Whether a is b; sizes are never negative."""
    if is_number(a) and is_number(b):
        return a == b
    if isinstance(a, str) and a == b:
        return True
    number = a if is_number(a) else b
    return False if None not in (a, b) and is_number(number) and number < 0 else None


def is_number(item: Any) -> bool:
    """Whether it is one, and no letter."""
    return isinstance(item, int | float)


def broadcast(shapes: list[Dims | None]) -> Dims | None:
    """The dimensions of an operation on values of these, element by element."""
    if any(dims is None for dims in shapes):
        return None
    known = [dims for dims in shapes if dims is not None]
    rank = max(len(dims) for dims in known)
    result: list[Size] = []
    for column in zip(*(((1,) * (rank - len(dims))) + dims for dims in known), strict=True):
        sizes = {size for size in column if size != 1} or {1}
        fixed = {size for size in sizes if isinstance(size, int)}
        # Where one size is a number the others must be it, or 1.
        result.append(sizes.pop() if len(sizes) == 1 else fixed.pop() if len(fixed) == 1 else None)
    return tuple(result)


def rest(before: Dims | None, after: list[Size]) -> Size:
    """What is left of the sizes ``before`` when those ``after`` are taken away."""
    if before is None or None in before or None in after:
        return None
    whole, left = factors(product_of(before))
    number, gone = factors(product_of(after))
    for letter in gone:
        if letter not in left:
            return None
        left.remove(letter)
    return product(whole // number, left) if number and whole % number == 0 else None


def product_of(sizes: Iterable[Size]) -> Any:
    """All of them multiplied."""
    result: Any = 1
    for size in sizes:
        result = multiply(result, size)
    return result
