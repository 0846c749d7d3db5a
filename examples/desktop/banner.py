"""What went wrong, in the window, until it is read."""

from __future__ import annotations

from buttons import tool_button
from PySide6.QtCore import Qt
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QFrame, QHBoxLayout, QLabel, QSizePolicy, QWidget


class Banner(QFrame):
    """Hidden until there is a message."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("banner")
        self._text = ""
        self._label = QLabel()
        self._label.setWordWrap(True)
        self._label.setTextFormat(Qt.TextFormat.PlainText)
        self._label.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)
        self._label.setMinimumWidth(1)
        copy, close = tool_button("Copy", "Copy the message"), tool_button("×", "Close")
        copy.clicked.connect(self._copy)
        close.clicked.connect(self.hide)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(10, 6, 6, 6)
        layout.setSpacing(0)
        layout.addWidget(self._label, 1)
        for button in (copy, close):
            layout.addWidget(button, 0, Qt.AlignmentFlag.AlignTop)
        self.hide()

    @property
    def text(self) -> str:
        """What it says; "" while hidden."""
        return "" if self.isHidden() else self._text

    def tell(self, text: str) -> None:
        """Shows a message."""
        self._text = text
        # Long paths have no blanks at which a line could end. Not to be copied, so not selectable.
        self._label.setText(text.replace("/", "/\u200b"))
        self.show()

    def _copy(self) -> None:
        QGuiApplication.clipboard().setText(self._text)
