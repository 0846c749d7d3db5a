"""The text as it is written, every generated word of which can be clicked."""

from __future__ import annotations

from collections.abc import Sequence

from look import colours
from messages import Part
from passages import Passage, Passages, num_positions
from PySide6.QtCore import QEvent, QPoint, Qt, Signal
from PySide6.QtGui import QColor, QFont, QMouseEvent, QTextCharFormat, QTextCursor
from PySide6.QtWidgets import QTextEdit, QWidget

UNSEEN = "\u200b"  # for a carriage return, which with a line feed would take one position, not two


class Transcript(QTextEdit):
    """Prompts and what followed them."""

    clicked = Signal(object)  # Passage, or None beside all of them

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setReadOnly(True)
        self.setUndoRedoEnabled(False)
        self.setFrameShape(QTextEdit.Shape.NoFrame)
        font = self.font()
        font.setPointSizeF(font.pointSizeF() + 1.5)
        self.setFont(font)
        self._passages = Passages()
        self._chosen: Passage | None = None
        self._marks: list[tuple[int, int]] = []

    @property
    def text(self) -> str:
        """All of it."""
        return self.toPlainText()

    def write_prompt(self, text: str) -> None:
        """What a person wrote."""
        bold = QTextCharFormat()
        bold.setFontWeight(QFont.Weight.DemiBold)
        self._insert(text, bold)

    def write_label(self, text: str) -> None:
        """Who speaks, on a line of its own."""
        small = QTextCharFormat()
        small.setForeground(QColor(colours().muted))
        small.setProperty(QTextCharFormat.Property.FontPointSize, self.font().pointSizeF() - 3)
        self._insert(text, small)
        self._insert("\n", QTextCharFormat())

    def start_paragraph(self) -> None:
        """What follows stands below, unless nothing is above."""
        if not self.document().isEmpty():
            self._insert("\n\n", QTextCharFormat())

    def write(self, parts: Sequence[Part]) -> None:
        """What the model wrote, with the tokens of it."""
        end, _ = self._insert("".join(part.text for part in parts), QTextCharFormat())
        for part in parts:
            start, end = end, end + num_positions(part.text)
            self._passages.add(start, end, part.choices)

    def wipe(self) -> None:
        """An empty text."""
        self.clear()
        self._passages.clear()
        self._chosen, self._marks = None, []
        self._show_marks()

    @property
    def end(self) -> int:
        """The position behind the last character."""
        return self.document().characterCount() - 1

    def mark(self, spans: Sequence[tuple[int, int]]) -> None:
        """Marks these spans of positions, and no others; the first one most."""
        if list(spans) != self._marks:
            self._marks = list(spans)
            self._show_marks()

    def choose(self, passage: Passage | None) -> None:
        """Shows which passage was clicked."""
        self._chosen = passage
        self._show_marks()

    def passage_at(self, point: QPoint) -> Passage | None:
        """What stands there, in the coordinates of the viewport."""
        cursor = self.cursorForPosition(point)
        # The cursor is at the nearest gap between two characters: which of them was meant?
        gap = self.cursorRect(cursor)
        position = cursor.position() - (1 if point.x() < gap.x() else 0)
        on_the_line = gap.top() <= point.y() <= gap.bottom()
        return self._passages.at(position) if on_the_line else None

    def mouseReleaseEvent(self, event: QMouseEvent) -> None:
        super().mouseReleaseEvent(event)
        plain = event.button() is Qt.MouseButton.LeftButton
        if plain and not self.textCursor().hasSelection():
            self.clicked.emit(self.passage_at(event.position().toPoint()))

    def mouseMoveEvent(self, event: QMouseEvent) -> None:
        super().mouseMoveEvent(event)
        found = self.passage_at(event.position().toPoint())
        hand, beam = Qt.CursorShape.PointingHandCursor, Qt.CursorShape.IBeamCursor
        self.viewport().setCursor(beam if found is None else hand)

    def changeEvent(self, event: QEvent) -> None:
        super().changeEvent(event)
        if event.type() is QEvent.Type.StyleChange:
            self._show_marks()

    def _insert(self, text: str, form: QTextCharFormat) -> tuple[int, int]:
        """The positions from which to which it stands then."""
        bar = self.verticalScrollBar()
        at_the_end = bar.value() >= bar.maximum() - 4
        cursor = QTextCursor(self.document())
        cursor.movePosition(QTextCursor.MoveOperation.End)
        start = cursor.position()
        cursor.insertText(text.replace("\r", UNSEEN), form)
        if at_the_end:
            bar.setValue(bar.maximum())
        return start, cursor.position()

    def _show_marks(self) -> None:
        now = colours()
        shown = []
        for number, (start, end) in enumerate(self._marks):
            form = QTextCharFormat()
            form.setBackground(QColor(now.accent if number == 0 else now.tint))
            if number == 0:
                form.setForeground(QColor(now.on_accent))
            shown.append(self._selection(start, end, form))
        if self._chosen is not None:
            form = QTextCharFormat()
            form.setBackground(QColor(now.accent))
            form.setForeground(QColor(now.on_accent))
            shown.append(self._selection(self._chosen.start, self._chosen.end, form))
        self.setExtraSelections(shown)

    def _selection(self, start: int, end: int, form: QTextCharFormat) -> QTextEdit.ExtraSelection:
        found = QTextEdit.ExtraSelection()
        cursor = QTextCursor(self.document())
        cursor.setPosition(start)
        cursor.setPosition(end, QTextCursor.MoveMode.KeepAnchor)
        found.cursor, found.format = cursor, form
        return found
