"""Stops a running generation from another thread."""

from __future__ import annotations

import onnxruntime


class Cancellation:
    """Give one to a generation, call ``cancel()`` from any thread: it ends at the next graph node.

    Once cancelled it stays so; use a new one for the next generation.
    """

    def __init__(self) -> None:
        self.run_options = onnxruntime.RunOptions()
        self._cancelled = False

    @property
    def cancelled(self) -> bool:
        """Whether ``cancel`` was called."""
        return self._cancelled

    def cancel(self) -> None:
        """Ends the generation; tokens already produced stay valid."""
        self._cancelled = True
        self.run_options.terminate = True


class Cancelled(Exception):
    """Raised inside the loop when its ``Cancellation`` was used; never leaves ``text.py``."""
