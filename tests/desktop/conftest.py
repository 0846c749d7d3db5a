"""Windows of ``examples/desktop``: offscreen where there is no display."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from PySide6.QtWidgets import QApplication
    from window import Window

    Open = Callable[..., Window]
Wait = Callable[[Callable[[], bool]], None]

WITH_QT = [
    *("test_desktop_controls.py", "test_desktop_window.py"),
    *("test_transcript.py", "test_desktop_start.py"),
]
collect_ignore = [] if importlib.util.find_spec("PySide6") else WITH_QT

MOST_TURNS = 20_000


@pytest.fixture(scope="session")
def app() -> Iterator[QApplication]:
    """The application: one in a process."""
    if not os.environ.get("DISPLAY"):
        os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    from look import follow_desktop
    from PySide6.QtWidgets import QApplication

    found = QApplication([])
    follow_desktop(found, "light")
    yield found


@pytest.fixture
def wait(app: QApplication) -> Wait:
    """Lets the event loop run until something is so."""

    def until(is_so: Callable[[], bool]) -> None:
        for _ in range(MOST_TURNS):  # not by the clock: a test may be held up
            if is_so():
                return
            app.processEvents()
            time.sleep(0.005)
        raise AssertionError("it never came")

    return until


@pytest.fixture
def open_window(app: QApplication, wait: Wait) -> Iterator[Open]:
    """Shows a window with a model that is open; it is closed after the test."""
    from heartbeat import Heartbeat
    from link import State
    from PySide6.QtCore import QEvent
    from window import Window

    windows: list[Window] = []

    def show(model: object = None, precision: str | None = None) -> Window:
        heartbeat = Heartbeat()
        window = Window(None if model is None else str(model), precision, heartbeat)
        windows.append(window)
        window.show()
        heartbeat.start()
        wait(lambda: window.link.state is not State.LOADING)
        return window

    yield show
    for window in windows:
        window.close()
        window.wait()
        window.heartbeat.deleteLater()
        window.deleteLater()
    app.sendPostedEvents(None, QEvent.Type.DeferredDelete.value)
