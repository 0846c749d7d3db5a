"""A process of our own for what may take for ever, all memory, or the process with it.

It is started by the first request, waits for the next one, and ends with the object or with us. A
request is a line of JSON to its stdin, a reply one from its stdout; one that does not answer in
time is killed, and the next request starts another.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import subprocess

START_SECONDS = 30.0  # until Python and what it imports are there: a cold disk, a virus scanner
TIME, DIED, MEMORY = "time", "died", "memory"  # kinds of failure; of two the worker cannot tell


class WorkerProcess:
    """Starts a worker when first asked, and anew after it had to be stopped.

    May be shared between threads: their requests take turns.
    """

    def __init__(self, seconds: float, num_bytes: int) -> None:
        """``seconds`` and ``num_bytes`` are the limits of one request."""
        self.seconds = seconds
        self.num_bytes = num_bytes
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()  # a fork must not read the replies to us
        self._stop: Callable[[], object] = lambda: None  # ends the child

    def command(self, limits: list[float]) -> list[str]:
        """What starts the worker, which keeps to ``limits`` by itself, too."""
        raise NotImplementedError

    def check(self) -> None:
        """Raises an error where what the worker imports is missing."""

    def refuse(self, ready: dict[str, Any]) -> None:
        """Raises an error for a worker that cannot begin and says ``ready``."""
        raise NotImplementedError

    def request(self, request: dict[str, Any], longest: int) -> dict[str, Any]:
        """The reply, of at most ``longest`` bytes; {"failed": TIME or DIED, ...} without one."""
        line = json.dumps(request).encode() + b"\n"
        with self._lock:
            child = self._running()
            return self._exchange(child, line, longest, self.seconds)

    def _running(self) -> subprocess.Popen[bytes]:
        """The worker, started if there is none that waits."""
        if self._child is not None and self._owner == os.getpid() and self._child.poll() is None:
            return self._child
        self._stop()
        self.check()
        self._child = child = _start(self.command([self.seconds + 1, self.num_bytes]))
        self._owner = os.getpid()
        self._stop = weakref.finalize(self, _end, child, self._owner)
        ready = self._exchange(child, b"", 10_000, START_SECONDS)
        if ready:
            self.refuse(ready)
        return child

    def _exchange(
        self, child: subprocess.Popen[bytes], line: bytes, longest: int, seconds: float
    ) -> dict[str, Any]:
        """Sends ``line`` and reads a line; a child that does not answer in time is stopped."""
        late = threading.Event()

        def end() -> None:
            late.set()
            child.kill()

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
        assert child.stdin is not None and child.stdout is not None
        reply = b""
        try:
            with contextlib.suppress(OSError):  # it has ended
                child.stdin.write(line)
                child.stdin.flush()
                reply = child.stdout.readline(longest)
        finally:
            timer.cancel()
            timer.join()
            # Interrupted, or cut short: what it says next would be taken for another reply.
            if late.is_set() or not reply.endswith(b"\n"):
                self._stop()
        if late.is_set() or not reply.endswith(b"\n"):
            return {"failed": TIME if late.is_set() else DIED, "detail": ""}
        value: dict[str, Any] = json.loads(reply)
        if value.get("failed") == MEMORY:
            self._stop()  # what it could not free would be missing to the next request
        return value


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    import subprocess  # not above: most generations need no process

    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for us
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),  # Windows
    )


def _end(child: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() != owner:  # a fork's copy
        return
    child.kill()
    child.wait()
    for stream in (child.stdin, child.stdout):
        assert stream is not None
        with contextlib.suppress(OSError):  # a request that was never sent
            stream.close()


def interpreter(boot: str, limits: list[float]) -> list[str]:
    """Python with the code ``boot``, to which the paths of this one and ``limits`` are given."""
    paths = [str(path) for path in sys.path]
    return [sys.executable, "-c", boot, json.dumps([paths, limits])]
