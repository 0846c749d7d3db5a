"""The near side of a ``worker``: a process with one model in it, asked over its pipes."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ...export.errors import ModelFolderError, PocketLMError, ResourceError
from ...export.memory import EXHAUSTED
from ..session_variant import PLAIN, Variant

# The last line of a traceback; what runs out before the worker can answer ends it so.
OUT_OF_MEMORY = re.compile(rf"MemoryError|ResourceError|{EXHAUSTED.pattern}")


class WorkerDied(PocketLMError):
    """A worker's process ended while an answer was awaited."""


class WorkerStarved(WorkerDied, ResourceError):
    """A worker found no memory, or was killed, which is how the system takes it back."""


class Remote:
    """A worker and its model. Closing it, also by ``with``, leaves no process behind."""

    def __init__(self, name: str, folder: Path, threads: int, variant: Variant = PLAIN) -> None:
        """Starts the process and waits until the folder is open; ``name`` is for errors.

        The process is in a group of its own, where a terminal's Ctrl-C does not reach it; when
        ours dies, its pipe is closed, and it ends after the answer it is at. Raises
        ModelFolderError for what the worker says of the folder, WorkerDied, WorkerStarved.
        """
        self.name, self._folder = name, folder
        self.started = time.perf_counter()
        self._errors = tempfile.TemporaryFile()
        worker = [sys.executable, "-P", "-m", f"{__package__}.worker"]
        command = [*worker, str(folder), str(threads), variant.kv, variant.prefill]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            process_group=None if sys.platform == "win32" else 0,
        )
        try:
            self.load_seconds = float(self._answer("opening it")["load_seconds"])
        except BaseException:
            self.kill()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.kill()  # it may be in the middle of an answer

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Sends a request and waits for its answer; ``WorkerDied`` if there will be none.

        ``WorkerStarved``, one of its kind, where that is for want of memory.
        """
        assert self._process.stdin is not None
        try:
            print(json.dumps({"do": do, **arguments}), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            pass  # it is gone: there is no answer to read either
        return self._answer(do)

    def _answer(self, what: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith("\n"):
            raise self._death(what)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            if answer["exit_code"] == ResourceError.exit_code:
                # Nothing is wrong with the folder, whose name is most often the model's.
                error = answer["error"].removeprefix(f"{self._folder}: ")
                raise WorkerStarved(f"{self.name}: {error}")
            raise ModelFolderError(f"{self.name}: {answer['error']}")
        return answer

    def _death(self, what: str) -> WorkerDied:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        how = f"ended with exit code {code}"
        if code < 0:
            how = f"killed by signal {-code} ({signal.strsignal(-code)})"
            last = last or "the system does that when memory runs out"
        starved = code == -signal.SIGKILL or OUT_OF_MEMORY.search(last) is not None
        return (WorkerStarved if starved else WorkerDied)(
            f"{self.name}: found its process {how} at {what} ({last:.200}), expected an answer; "
            "measure it alone, or a smaller one"
        )

    def close(self) -> None:
        """Lets the process end, and waits for it."""
        self._process.communicate()  # closes both pipes
        self._errors.close()

    def kill(self) -> None:
        """Ends the process now, whatever it is at."""
        self._process.kill()
        try:
            self.close()
        except BrokenPipeError:
            self._process.wait()
