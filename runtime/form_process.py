"""Forms of output by strangers, tried in a process of their own before they are compiled here."""

from __future__ import annotations

import sys
from typing import Any

from ..export.errors import MissingExtraError, RequestError
from ..export.frozen import is_frozen
from .worker_process import TIME, WorkerProcess, interpreter

SECONDS = 2.0
NUM_BYTES = 1_000_000_000
# Finds this package wherever it was found here; and imports no script, which may lack a guard.
BOOT = (
    "import json, sys; path, limits = json.loads(sys.argv[1]); sys.path[:] = path; "
    "from pocketlm.runtime.form_worker import serve; serve(*limits)"
)


class FormProcess(WorkerProcess):
    """Tries forms, one at a time; may be shared between threads."""

    def __init__(self, seconds: float = SECONDS, num_bytes: int = NUM_BYTES) -> None:
        super().__init__(seconds, num_bytes)

    def command(self, limits: list[float]) -> list[str]:
        """As ``WorkerProcess``."""
        if not sys.executable or is_frozen():
            raise RequestError(
                "found no Python interpreter beside this application, expected one to try forms "
                "of output in; leave the form out"
            )
        return interpreter(BOOT, limits)

    def refuse(self, ready: dict[str, Any]) -> None:
        """As ``WorkerProcess``."""
        raise MissingExtraError(
            f"{sys.executable}: found no Python that imports llguidance ({ready}), expected the "
            "interpreter pocketlm runs in, to try forms of output; run pocketlm in it"
        )

    def try_out(self, kind: str, source: str) -> None:
        """Raises RequestError for a form that took too long, or the process with it."""
        reply = self.request({"source": source}, 1_000)
        if "failed" in reply:
            late = reply["failed"] == TIME
            found = f"takes longer than {self.seconds:g} s to compile" if late else "is too much"
            raise RequestError(
                f"{kind} {found} for llguidance, expected a smaller one; simplify it"
            )
