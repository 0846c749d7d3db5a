"""What all requests under way take of memory, their bodies and their answers: a bound on it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ..returned_memory import give_back
from .errors import busy

MOST_HELD_BYTES = 128_000_000  # beside one request, which always has room
SMALL_BYTES = 100_000  # a request that takes less always has room, too: connections are bounded
QUIET_SECONDS = 1.0  # without a large request, after which the system gets back what they left
# Of a body as objects, for each of its marks: `[],` takes 64 bytes, an entry of a large object 200.
MARKS, MARK_BYTES = b",:[{", 64


class HeldBytes:
    """Those of one server.

    num_bytes   that there are
    most_bytes  that there may be
    """

    def __init__(self, most_bytes: int = MOST_HELD_BYTES) -> None:
        self.num_bytes = 0
        self.most_bytes = most_bytes
        self._quiet: asyncio.TimerHandle | None = None

    def rest(self, held: Held) -> None:
        """In the event loop, when a request has ended.

        After a large one what it left is given back, by a thread: that takes milliseconds, and
        not Python's lock. No timer runs otherwise.
        """
        if held.num_bytes >= SMALL_BYTES:
            self._await_quiet()

    def _await_quiet(self) -> None:
        if self._quiet is not None:
            self._quiet.cancel()
        loop = asyncio.get_running_loop()
        self._quiet = loop.call_later(QUIET_SECONDS, self._give_back)

    def _give_back(self) -> None:
        if self.num_bytes >= SMALL_BYTES:
            self._await_quiet()
        else:
            threading.Thread(target=give_back, daemon=True).start()

    @contextmanager
    def one(self) -> Iterator[Held]:
        """A request, until the block ends."""
        held = Held(self)
        try:
            yield held
        finally:
            self.num_bytes -= held.num_bytes

    def has_room(self, held: Held) -> bool:
        """Whether it fits beside the others."""
        own = held.num_bytes
        return own < SMALL_BYTES or self.num_bytes <= max(self.most_bytes, own)


class Held:
    """What one request takes; it grows to ``num_bytes``, in the event loop."""

    def __init__(self, everyone: HeldBytes) -> None:
        self.num_bytes = 0
        self._everyone = everyone

    def grow(self, count: int) -> None:
        """By what it takes more. Raises ApiError (503) where others leave it no room."""
        self.num_bytes += count
        self._everyone.num_bytes += count
        if not self._everyone.has_room(self):
            error = busy(
                f"the requests under way take {self._everyone.num_bytes:,} bytes with this one's "
                f"{self.num_bytes:,}, expected at most {self._everyone.most_bytes:,}; try again "
                "later, or ask for less",
                503,
            )
            error.headers["Connection"] = "close"  # the rest of its body is not read
            raise error


def bytes_parsed(data: bytes) -> int:
    """About what the JSON ``data`` takes as objects, beside its bytes."""
    return MARK_BYTES * sum(data.count(mark) for mark in MARKS)
