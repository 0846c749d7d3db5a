"""A running adapter, seen from our side: requests in, answers or a reason out, never a hang."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...export.quantities import duration_text
from .environments import PeerError, how_it_ended

ANSWER_SECONDS = 900


class PeerProcess:
    """One adapter that serves one model. ``close`` leaves no process behind."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        env: Mapping[str, str],
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        """Starts it and waits until the model is open; stderr goes to ``log``.

        It is in a process group of its own: a terminal's Ctrl-C is ours to hear.
        """
        self._log, self._seconds, self._pending = log, answer_seconds, b""
        started = time.perf_counter()
        with open(log, "wb") as stream:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                env=env,
                bufsize=0,
                process_group=None if sys.platform == "win32" else 0,
            )
        try:
            self.opened = self._answer("opening the model")
        except BaseException:
            self.close()
            raise
        self.load_seconds = time.perf_counter() - started

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Sends a request and waits for the answer; PeerError says why there will be none."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        except BrokenPipeError:
            pass  # it is gone: there is no answer to read either
        return self._answer(do)

    def _answer(self, what: str) -> dict[str, Any]:
        line = self._read_line(what)
        if not line:
            code = self._process.wait()
            raise PeerError(f"crashed at {what}: {how_it_ended(code, self._log)}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerError(f"failed at {what}: {answer['error']:.200}")
        return answer

    def _read_line(self, what: str) -> bytes:
        """The next line, b"" at the end."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + self._seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._pending:
                if not selector.select(max(0, deadline - time.monotonic())):
                    raise PeerError(f"no answer after {duration_text(self._seconds, 2)} at {what}")
                if not (read := os.read(self._process.stdout.fileno(), 1 << 16)):
                    return b""
                self._pending += read
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def close(self) -> None:
        """Ends it, whatever it is at."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._process.wait()
