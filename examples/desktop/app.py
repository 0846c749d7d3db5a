"""A desktop application around pocketlm: python app.py [MODEL] (needs PySide6-Essentials).

Freeze it with: pyinstaller app.py
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import signal
import sys

import startup


def main(arguments: list[str] | None = None) -> int:
    """Shows the window until it is closed; the exit code."""
    asked = parser().parse_args(arguments)
    startup.check_packages()
    startup.hear_qt()
    if asked.log is not None:
        start_log(asked.log)

    from heartbeat import Heartbeat
    from look import follow_desktop
    from PySide6.QtWidgets import QApplication
    from window import Window

    app = QApplication(sys.argv[:1])
    app.setApplicationName("pocketlm")
    follow_desktop(app, asked.theme)
    heartbeat = Heartbeat()
    window = Window(asked.model, asked.precision, heartbeat)
    startup.hear_python(window.fault.emit)
    window.show()
    app.processEvents()  # it is drawn for the first time; from now on it has to hear
    heartbeat.start()
    # Python hears it at the next heartbeat.
    signal.signal(signal.SIGINT, lambda *_: window.close())
    code = app.exec()
    window.wait()
    logging.getLogger("desktop").info("heartbeat: %s", heartbeat.summary())
    return code


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = argparse.ArgumentParser(prog="desktop", description="A window around pocketlm.")
    found.add_argument("model", nargs="?", help="a model folder, a checkpoint, a name on the hub")
    found.add_argument("--precision", help="of a checkpoint: fp32, int8, int8-weight or int4")
    found.add_argument("--theme", choices=("auto", "light", "dark"), default="auto")
    found.add_argument("--log", metavar="FILE", help="write what happens there, heartbeats too")
    return found


def start_log(file: str) -> None:
    """The program's own log goes to that file; ends the program where it cannot be written."""
    log = logging.getLogger("desktop")
    log.setLevel(logging.INFO)
    try:
        handler = logging.FileHandler(file, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(message)s"))
        log.addHandler(handler)
    except OSError as error:
        startup.fail(f"{file}: cannot write the log ({error.strerror}); name another file")


if __name__ == "__main__":
    multiprocessing.freeze_support()  # an engine is this program, too
    sys.exit(main())
