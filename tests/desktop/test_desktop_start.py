"""How the example starts and ends: without a screen, without packages, when something is amiss."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import startup
from app import main
from heartbeat import Heartbeat
from PySide6.QtWidgets import QApplication
from source_tree import ROOT

pytestmark = pytest.mark.desktop
APP = ROOT / "examples" / "desktop" / "app.py"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is always a screen")
def test_without_a_screen_it_ends_with_a_sentence() -> None:
    environment = {name: text for name, text in os.environ.items() if "DISPLAY" not in name}
    environment |= {"QT_QPA_PLATFORM": "xcb", "LC_ALL": "C"}  # of which Qt complains first
    ended = subprocess.run(
        [sys.executable, APP], env=environment, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 1
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("desktop: found no screen to show a window on (could not connect to")
    assert "start it from a desktop" in line


@pytest.mark.parametrize("missing, package", startup.PACKAGES.items())
def test_a_missing_package_is_named(
    missing: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == missing else object()
    )
    with pytest.raises(SystemExit, match=f"found no {missing}.*pip install {package}"):
        main([])


def test_a_pyside_that_makes_python_abort_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert startup.unsound("6.12.0", (3, 11))
    assert not startup.unsound("6.12.0", (3, 12))
    assert not startup.unsound("6.11.3", (3, 11))
    monkeypatch.setattr(startup, "unsound", lambda pyside, python: True)
    with pytest.raises(SystemExit, match="PySide6-Essentials<6.12"):
        main([])


def test_a_log_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup, "hear_qt", lambda: None)
    with pytest.raises(SystemExit, match="cannot write the log"):
        main(["--log", str(tmp_path / "no" / "log")])


def test_unforeseen_faults_are_told_from_any_thread(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # put back afterwards
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    told: list[str] = []
    startup.hear_python(told.append)
    error = ValueError("odd")
    sys.excepthook(ValueError, error, None)
    thread = threading.Thread(target=lambda: 1 // 0)
    thread.start()
    thread.join()
    assert told == [
        "ValueError: odd (a fault of this program)",
        "ZeroDivisionError: integer division or modulo by zero (a fault of this program)",
    ]
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_the_heartbeat_hears_what_keeps_the_window_waiting(
    app: QApplication, caplog: pytest.LogCaptureFixture
) -> None:
    heartbeat = Heartbeat()
    heartbeat.start()
    heartbeat.phase("sleeping")
    time.sleep(0.1)
    heartbeat.phase("after")
    assert heartbeat.latest["sleeping"] > 0.08
    assert heartbeat.busiest["sleeping"] < 0.08
    assert "late while sleeping" in caplog.text
    assert "sleeping" in heartbeat.summary()
