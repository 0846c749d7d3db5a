"""What must be there before a window can be, and a sentence where it is not."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn

log = logging.getLogger("desktop.qt")
PACKAGES = {"PySide6": "PySide6-Essentials", "pocketlm": "pocketlm"}


def fail(sentence: str) -> NoReturn:
    """Ends the program."""
    sys.exit(f"desktop: {sentence}")


def unsound(pyside: str, python: tuple[int, int]) -> bool:
    """Whether these two crash together.

    PySide6 6.12.0 drops references to None and True that are not its own; from Python 3.12 on
    these are immortal.
    """
    return pyside.startswith("6.12.") and python < (3, 12)


def check_packages() -> None:
    """Ends the program where a package is missing, or cannot work."""
    for module, package in PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            fail(
                f"found no {module}, expected it for the window; install it: pip install {package}"
            )
    from PySide6 import __version__

    if unsound(__version__, sys.version_info[:2]):
        fail(
            f"found PySide6 {__version__}, expected one below 6.12 for Python before 3.12, which "
            'it makes abort; install one: pip install "PySide6-Essentials<6.12"'
        )


def hear_qt() -> None:
    """Says in one sentence that Qt finds no screen, where it would abort with a core dump.

    To be called before there is a QApplication. What else Qt has to say goes to the log.
    """
    from PySide6.QtCore import QMessageLogContext, QtMsgType, qInstallMessageHandler

    said: list[str] = []

    def hear(kind: QtMsgType, context: QMessageLogContext, message: str) -> None:
        if kind is not QtMsgType.QtFatalMsg:
            said.append(message)
            log.info("%s", message)
            return
        reason = next((text.strip() for text in said if "display" in text), message.splitlines()[0])
        print(
            f"desktop: found no screen to show a window on ({reason}), expected one in DISPLAY or "
            "WAYLAND_DISPLAY; start it from a desktop, or try: xvfb-run python app.py",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # returning from here aborts

    qInstallMessageHandler(hear)


def hear_python(tell: Callable[[str], object]) -> None:
    """What fails unforeseen, in any thread, is told as a sentence, too."""

    def hear(kind: type[BaseException], error: BaseException | None) -> None:
        tell(f"{kind.__name__}: {error} (a fault of this program)")

    def in_main(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        sys.__excepthook__(kind, error, trace)
        hear(kind, error)

    def in_thread(failed: threading.ExceptHookArgs) -> None:
        threading.__excepthook__(failed)
        hear(failed.exc_type, failed.exc_value)

    sys.excepthook = in_main
    threading.excepthook = in_thread
