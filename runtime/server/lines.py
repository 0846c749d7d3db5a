"""Lines for a file that nobody may read: a pipe that is full has whoever writes to it wait."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable

MOST_WAITING = 1000
LAST_SECONDS = 0.2  # that the last lines have


class Lines:
    """Writes lines to a ``file`` of the system, in their order, by a thread of its own.

    What comes while too many wait is lost; ``lost`` makes the line that says how many were.
    """

    def __init__(self, file: int, lost: Callable[[int], str]) -> None:
        self._file = file
        self._lost = lost
        self._num_lost = 0
        self._lines: queue.Queue[str | None] = queue.Queue(MOST_WAITING)
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def add(self, line: str) -> None:
        """From any thread; at once."""
        with self._lock:
            try:
                self._lines.put_nowait(line)
            except queue.Full:
                self._num_lost += 1
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._write, daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Ends the thread once all is written, or a little later."""
        thread = self._thread
        until = time.monotonic() + LAST_SECONDS
        while thread is not None and thread.is_alive() and time.monotonic() < until:
            try:
                self._lines.put(None, timeout=LAST_SECONDS)
            except queue.Full:
                return
            thread.join(until - time.monotonic())

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            self._put(line)
            with self._lock:
                count, self._num_lost = self._num_lost, 0
            if count:
                self._put(self._lost(count))

    def _put(self, line: str) -> None:
        # Not by sys.stderr, whose lock Python wants when it ends.
        data = f"{line}\n".encode()
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError:  # nobody reads it any more: no reason to end
            pass
