"""The example's window with real engines: typed into, clicked, stopped, broken, closed."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from link import State
from look import DARK, LIGHT, wear
from messages import PRECISIONS
from PySide6.QtCore import QPoint, Qt
from PySide6.QtGui import QColor, QTextCursor
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication
from window import Window

from pocketlm.export.folder import ModelFolder

pytestmark = pytest.mark.desktop

Open = Callable[..., Window]
Wait = Callable[[Callable[[], bool]], None]
LEFT = Qt.MouseButton.LeftButton
GREEDY = 0.0


def write(window: Window, words: str, tokens: str = "20", temperature: float = GREEDY) -> None:
    """Types a prompt and sends it."""
    window.controls.temperature.choose(temperature)
    window.controls.tokens.setCurrentText(tokens)
    QTest.keyClicks(window.prompt, words)
    QTest.keyClick(window.prompt, Qt.Key.Key_Return)


def is_ready(window: Window) -> Callable[[], bool]:
    return lambda: window.state is State.READY


def pid_of(window: Window) -> int:
    pid = window.link.process_id()
    assert pid is not None
    return pid


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def choose(window: Window, precision: str) -> None:
    """As with the mouse."""
    switch = window.controls.precision
    switch.setCurrentText(precision)
    switch.activated.emit(switch.currentIndex())


def test_what_is_typed_is_continued_and_its_words_have_alternatives(
    open_window: Open, wait: Wait
) -> None:
    window = open_window()
    assert window.controls.precision.currentText() == "int8"
    write(window, "It was a dark")
    assert window.prompt.toPlainText() == "" and window.stop_button.isVisible()
    wait(is_ready(window))
    transcript = window.text_page.transcript
    text = transcript.text
    assert text.startswith("It was a dark") and len(text.split()) > 10
    assert "20 new" in window.status.text()
    assert "tokens/s" in window.figures.text() and "MB" in window.figures.text()
    cursor = QTextCursor(transcript.document())
    cursor.setPosition(len("It was a dark"))
    point = transcript.cursorRect(cursor).center() + QPoint(2, 0)
    QTest.mouseClick(transcript.viewport(), LEFT, pos=point)
    rows = window.text_page.alternatives.bars.rows
    assert window.text_page.alternatives.isVisible()
    assert rows[0][1] > 0 and len(rows) == 8
    assert rows == sorted(rows, key=lambda row: -row[1])
    assert text.startswith("It was a dark" + rows[0][0])  # greedy: the likeliest was taken
    window.send_button.click()  # with an empty prompt it goes on
    wait(is_ready(window))
    assert transcript.text.startswith(text) and len(transcript.text) > len(text)


def test_a_text_stops_in_the_middle_and_in_its_prompt(open_window: Open, wait: Wait) -> None:
    window = open_window()
    written: list[object] = []
    window.link.written.connect(written.append)
    window.link.written.connect(lambda _: window.stop_button.click())  # with the first words
    write(window, "It was", tokens="500")
    wait(is_ready(window))
    assert "stopped" in window.status.text()
    assert 0 < len(written) < 500
    written.clear()
    window.prompt.setPlainText("the old house " * 140)
    window.send()
    window.stop_button.click()
    wait(is_ready(window))
    assert "0 new" in window.status.text() and "stopped" in window.status.text()
    assert written == [] and not window.banner.text


def test_another_precision_is_opened_in_place_and_none_that_is_not_there(
    open_window: Open, wait: Wait, int8_kv_folder: ModelFolder
) -> None:
    window = open_window()
    pid = pid_of(window)
    choose(window, "int4")
    assert window.link.state is State.LOADING and window.bar.isVisible()
    wait(is_ready(window))
    assert window.link.model is not None and window.link.model.precision == "int4"
    assert pid_of(window) == pid
    window.open(str(int8_kv_folder.path))
    wait(is_ready(window))
    model = window.controls.precision.model()
    flags = [model.flags(model.index(place, 0)) for place in range(len(PRECISIONS))]
    assert [bool(flag & Qt.ItemFlag.ItemIsEnabled) for flag in flags] == [True, False, False, False]
    assert "one precision" in window.controls.precision.toolTip()
    window.controls.kv.setCurrentText("int8")
    window.controls.kv.activated.emit(1)
    wait(is_ready(window))
    assert window.link.model.kv == window.controls.kv.currentText() == "int8"


def test_what_cannot_be_opened_is_told_and_changes_nothing(
    open_window: Open, wait: Wait, copy: Path
) -> None:
    window = open_window(copy)
    assert window.link.model is not None
    broken = copy.parent / "broken"
    shutil.copytree(copy, broken)
    (broken / "model.onnx").write_bytes(b"no graph")
    window.open(str(broken))
    wait(is_ready(window))
    assert "model.onnx" in window.banner.text
    assert window.link.model.name == "copy"
    shutil.rmtree(copy)  # while it is open
    write(window, "ab")
    wait(is_ready(window))
    assert "20 new" in window.status.text() and not window.banner.text
    window.open(str(copy))
    wait(is_ready(window))
    assert "found nothing" in window.banner.text
    write(window, "ab")
    wait(is_ready(window))
    assert not window.banner.text


def test_a_first_model_that_cannot_be_opened_leaves_a_window(
    open_window: Open, wait: Wait, tmp_path: Path, tiny_folder: ModelFolder
) -> None:
    window = open_window(tmp_path)
    assert window.state is State.EMPTY and "is an empty folder" in window.banner.text
    window.send()
    window.open(str(tiny_folder.path))
    wait(is_ready(window))
    assert not window.banner.text


def test_closing_ends_the_engine_in_the_middle_of_a_text(open_window: Open, wait: Wait) -> None:
    window = open_window()
    pid = pid_of(window)
    written: list[object] = []
    window.link.written.connect(written.append)
    write(window, "It was", tokens="500")
    wait(lambda: bool(written))
    window.close()
    window.wait()
    assert is_gone(pid)


def test_closing_ends_the_engine_while_it_opens_a_model(app: QApplication, wait: Wait) -> None:
    from heartbeat import Heartbeat

    window = Window(None, None, Heartbeat())
    wait(lambda: window.link.process_id() is not None)
    pid = pid_of(window)
    window.close()
    window.wait()
    assert is_gone(pid)


def test_an_engine_that_is_killed_is_told_and_another_can_be_had(
    open_window: Open, wait: Wait
) -> None:
    window = open_window()
    write(window, "It was", tokens="500")
    os.kill(pid_of(window), signal.SIGKILL)  # as Linux does when there is no memory
    wait(lambda: bool(window.banner.text))
    assert "ended by itself (signal 9)" in window.banner.text
    assert window.state is State.EMPTY and not window.send_button.isEnabled()
    assert window.figures.text() == ""  # its memory is free
    window.open(None)
    wait(is_ready(window))
    assert not window.banner.text


@pytest.mark.skipif(sys.platform != "linux", reason="limits of another process")
def test_no_memory_for_a_model_is_told_and_the_one_before_stays(
    open_window: Open, wait: Wait, tiny_folder: ModelFolder
) -> None:
    window = open_window(tiny_folder.path)
    status = Path(f"/proc/{pid_of(window)}/status").read_text()
    size = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmSize"))
    none = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    resource.prlimit(pid_of(window), resource.RLIMIT_AS, (1024 * size + (4 << 20), none[1]))
    window.open(None, "fp32")
    wait(lambda: window.state is not State.LOADING)
    assert "memory" in window.banner.text.lower()
    resource.prlimit(pid_of(window), resource.RLIMIT_AS, none)
    write(window, "ab")
    wait(is_ready(window))
    assert "20 new" in window.status.text()


def test_two_precisions_side_by_side_show_where_they_part(open_window: Open, wait: Wait) -> None:
    window = open_window()
    window.change_mode("Compare")
    wait(is_ready(window))
    left, right = window.compare.panes
    assert left.link.model is not None and left.link.model.precision == "fp32"
    assert right.link.model is not None and right.link.model.precision == "int4"
    write(window, "It was a dark", tokens="100", temperature=1.0)
    assert window.state is State.GENERATING
    wait(is_ready(window))
    wait(lambda: not window.compare.is_comparing)  # until they are compared
    parted = [pane.page.transcript.extraSelections() for pane in window.compare.panes]
    assert left.generated != right.generated
    first = parted[0][0].cursor
    word = first.selectedText()
    common = os.path.commonprefix([left.generated, right.generated])
    assert first.selectionStart() >= left.begin + common.rindex(" ")
    assert word and " " not in word
    window.clear_button.click()
    for pane in window.compare.panes:
        assert (pane.page.transcript.text, pane.page.transcript.extraSelections()) == ("", [])
    pids = [pane.link.process_id() for pane in window.compare.panes]
    window.change_mode("Text")  # frees both
    for pane in window.compare.panes:
        pane.link.wait()
    assert all(pid is not None and is_gone(pid) for pid in pids)


def test_escape_leaves_alone_what_is_being_opened(open_window: Open, wait: Wait) -> None:
    window = open_window()
    window.change_mode("Compare")
    window.stop()  # by Escape
    wait(lambda: window.state is not State.LOADING)
    assert window.state is State.READY


def test_neither_precision_can_be_switched_while_one_is_writing(
    open_window: Open, wait: Wait
) -> None:
    window = open_window()
    window.change_mode("Compare")
    wait(is_ready(window))
    write(window, "It was a dark")
    assert not any(pane.precision.isEnabled() for pane in window.compare.panes)
    wait(is_ready(window))
    assert all(pane.precision.isEnabled() for pane in window.compare.panes)


def test_a_text_too_long_to_be_shown_at_once_is_not_pasted(open_window: Open) -> None:
    window = open_window()
    QTest.keyClicks(window.prompt, "It was")
    for length, has in ((50_000, "It was"), (49_994, "It was" + "x" * 49_994)):
        QApplication.clipboard().setText("x" * length)
        window.prompt.paste()
        assert window.prompt.toPlainText() == has
    assert window.banner.text == (
        "found a text of 50,000 characters to paste, expected at most 49,994 more; paste a part "
        "of it"
    )


def test_a_conversation_has_turns(open_window: Open, wait: Wait) -> None:
    window = open_window()
    window.change_mode("Chat")
    for words in ("Who are you?", "And then?"):
        write(window, words)
        assert not window.clear_button.isEnabled()
        wait(is_ready(window))
    lines = window.chat_page.transcript.text.splitlines()
    assert [line for line in lines if line in ("You", "Model")] == ["You", "Model"] * 2
    assert lines[1] == "Who are you?"
    window.clear_button.click()
    assert window.chat_page.transcript.text == ""


def test_it_fits_400_pixels(open_window: Open, tiny_folder: ModelFolder) -> None:
    window = open_window(tiny_folder.path)
    window.resize(400, 620)
    assert window.width() == 400 >= window.minimumSizeHint().width()
    window.banner.tell("/a/very" * 60)
    QApplication.processEvents()
    assert window.width() == 400


def test_it_is_dark_where_the_desktop_is(
    app: QApplication, open_window: Open, tiny_folder: ModelFolder
) -> None:
    window = open_window(tiny_folder.path)

    def background() -> QColor:
        return window.grab().toImage().pixelColor(3, 3)

    assert background() == QColor(LIGHT.window)
    wear(app, "dark")
    assert background() == QColor(DARK.window)
    wear(app, "light")


def test_the_window_works_little_while_its_engine_works_much(open_window: Open, wait: Wait) -> None:
    window = open_window()
    write(window, "It was", tokens="200")
    wait(is_ready(window))
    busiest = window.heartbeat.busiest
    # Processor time, not the clock's: how late it is on a busy machine is not the window's doing.
    assert busiest["loading"] < 0.05 and busiest["generating"] < 0.05
    assert window.heartbeat.beats > 20


@pytest.mark.skipif(sys.platform != "linux", reason="what a process has loaded")
def test_an_engine_has_no_window_in_it(open_window: Open, tiny_folder: ModelFolder) -> None:
    window = open_window(tiny_folder.path)
    loaded = Path(f"/proc/{pid_of(window)}/maps").read_text()
    assert "onnxruntime" in loaded and "Qt6" not in loaded


def test_what_an_old_text_still_tells_is_not_heard(
    open_window: Open, wait: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults: list[object] = []
    monkeypatch.setattr(sys, "excepthook", lambda *fault: faults.append(fault))
    window = open_window()
    window.change_mode("Chat")
    written: list[object] = []
    window.link.written.connect(written.append)
    write(window, "Who are you?", tokens="500")
    wait(lambda: bool(written))
    time.sleep(0.1)  # more is told, and not heard yet
    window.open(None)
    window.clear_button.click()
    wait(is_ready(window))
    assert window.chat_page.transcript.text == ""
    assert faults == []


def test_a_folder_is_shown_by_its_name_whatever_that_is(
    open_window: Open, tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    window = open_window(shutil.copytree(tiny_folder.path, tmp_path / "<b>this & that"))
    assert window.status.textFormat() is Qt.TextFormat.PlainText
    assert window.model_button.text().startswith("<b>this && that")
