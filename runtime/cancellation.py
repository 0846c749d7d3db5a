"""Stops a running generation from another thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .engine import onnxruntime

# Asked for by every run with a binding; not to find it takes ONNX Runtime 1.32 40 µs, an exception.
# -1 captures no graph of kernels (on a GPU), which is the default.
NO_CAPTURE = ("gpu_graph_id", "-1")


class Cancellation:
    """Give one to a generation, call ``cancel()`` from any thread: it ends at the next graph node.

        stopping = pocketlm.Cancellation()
        threading.Timer(0.1, stopping.cancel).start()
        result = model.generate("Once upon a time", cancellation=stopping)
        result.finish_reason                 # "cancelled", if it took longer than 0.1 seconds

    What was generated until then is returned. Once cancelled it stays so; use a new one for the
    next generation. A Ctrl-C that ends a generation cancels its ``Cancellation`` too, and so does
    the end of the process. A ``TextStream`` has one of its own: ``stream.cancel()``.
    """

    def __init__(self) -> None:
        self.run_options = onnxruntime.RunOptions()
        self.run_options.add_run_config_entry(*NO_CAPTURE)
        self._cancelled = False
        self._loading: onnxruntime.SessionOptions | None = None

    @property
    def cancelled(self) -> bool:
        """Whether ``cancel`` was called."""
        return self._cancelled

    def cancel(self) -> None:
        """Ends the generation; tokens already produced stay valid. May be called at any time."""
        self._cancelled = True
        self.interrupt()

    def interrupt(self) -> None:
        """Ends what is under way, and what begins before ``go_on``: no more than that."""
        self.run_options.terminate = True
        loading = self._loading
        if loading is not None:
            loading.set_load_cancellation_flag(True)

    def go_on(self) -> None:
        """What begins from now on runs, unless it was cancelled."""
        self.run_options.terminate = self._cancelled

    @contextmanager
    def loading(self, options: onnxruntime.SessionOptions) -> Iterator[None]:
        """What is opened meanwhile with ``options`` is ended, too."""
        self._loading = options
        try:
            if self._cancelled:  # before it was known what to end
                options.set_load_cancellation_flag(True)
            yield
        finally:
            self._loading = None


class Cancelled(Exception):
    """Raised by a step whose ``Cancellation`` was used, or that the end of the process cut short.

    A stream of text ends with the finish reason "cancelled" instead.
    """
