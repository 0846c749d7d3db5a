"""A text with the alternatives to its words: one that goes on, or a conversation."""

from __future__ import annotations

from alternatives import Alternatives
from messages import Turn, Written
from passages import Passage
from PySide6.QtWidgets import QVBoxLayout, QWidget
from transcript import Transcript


class Page(QWidget):
    """The text, and below it what else the clicked word could have been."""

    placeholder = ""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.transcript = Transcript()
        self.transcript.setPlaceholderText(self.placeholder)
        self.alternatives = Alternatives()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.transcript, 1)
        layout.addWidget(self.alternatives)
        self.transcript.clicked.connect(self._show_alternatives)
        self.alternatives.closed.connect(self._leave)

    def write(self, written: Written) -> None:
        """What the model adds."""
        self.transcript.write(written.parts)

    def wipe(self) -> None:
        """Begins anew."""
        self.transcript.wipe()
        self.alternatives.leave()

    def _show_alternatives(self, passage: Passage | None) -> None:
        self.transcript.choose(passage)
        if passage is None:
            self.alternatives.hide()
        else:
            self.alternatives.show_choice(passage.choices[-1])

    def _leave(self) -> None:
        self.transcript.choose(None)


class TextPage(Page):
    """Goes on with what it is given, or with itself."""

    placeholder = "Click a generated word for its alternatives."

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._context = ""

    def ask(self, words: str) -> str | None:
        """The prompt of ``words``; without any, of the last text; None where there is nothing."""
        if words:
            self.transcript.start_paragraph()
            self.transcript.write_prompt(words)
            self._context = words
        return self._context or None

    def write(self, written: Written) -> None:
        """What the model adds, also to what it is asked next."""
        super().write(written)
        self._context += written.text

    def wipe(self) -> None:
        """Begins anew."""
        super().wipe()
        self._context = ""


class ChatPage(Page):
    """Questions and answers; the model is given all of them each time."""

    placeholder = "Click a word of an answer for its alternatives."

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._turns: list[Turn] = []

    def ask(self, words: str) -> tuple[Turn, ...] | None:
        """The conversation with ``words``; None without."""
        if not words:
            return None
        if self._turns and not self._turns[-1].content:  # the answer was stopped before it began
            del self._turns[-2:]
        for who, turn in (("You", Turn("user", words)), ("Model", Turn("assistant", ""))):
            self.transcript.start_paragraph()
            self.transcript.write_label(who)
            self._turns.append(turn)
            if turn.content:
                self.transcript.write_prompt(turn.content)
        return tuple(self._turns[:-1])

    def write(self, written: Written) -> None:
        """What the model adds to its answer."""
        super().write(written)
        self._turns[-1] = Turn("assistant", self._turns[-1].content + written.text)

    def wipe(self) -> None:
        """Begins anew."""
        super().wipe()
        self._turns.clear()
