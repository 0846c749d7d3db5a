"""What the bodies of all requests under way take of memory, together: a bound on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .errors import busy

MOST_HELD_BYTES = 64_000_000  # beside one body, which always has room


class Bodies:
    """Those of one server.

    num_bytes   that they have
    most_bytes  that they may have
    """

    def __init__(self, most_bytes: int = MOST_HELD_BYTES) -> None:
        self.num_bytes = 0
        self.most_bytes = most_bytes

    @contextmanager
    def one(self) -> Iterator[HeldBody]:
        """A body that is held until the block ends."""
        body = HeldBody(self)
        try:
            yield body
        finally:
            self.num_bytes -= body.num_bytes

    def has_room(self, body: HeldBody) -> bool:
        """Whether it fits beside the others."""
        return self.num_bytes <= max(self.most_bytes, body.num_bytes)


class HeldBody:
    """One that grows to ``num_bytes``."""

    def __init__(self, bodies: Bodies) -> None:
        self.num_bytes = 0
        self._bodies = bodies

    def grow(self, count: int) -> None:
        """By what has arrived. Raises ApiError (503) where others leave it no room."""
        self.num_bytes += count
        self._bodies.num_bytes += count
        if not self._bodies.has_room(self):
            error = busy("the server has as many large requests as it takes; try again later", 503)
            error.headers["Connection"] = "close"
            raise error
