"""Whether the window hears: a timer that is late was kept waiting, and so was the mouse.

How late it was at most is kept for each phase (loading, generating, …), and logged.
"""

from __future__ import annotations

import logging
import time

from PySide6.QtCore import QObject, Qt, QTimer

INTERVAL_MS = 10
LATE_SECONDS = 0.05

log = logging.getLogger("desktop.heartbeat")


class Heartbeat(QObject):
    """Beats while the event loop runs; ``latest`` has the most seconds it was late, by phase."""

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.latest: dict[str, float] = {}
        self.beats = 0
        self._phase = "starting"
        self._timer = QTimer(self)
        self._timer.setTimerType(Qt.TimerType.PreciseTimer)
        self._timer.timeout.connect(self._beat)

    def start(self) -> None:
        """Begins to count."""
        self._last = time.perf_counter()
        self._timer.start(INTERVAL_MS)

    def phase(self, name: str) -> None:
        """What follows is another phase."""
        if self._timer.isActive():
            self._beat()  # what was late until now belongs to the one before
        self._phase = name

    def summary(self) -> str:
        """How late it was, in a line."""
        late = ", ".join(f"{name} {1000 * most:.0f} ms" for name, most in self.latest.items())
        return f"{self.beats} beats; late at most: {late or 'never'}"

    def _beat(self) -> None:
        now = time.perf_counter()
        late = max(0.0, now - self._last - INTERVAL_MS / 1000)
        self._last = now
        self.beats += 1
        self.latest[self._phase] = max(late, self.latest.get(self._phase, 0.0))
        if late > LATE_SECONDS:
            log.warning("%.0f ms late while %s", 1000 * late, self._phase)
