"""What a server says of itself on stderr: a line of JSON for each event, without what was asked.

No prompt, no answer, no key and no header is ever in it. JSON escapes control characters, so that
nothing a client sends drives a terminal.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from .errors import ApiError, as_api_error
from .lines import Lines

MOST_FRAMES = 8  # of a traceback, its last
MOST_PATH = 200  # characters


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
        file = _file_of(self._stream)
        self._lines = None if file is None else Lines(file, lambda n: self._line("lost", count=n))

    def event(self, event: str, **fields: Any) -> None:
        """A line; who does not read them keeps nobody waiting."""
        line = self._line(event, **fields)
        if self._lines is not None:
            self._lines.add(line)
        else:
            with contextlib.suppress(OSError, ValueError):  # nobody reads it: no reason to end
                print(line, file=self._stream)

    def close(self) -> None:
        """Waits for the last lines, for a moment."""
        if self._lines is not None:
            self._lines.close()

    def _line(self, event: str, **fields: Any) -> str:
        return json.dumps({"time": round(self._clock(), 3), "event": event, **fields})

    def request(self, request_id: str, status: int, **fields: Any) -> None:
        """A request was answered; 0 is the status of one whose client left before."""
        if status >= 400 or not self._quiet:
            self.event("request", id=request_id, status=status, **fields)

    def failed(self, request_id: str, error: BaseException) -> None:
        """A request failed by what is no fault of its sender: where, and of which kind."""
        note = None
        if isinstance(error, Exception):
            answer = as_api_error(error)
            if answer.status < 500:
                return
            note = answer.note
        cause = error.__cause__ if isinstance(error, ApiError) else None
        # Not its message: that may hold what was asked.
        found = cause or error
        more = {} if note is None else {"note": note}
        self.event("error", id=request_id, kind=type(found).__name__, at=places(found), **more)

    def from_loop(self, loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
        """What an event loop has to say, which by itself would print all that it knows."""
        error = context.get("exception")
        if isinstance(error, BaseException):
            self.event("error", id="", kind=type(error).__name__, at=places(error))
        else:
            self.event("error", id="", kind="loop", at=[])


def _file_of(stream: TextIO) -> int | None:
    """That of the system, if it is one."""
    try:
        return stream.fileno()
    except (OSError, ValueError):
        return None


def places(error: BaseException) -> list[str]:
    """Where ``error`` was raised and by way of what: "file.py:12", the innermost last."""
    frames = traceback.extract_tb(error.__traceback__)[-MOST_FRAMES:]
    return [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames]


def path_of(scope: Mapping[str, Any]) -> str:
    """The path of a request as it was sent, percent-encoded and without its query; cut."""
    raw: bytes = scope.get("raw_path") or b""
    return raw[:MOST_PATH].decode("ascii", "backslashreplace")


def quiet_others() -> None:
    """Keeps uvicorn and asyncio from printing: what they print may hold what was asked."""
    for name in ("uvicorn.error", "uvicorn.asgi", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
