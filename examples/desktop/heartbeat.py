"""Whether the window hears: a timer that is late was kept waiting, and so was the mouse.

How late it was at most is kept for each phase (loading, generating, …), and logged; also how long
this thread computed between two beats, which tells its own work from that of a busy machine.
"""

from __future__ import annotations

import logging
import time

from PySide6.QtCore import QObject, Qt, QTimer

INTERVAL_MS = 10
LATE_SECONDS = 0.05

log = logging.getLogger("desktop.heartbeat")


class Heartbeat(QObject):
    """Beats while the event loop runs; the most seconds, by phase, are kept.

    latest      that a beat was late
    busiest     of processor time that this thread took between two beats
    """

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.latest: dict[str, float] = {}
        self.busiest: dict[str, float] = {}
        self.beats = 0
        self._phase = "starting"
        self._timer = QTimer(self)
        self._timer.setTimerType(Qt.TimerType.PreciseTimer)
        self._timer.timeout.connect(self._beat)

    def start(self) -> None:
        """Begins to count."""
        self._last, self._worked = time.perf_counter(), time.thread_time()
        self._timer.start(INTERVAL_MS)

    def phase(self, name: str) -> None:
        """What follows is another phase."""
        if self._timer.isActive():
            self._beat()  # what was late until now belongs to the one before
        self._phase = name

    def summary(self) -> str:
        """How late it was, in a line."""
        late, busy = (
            ", ".join(f"{name} {1000 * seconds:.0f} ms" for name, seconds in most.items())
            for most in (self.latest, self.busiest)
        )
        return f"{self.beats} beats; late at most: {late}; at work at most: {busy}"

    def _beat(self) -> None:
        now, worked = time.perf_counter(), time.thread_time()
        late, busy = max(0.0, now - self._last - INTERVAL_MS / 1000), worked - self._worked
        self._last, self._worked = now, worked
        self.beats += 1
        for most, seconds in ((self.latest, late), (self.busiest, busy)):
            most[self._phase] = max(seconds, most.get(self._phase, 0.0))
        if late > LATE_SECONDS:
            log.warning(
                "%.0f ms late while %s, after %.0f ms of work", 1e3 * late, self._phase, 1e3 * busy
            )
