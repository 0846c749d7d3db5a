"""A graph that is open only as long as it is used."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from .bound_graph import BoundGraph
from .cancellation import Cancellation
from .returned_memory import give_back

IDLE_SECONDS = 60.0


class Standby:
    """Opens a graph when it is asked for, and closes it once nobody has for a while.

    One thread at a time may use it. Neither a thread nor a timer watches it: whoever computes
    something else says so by ``rest``.
    """

    def __init__(self, open_graph: Callable[[Cancellation], BoundGraph]) -> None:
        self._open = open_graph
        self._graph: BoundGraph | None = None
        self._used = 0.0
        self._seconds = 0.0  # of graphs that are closed

    @property
    def seconds(self) -> float:
        """Spent inside ONNX Runtime, by all runs so far."""
        return self._seconds + (0.0 if self._graph is None else self._graph.seconds)

    @property
    def is_open(self) -> bool:
        """Whether it takes memory."""
        return self._graph is not None

    def graph(self, stopping: Cancellation) -> BoundGraph:
        """It, open; raises what opening it raises, Cancelled where ``stopping`` ends that."""
        if self._graph is None:
            self._graph = self._open(stopping)
        self._used = monotonic()
        return self._graph

    def rest(self) -> None:
        """Closes it if it has not been used for ``IDLE_SECONDS``."""
        if self._graph is not None and monotonic() - self._used > IDLE_SECONDS:
            self._seconds, self._graph = self.seconds, None
            give_back()
