"""How late the window is at most, and how soon it is silent: python measure.py MODEL.

Runs the window on MODEL: opens it, writes, stops in the middle of a text and of a prompt, and
prints the figures. QT_QPA_PLATFORM=offscreen needs no screen.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Callable

import startup

PARAGRAPH = "The old house stood at the end of the lane, and nobody had lived in it for years. "


def main() -> int:
    """Prints a line for each figure."""
    parser = argparse.ArgumentParser(description="Heartbeat and stopping of the window.")
    parser.add_argument("model", nargs="?")
    parser.add_argument("--precision")
    parser.add_argument("--paragraphs", type=int, default=45, help="of the long prompt (19 tokens)")
    parser.add_argument("--after", type=float, default=0.05, help="seconds until Stop is pressed")
    parser.add_argument("--times", type=int, default=5)
    asked = parser.parse_args()
    startup.check_packages()
    startup.hear_qt()

    from heartbeat import Heartbeat
    from link import State
    from PySide6.QtCore import QEventLoop, QTimer
    from PySide6.QtWidgets import QApplication
    from window import Window

    def wait(until: Callable[[], bool]) -> None:
        """Lets the event loop run, asking at every beat."""
        loop, timer = QEventLoop(), QTimer(interval=1)
        timer.timeout.connect(lambda: loop.quit() if until() else None)
        timer.start()
        loop.exec()

    app = QApplication(sys.argv[:1])
    heartbeat = Heartbeat()
    window = Window(asked.model, asked.precision, heartbeat)
    window.show()
    app.processEvents()
    heartbeat.start()
    wait(lambda: window.link.state is not State.LOADING)
    if window.link.model is None:
        print(window.banner.text, file=sys.stderr)
        return 1
    window.prompt.setPlainText(PARAGRAPH)
    window.send()
    wait(lambda: window.link.state is State.READY)
    print(f"a text, at {window.figures.text()}")

    def silence(prompt: str, seconds: float, begun: bool) -> float:
        """Seconds from Stop to the end, pressed some time after the text began, or the prompt."""
        before = len(window.text_page.transcript.text)
        window.prompt.setPlainText(prompt)
        window.send()
        shown = len(window.text_page.transcript.text)
        assert shown > before
        if begun:
            wait(lambda: len(window.text_page.transcript.text) > shown)
        pressed = time.perf_counter() + seconds
        wait(lambda: time.perf_counter() > pressed)
        if not window.link.busy or (not begun and len(window.text_page.transcript.text) > shown):
            sys.exit(window.banner.text or "ended too soon to be stopped; take a longer prompt")
        pressed = time.perf_counter()
        window.stop_button.click()
        wait(lambda: window.link.state is State.READY)
        return time.perf_counter() - pressed

    for name, prompt, begun in (
        ("in a text", PARAGRAPH, True),
        ("in a prompt", PARAGRAPH * asked.paragraphs, False),
    ):
        took = [
            silence(f"{number}. {prompt}", asked.after * (1 + number % 3), begun)
            for number in range(asked.times)
        ]
        print(f"stopped {name}: silent after {1000 * max(took):.0f} ms at most")
    window.close()
    window.wait()
    print(heartbeat.summary())
    return 0


if __name__ == "__main__":
    multiprocessing.freeze_support()  # an engine is this program, too
    sys.exit(main())
