"""What else could have stood there: the likeliest tokens as bars."""

from __future__ import annotations

from buttons import tool_button
from look import colours
from messages import Choice
from PySide6.QtCore import QRectF, QSize, Qt, Signal
from PySide6.QtGui import QColor, QFontMetrics, QPainter, QPaintEvent
from PySide6.QtWidgets import (
    QFrame,
    QHBoxLayout,
    QLabel,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

ROW = 20  # pixels
MOST = 8
MOST_NAME = 160  # pixels of a token


def shown(text: str) -> str:
    """A token with what cannot be seen of it."""
    return text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥") or "∅"


def percent(probability: float) -> str:
    """As read beside a bar."""
    return f"{100 * probability:.1f} %" if probability >= 0.001 else "< 0.1 %"


class Alternatives(QFrame):
    """Hidden until it has something to show."""

    closed = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("alternatives")
        self._title = QLabel(textFormat=Qt.TextFormat.PlainText)
        self._title.setProperty("role", "title")
        self._note = QLabel("the model's own probabilities, before temperature")
        self._note.setProperty("role", "small")
        self._note.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)
        close = tool_button("×", "Close")
        close.clicked.connect(self.leave)
        self.bars = Bars()
        top = QHBoxLayout()
        top.addWidget(self._title)
        top.addWidget(self._note, 1)
        top.addWidget(close)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(10, 4, 6, 8)
        layout.setSpacing(2)
        layout.addLayout(top)
        layout.addWidget(self.bars)
        self.hide()

    def show_choice(self, choice: Choice) -> None:
        """The likeliest in the place of this token, and the token itself."""
        metrics = self._title.fontMetrics()
        token = metrics.elidedText(shown(choice.text), Qt.TextElideMode.ElideRight, MOST_NAME)
        self._title.setText(f"{token}  {percent(choice.probability)}")
        rows = list(choice.likeliest[:MOST])
        if choice.text not in [text for text, _ in rows]:
            rows[MOST - 1 :] = [(choice.text, choice.probability)]
        self.bars.show_rows(rows, choice.text)
        self.show()

    def leave(self) -> None:
        """Hides it."""
        self.hide()
        self.closed.emit()


class Bars(QWidget):
    """A row for each token: its text, a bar, and its probability."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[str, float]] = []
        self._taken = ""
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)

    def show_rows(self, rows: list[tuple[str, float]], taken: str) -> None:
        """``rows`` of (text, probability), of which ``taken`` is the one in the text."""
        self.rows, self._taken = rows, taken
        self.setAccessibleDescription(
            ", ".join(f"{shown(text)} {percent(probability)}" for text, probability in rows)
        )
        self.updateGeometry()
        self.update()

    def sizeHint(self) -> QSize:
        return QSize(240, ROW * max(1, len(self.rows)))

    def minimumSizeHint(self) -> QSize:
        return QSize(120, self.sizeHint().height())

    def paintEvent(self, event: QPaintEvent) -> None:
        now, painter = colours(), QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        metrics = QFontMetrics(self.font())
        names = min(MOST_NAME, self.width() // 3)
        numbers = metrics.horizontalAdvance("< 0.1 %") + 8
        room = self.width() - names - numbers
        for place, (text, probability) in enumerate(self.rows):
            top, taken = place * ROW, text == self._taken
            painter.setPen(QColor(now.accent if taken else now.text))
            name = metrics.elidedText(shown(text), Qt.TextElideMode.ElideRight, names - 8)
            middle = Qt.AlignmentFlag.AlignVCenter
            painter.drawText(QRectF(0, top, names, ROW), middle, name)
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(QColor(now.raised))
            painter.drawRoundedRect(QRectF(names, top + 6, room, ROW - 12), 4, 4)
            painter.setBrush(QColor(now.accent if taken else now.muted))
            bar = QRectF(names, top + 6, max(3.0, room * probability), ROW - 12)
            painter.drawRoundedRect(bar, 4, 4)
            painter.setPen(QColor(now.muted))
            place_of_number = QRectF(self.width() - numbers, top, numbers, ROW)
            right = Qt.AlignmentFlag.AlignRight | middle
            painter.drawText(place_of_number, right, percent(probability))
        painter.end()
