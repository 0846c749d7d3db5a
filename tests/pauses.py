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
    ``pid`` is the server's process: where it had no processor, it is not to blame.
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
            before, started = _worked(pid), time.perf_counter()
            _look(looking)
            longest = max(longest, min(time.perf_counter() - started, _worked(pid) - before))
            time.sleep(BETWEEN_SECONDS)
    finally:
        if asking.ident is not None:
            asking.join()
        looking.close()
    return longest, bytes(head)


def _look(connection: HTTPConnection) -> None:
    connection.request("GET", "/health")
    connection.getresponse().read()


def _worked(pid: int) -> float:
    """Seconds that the process has computed so far, less those that its loop waited for others to.

    Its loop runs in its first thread. On Linux; the clock on the wall elsewhere.
    """
    if sys.platform != "linux":
        return time.perf_counter()
    cpu = time.clock_gettime(~pid << 3 | 2)  # as clock_getcpuclockid(3) has it
    queued = Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[1]
    return cpu - int(queued) / 1e9
