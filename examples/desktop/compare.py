"""One prompt, two precisions side by side; the words that only one of them says are marked."""

from __future__ import annotations

from functools import partial

from controls import Switch
from figures import figures
from link import Link, State
from messages import PRECISIONS, Finished, Loaded, Written
from pages import TextPage
from parting import parting
from passages import num_positions
from PySide6.QtCore import Qt, QTimer, Signal
from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import QHBoxLayout, QLabel, QSplitter, QVBoxLayout, QWidget

NARROW = 620  # pixels, below which one stands above the other
MARK_MS = 150  # between two comparisons while text is written
SEED = 7  # of both: what differs is the precision


class Pane(QWidget):
    """A precision, its engine and its text."""

    def __init__(self, precision: str) -> None:
        super().__init__()
        self.link = Link(self)
        self.page = TextPage()
        self.page.transcript.setPlaceholderText("")
        self.generated = ""
        self.begin = 0
        self.precision = Switch(PRECISIONS)
        self.precision.setCurrentText(precision)
        self.figures = QLabel("not open")
        self.figures.setProperty("role", "small")
        top = QHBoxLayout()
        top.addWidget(self.precision)
        top.addWidget(self.figures, 1)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addLayout(top)
        layout.addWidget(self.page, 1)
        self.link.written.connect(self._write)
        self.link.finished.connect(self._finish)
        self.link.loaded.connect(self._show_model)
        self.link.state_changed.connect(self._show_state)

    def begin_with(self, words: str) -> None:
        """Begins the text anew, for the model to go on with."""
        self.page.wipe()
        self.page.ask(words)
        self.generated, self.begin = "", self.page.transcript.end

    def generate(self, words: str, temperature: float, max_tokens: int) -> None:
        """Lets the model go on."""
        self.link.generate(words, temperature, max_tokens, SEED)

    def mark(self, spans: list[tuple[int, int]]) -> None:
        """Marks parts of what was generated."""
        self.page.transcript.mark(
            [(self._position(start), self._position(end)) for start, end in spans]
        )

    def _position(self, place: int) -> int:
        """In the document."""
        return self.begin + num_positions(self.generated[:place])

    def _write(self, written: Written) -> None:
        self.generated += written.text
        self.page.write(written)
        self.figures.setText(figures(written.tokens_per_second, written.memory_bytes))

    def _finish(self, finished: Finished) -> None:
        self.figures.setText(figures(finished.tokens_per_second, finished.memory_bytes))

    def _show_model(self, model: Loaded) -> None:
        self.figures.setText(figures(0, model.memory_bytes))

    def _show_state(self, state: State) -> None:
        if state in (State.EMPTY, State.LOADING):
            self.figures.setText("loading…" if state is State.LOADING else "not open")


class ComparePage(QWidget):
    """Two panes; they take turns, so that each has the processor to itself."""

    failed = Signal(str)  # or what a person should know
    loading = Signal(object)  # Loading
    state_changed = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.left, self.right = self.panes = Pane("fp32"), Pane("int4")
        self._path: str | None = None
        self._opened = False
        self._then: partial[None] | None = None
        self._splitter = QSplitter()
        self._splitter.setChildrenCollapsible(False)
        self._splitter.setHandleWidth(10)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._splitter)
        self._marking = QTimer(self, interval=MARK_MS, singleShot=True)
        self._marking.timeout.connect(self._mark)
        for pane in self.panes:
            self._splitter.addWidget(pane)
            pane.link.failed.connect(self._fail)
            pane.link.notice.connect(self.failed)
            pane.link.loading.connect(self.loading)
            pane.link.loaded.connect(self._go_on)
            pane.link.finished.connect(self._go_on)
            pane.link.written.connect(self._mark_soon)
            pane.link.state_changed.connect(self.state_changed)
            pane.precision.activated.connect(partial(self._switch, pane))
        self.state_changed.connect(self._show_state)

    @property
    def state(self) -> State:
        """Of both."""
        states = {pane.link.state for pane in self.panes}
        order = (State.LOADING, State.STOPPING, State.GENERATING, State.EMPTY, State.READY)
        found = next(state for state in order if state in states)
        return State.GENERATING if found is State.READY and self._then is not None else found

    @property
    def is_comparing(self) -> bool:
        """Whether what was written last is yet to be compared."""
        return self._marking.isActive()

    def open(self, path: str | None) -> None:
        """Both precisions of that model, one after the other."""
        self._path, self._opened = path, True
        self._then = partial(self._load, self.right)
        self._load(self.left)

    def close_engines(self) -> None:
        """Frees what they hold."""
        self._then, self._opened = None, False
        for pane in self.panes:
            pane.link.close()

    def ask(self, words: str, temperature: float, max_tokens: int) -> None:
        """Lets one go on with ``words``, then the other."""
        self.wipe()
        for pane in self.panes:
            pane.begin_with(words)
        self._then = partial(self.right.generate, words, temperature, max_tokens)
        self.left.generate(words, temperature, max_tokens)

    def wipe(self) -> None:
        """Two empty texts."""
        for pane in self.panes:
            pane.begin_with("")

    def stop(self) -> None:
        """Ends both texts; what is being opened is opened."""
        if self.state is not State.LOADING:
            self._then = None
        for pane in self.panes:
            pane.link.stop()

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        narrow = event.size().width() < NARROW
        self._splitter.setOrientation(
            Qt.Orientation.Vertical if narrow else Qt.Orientation.Horizontal
        )

    def _load(self, pane: Pane) -> None:
        pane.link.load(self._path, pane.precision.currentText())

    def _switch(self, pane: Pane) -> None:
        if self._opened:
            self._load(pane)

    def _go_on(self) -> None:
        then, self._then = self._then, None
        if then is not None:
            then()
        self._mark_soon()
        self.state_changed.emit()

    def _fail(self, text: str) -> None:
        self._then = None
        self.failed.emit(text)

    def _show_state(self) -> None:
        writing = self.state in (State.GENERATING, State.STOPPING)
        for pane in self.panes:
            pane.precision.setEnabled(not writing)

    def _mark_soon(self) -> None:
        if not self._marking.isActive():
            self._marking.start()

    def _mark(self) -> None:
        complete = self.state is State.READY
        found = parting(self.left.generated, self.right.generated, complete=complete)
        self.left.mark(found.left)
        self.right.mark(found.right)
