"""What a server says of itself on stderr: a line of JSON for each event, without what was asked.

No prompt, no answer, no key and no header is ever in it. JSON escapes control characters, so that
nothing a client sends drives a terminal.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, TextIO

from .errors import told


class Log:
    """Writes lines to ``stream``; ``quiet`` leaves out those of requests that went well."""

    def __init__(
        self,
        stream: TextIO | None = None,
        quiet: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._clock = clock

    def event(self, event: str, **fields: Any) -> None:
        """A line."""
        seconds = round(self._clock(), 3)
        try:
            print(json.dumps({"time": seconds, "event": event, **fields}), file=self._stream)
            self._stream.flush()
        except (OSError, ValueError):  # nobody reads it: no reason to end
            pass

    def request(self, request_id: str, status: int, **fields: Any) -> None:
        """A request was answered."""
        if status >= 400 or not self._quiet:
            self.event("request", id=request_id, status=status, **fields)

    def failed(self, request_id: str, error: BaseException) -> None:
        """A request failed by what is no fault of its sender: where, and of which kind."""
        if isinstance(error, Exception) and told(error).status < 500:
            return
        # Not its message: that may hold what was asked.
        where = traceback.extract_tb(error.__traceback__)[-1:]
        place = [f"{frame.filename}:{frame.lineno}" for frame in where]
        self.event("error", id=request_id, kind=type(error).__name__, at=place)
