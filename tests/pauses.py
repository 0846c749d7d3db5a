"""How long a server keeps everybody waiting while it answers one request."""

from __future__ import annotations

import socket
import sys
import threading
import time
from http.client import HTTPConnection
from pathlib import Path

BETWEEN_SECONDS = 1e-3  # two looks
MOST_SECONDS = 60.0


def longest_pause(port: int, sent: bytes, pid: int) -> tuple[float, bytes]:
    """(seconds that /health was not answered while a request was, the first bytes of its answer).

    ``sent`` is the request, to ``port`` of 127.0.0.1, after whose answer the connection ends.
    ``pid`` is the server's process, which is not to blame where it waits for a processor.
    """
    head = bytearray()

    def ask() -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=MOST_SECONDS) as asking:
            asking.sendall(sent)
            while data := asking.recv(1 << 20):
                head.extend(data[: 1000 - len(head)])

    asking = threading.Thread(target=ask)
    longest = 0.0
    looking = HTTPConnection("127.0.0.1", port, timeout=MOST_SECONDS)
    try:
        _look(looking)  # the first connects
        asking.start()
        while asking.is_alive():
            started, before = time.perf_counter(), _clocks(pid)
            _look(looking)
            took, after = time.perf_counter() - started, _clocks(pid)
            cpu, queued = after[0] - before[0], after[1] - before[1]
            longest = max(longest, min(took - queued, cpu))
            time.sleep(BETWEEN_SECONDS)
    finally:
        if asking.ident is not None:
            asking.join()
        looking.close()
    return longest, bytes(head)


def _look(connection: HTTPConnection) -> None:
    connection.request("GET", "/health")
    connection.getresponse().read()


def _clocks(pid: int) -> tuple[float, float]:
    """(seconds that the process has computed, those that its first thread had no processor).

    In its first thread its loop runs. On Linux; (the clock on the wall, 0) elsewhere.
    """
    if sys.platform != "linux":
        return time.perf_counter(), 0.0
    cpu = time.clock_gettime(~pid << 3 | 2)  # as clock_getcpuclockid(3) has it
    queued = Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[1]
    return cpu, int(queued) / 1e9
