"""Products of NumPy on one thread each, while threads of our own take all cores.

Several threads that each start a product on all cores wait for one another most of the time: error
feedback rounds many small ones, and took ten times as long.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits


class _Limit:
    """The process has one count of threads for all; who opens first limits it, who closes last
    gives it back. Two that each remembered what they found would leave it at one for good."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._limits: threadpool_limits | None = None

    def enter(self) -> None:
        with self._lock:
            if self._users == 0:
                self._limits = threadpool_limits(1, user_api="blas")
            self._users += 1

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0 and self._limits is not None:
                self._limits.restore_original_limits()
                self._limits = None


_limit = _Limit()


@contextmanager
def single_threaded_products() -> Iterator[None]:
    """While a context is open, in any thread, a product takes one thread, in the whole process."""
    _limit.enter()
    try:
        yield
    finally:
        _limit.leave()
