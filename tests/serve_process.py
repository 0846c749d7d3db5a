"""``pocketlm serve`` as a process of its own, of a model that takes its time if it is told to.

As a program: runs the verb with what its only argument, a JSON object, says beside the command
line: "settings" of the server, and "steps", "opening_seconds" and "preparing_seconds" of its model.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
START_SECONDS = 60.0


@dataclass
class Process:
    """A server that listens at ``port`` of 127.0.0.1; ``lines`` are those of its log so far."""

    process: subprocess.Popen[bytes]
    port: int
    lines: list[str]

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Tells it to end."""
        self.process.send_signal(number)

    def ended(self, seconds: float = 30.0) -> int:
        """Its exit code; reads the rest of its log."""
        rest = self.process.communicate(timeout=seconds)[1].decode()
        self.lines += rest.splitlines()
        return self.process.returncode

    @property
    def rss_bytes(self) -> int:
        """What it takes of memory."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    @property
    def num_files(self) -> int:
        """Descriptors that it has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    @property
    def num_threads(self) -> int:
        """Of the system."""
        return len(os.listdir(f"/proc/{self.process.pid}/task"))


def start(model: Path | str, port: int = 0, **told: Any) -> subprocess.Popen[bytes]:
    """Starts one; ``told`` is what the program takes."""
    command = [sys.executable, str(HERE / "serve_process.py"), json.dumps(told)]
    arguments = ["serve", str(model), "--port", str(port), "--threads", "1"]
    return subprocess.Popen([*command, *arguments], stderr=subprocess.PIPE)


@contextmanager
def serve_process(model: Path | str, **told: Any) -> Iterator[Process]:
    """One that listens; what is still there at the end is killed."""
    process = start(model, **told)
    try:
        assert process.stderr is not None
        found = Process(process, 0, [])
        deadline = time.monotonic() + START_SECONDS
        while not found.port:
            assert select.select([process.stderr], [], [], deadline - time.monotonic())[0]
            # Unbuffered, so that what comes later is there for ``communicate``.
            line = _line(process.stderr.fileno())
            assert line, f"the server has not begun: {found.lines}"
            found.lines.append(line)
            if '"listening"' in line:
                found.port = int(json.loads(line)["url"].rpartition(":")[2])
        yield found
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def _line(file: int) -> str:
    data = b""
    while not data.endswith(b"\n") and (more := os.read(file, 1)):
        data += more
    return data.decode()


def is_free(port: int) -> bool:
    """Whether nobody listens there."""
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) != 0


def main() -> None:
    """Runs the verb."""
    sys.path.insert(0, str(HERE))
    told = json.loads(sys.argv[1])
    _tell(**told)
    from pocketlm.cli import main

    main(sys.argv[2:])


def _tell(
    settings: dict[str, Any] | None = None,
    steps: dict[str, Any] | None = None,
    opening_seconds: float = 0.0,
    preparing_seconds: float = 0.0,
) -> None:
    from slow_model import Steps, slowed

    import pocketlm.runtime.server.settings as module
    from pocketlm.runtime.model import Model

    real, opened, request = module.Settings, Model.__init__, Model.request
    chosen = settings or {}

    def Settings(**given: Any) -> Any:
        return real(**(given | chosen))

    def open_slowly(self: Model, *arguments: Any, **options: Any) -> None:
        time.sleep(opening_seconds)
        opened(self, *arguments, **options)
        slowed(self, Steps(**(steps or {})))

    def prepare(self: Model, *arguments: Any, **options: Any) -> Any:
        time.sleep(preparing_seconds)
        return request(self, *arguments, **options)

    module.Settings = Settings  # type: ignore[assignment, misc]
    Model.__init__ = open_slowly  # type: ignore[method-assign]
    Model.request = prepare  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
