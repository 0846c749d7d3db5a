"""Where a prompt is typed: Return sends it, Shift-Return is a new line."""

from __future__ import annotations

from PySide6.QtCore import QMimeData, QSize, Qt, Signal
from PySide6.QtGui import QKeyEvent
from PySide6.QtWidgets import QPlainTextEdit, QSizePolicy, QWidget

LINES = 3
MOST = 50_000  # characters: while Qt breaks them into lines, the window stands still


class Prompt(QPlainTextEdit):
    """A few lines."""

    sent = Signal()
    refused = Signal(str)  # what was to be pasted, and why it was not

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setPlaceholderText("Write a beginning, then Return")
        self.setTabChangesFocus(True)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)

    def sizeHint(self) -> QSize:
        return QSize(200, LINES * self.fontMetrics().lineSpacing() + 24)

    def minimumSizeHint(self) -> QSize:
        return QSize(80, self.sizeHint().height())

    def keyPressEvent(self, event: QKeyEvent) -> None:
        shift = event.modifiers() & Qt.KeyboardModifier.ShiftModifier
        if event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter) and not shift:
            self.sent.emit()
        else:
            super().keyPressEvent(event)

    def insertFromMimeData(self, source: QMimeData) -> None:
        found, room = len(source.text()), max(0, MOST - len(self.toPlainText()))
        if found <= room:
            super().insertFromMimeData(source)
        else:
            self.refused.emit(
                f"found a text of {found:,} characters to paste, expected at most {room:,} more; "
                "paste a part of it"
            )
