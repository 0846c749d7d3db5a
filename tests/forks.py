"""What a forked child runs into."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable


def in_a_fork(function: Callable[[], None], seconds: float) -> bytes:
    """What ``function`` raised in a forked child: the class and message, or b"" if it hung."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # no pytest, no exit handlers beyond this point
        try:
            function()
            os.write(writing, b"nothing raised")
        except BaseException as error:
            os.write(writing, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writing)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG)[0]:
            break
        time.sleep(0.01)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with open(reading, "rb") as stream:
        return stream.read()
