"""Headers of every answer, which keep a browser from more than it was asked to do with it."""

from __future__ import annotations

SAFE = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


def with_safe(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """``headers`` and those of ``SAFE`` that it does not have; nothing is kept by a cache."""
    found = {name.lower() for name, _ in headers}
    defaults = [*SAFE, (b"cache-control", b"no-store")]
    return [*headers, *((name, value) for name, value in defaults if name not in found)]
