"""The window: what model is open, a prompt, a text, and what the engine is at."""

from __future__ import annotations

from banner import Banner
from buttons import push_button, tool_button
from compare import ComparePage
from controls import Controls
from figures import REASONS, figures, size
from heartbeat import Heartbeat
from link import Link, State
from messages import Finished, Loaded, Loading, Written
from pages import ChatPage, Page, TextPage
from prompt import Prompt
from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QCloseEvent, QKeySequence, QShortcut
from PySide6.QtWidgets import (
    QButtonGroup,
    QFileDialog,
    QHBoxLayout,
    QInputDialog,
    QLabel,
    QMainWindow,
    QMenu,
    QProgressBar,
    QSizePolicy,
    QStackedWidget,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

MODES = ("Text", "Chat", "Compare")
HINTS = (
    "Write a beginning, then Return",
    "Say something, then Return",
    "Write a beginning for both",
)
STAGES = {"download": "downloading", "export": "making the model", "open": "opening the model"}


class Window(QMainWindow):
    """Opens ``model`` at once: a path, a name on the hub, or None for the demo model."""

    fault = Signal(str)  # to be shown, from any thread

    def __init__(self, model: str | None, precision: str | None, heartbeat: Heartbeat) -> None:
        super().__init__()
        self.setWindowTitle("pocketlm")
        self.resize(760, 620)
        self.setMinimumWidth(360)
        self.heartbeat = heartbeat
        self.link = Link(self)
        self._path = model
        self._make_widgets()
        self._lay_out()
        self._connect()
        self._show_state()
        self.open(model, precision)

    def _make_widgets(self) -> None:
        self.model_button = tool_button("", "Open another model")
        self.model_button.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        self.model_button.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        menu = QMenu(self)
        menu.addAction("Demo model", lambda: self.open(None))
        menu.addAction("Model folder or checkpoint…", self._choose_folder)
        menu.addAction("Name on the hub…", self._choose_name)
        self.model_button.setMenu(menu)
        self.modes = QButtonGroup(self)
        for number, name in enumerate(MODES):
            button = tool_button(name)
            button.setCheckable(True)
            button.setChecked(number == 0)
            self.modes.addButton(button, number)
        self.controls = Controls()
        self.bar = QProgressBar(textVisible=False)
        policy = self.bar.sizePolicy()
        policy.setRetainSizeWhenHidden(True)
        self.bar.setSizePolicy(policy)
        self.banner = Banner()
        self.text_page, self.chat_page, self.compare = TextPage(), ChatPage(), ComparePage()
        self.pages = QStackedWidget()
        for page in (self.text_page, self.chat_page, self.compare):
            self.pages.addWidget(page)
        self.prompt = Prompt()
        self.send_button = push_button("Write", "send")
        self.stop_button = push_button("Stop", "stop", "Esc")
        self.clear_button = push_button("Clear", "clear")
        self.status, self.figures = QLabel(), QLabel()
        for label in (self.status, self.figures):
            label.setProperty("role", "small")
            label.setTextFormat(Qt.TextFormat.PlainText)  # whatever a folder is called
        self.status.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)

    def _lay_out(self) -> None:
        top = QHBoxLayout()
        top.setSpacing(4)
        top.addWidget(self.model_button, 1)
        top.addSpacing(6)
        for button in self.modes.buttons():
            top.addWidget(button)
        buttons = QVBoxLayout()
        for button in (self.send_button, self.stop_button, self.clear_button):
            buttons.addWidget(button)
        buttons.addStretch()
        below = QHBoxLayout()
        below.addWidget(self.prompt, 1)
        below.addLayout(buttons)
        foot = QHBoxLayout()
        foot.addWidget(self.status, 1)
        foot.addWidget(self.figures)
        page = QWidget()
        page.setObjectName("page")
        layout = QVBoxLayout(page)
        layout.setContentsMargins(12, 10, 12, 8)
        layout.setSpacing(8)
        layout.addLayout(top)
        layout.addWidget(self.controls)
        layout.addWidget(self.bar)
        layout.addWidget(self.banner)
        layout.addWidget(self.pages, 1)
        layout.addLayout(below)
        layout.addLayout(foot)
        self.setCentralWidget(page)
        self.prompt.setFocus()

    def _connect(self) -> None:
        self.link.loading.connect(self._show_loading)
        self.link.loaded.connect(self._show_model)
        self.link.written.connect(self._write)
        self.link.finished.connect(self._finish)
        self.link.failed.connect(self._fail)
        self.link.notice.connect(self.banner.tell)
        self.fault.connect(self.banner.tell)
        self.link.state_changed.connect(self._show_state)
        self.compare.loading.connect(self._show_loading)
        self.compare.failed.connect(self.banner.tell)
        self.compare.state_changed.connect(self._show_comparison)
        self.controls.switched.connect(self._switch)
        self.modes.idClicked.connect(self._change_mode)
        self.send_button.clicked.connect(self.send)
        self.prompt.sent.connect(self.send)
        self.prompt.refused.connect(self.banner.tell)
        self.prompt.textChanged.connect(self._show_state)
        self.stop_button.clicked.connect(self.stop)
        self.clear_button.clicked.connect(self._clear)
        QShortcut(QKeySequence(Qt.Key.Key_Escape), self, self.stop)

    @property
    def state(self) -> State:
        """Of the engines whose text is seen."""
        return self.compare.state if self._comparing else self.link.state

    @property
    def _comparing(self) -> bool:
        return self.pages.currentWidget() is self.compare

    def open(self, path: str | None, precision: str | None = None) -> None:
        """Opens another model in the background."""
        self._path = path
        self.banner.hide()
        self.link.load(path, precision)
        if self._comparing:
            self.compare.open(path)

    def send(self) -> None:
        """Lets the model go on with what was typed."""
        words = self.prompt.toPlainText()
        if self.state is not State.READY:
            return
        temperature, most = self.controls.temperature.value, int(self.controls.tokens.currentText())
        if self._comparing:
            if words:
                self.banner.hide()
                self.compare.ask(words, temperature, most)
            return
        page = self.pages.currentWidget()
        assert isinstance(page, TextPage | ChatPage)
        asked = page.ask(words)
        if asked is not None:
            self.banner.hide()
            self.prompt.clear()
            self._writing: Page = page
            self.status.setText("reading the prompt…")
            self.link.generate(asked, temperature, most, None)

    def stop(self) -> None:
        """Ends what is being generated."""
        self.link.stop()
        self.compare.stop()

    def change_mode(self, name: str) -> None:
        """As if its button was clicked."""
        self.modes.button(MODES.index(name)).click()

    def closeEvent(self, event: QCloseEvent) -> None:
        self.link.close()
        self.compare.close_engines()
        event.accept()

    def wait(self) -> None:
        """Returns when no engine is left; after the window was closed."""
        for link in (self.link, *(pane.link for pane in self.compare.panes)):
            link.wait()

    def _change_mode(self, number: int) -> None:
        self.stop()
        was_comparing = self._comparing
        self.pages.setCurrentIndex(number)
        self.prompt.setPlaceholderText(HINTS[number])
        self.prompt.setFocus()
        self.status.clear()
        if self._comparing and not was_comparing:
            self.compare.open(self._path)
        elif was_comparing and not self._comparing:
            self.compare.close_engines()
        self._show_state()

    def _switch(self, precision: str, kv: str) -> None:
        self.banner.hide()
        self.link.load(self._path, precision, kv)

    def _clear(self) -> None:
        page = self.pages.currentWidget()
        assert isinstance(page, Page | ComparePage)
        page.wipe()
        self._show_state()

    def _choose_folder(self) -> None:
        if path := QFileDialog.getExistingDirectory(self, "Open a model folder or a checkpoint"):
            self.open(path)

    def _choose_name(self) -> None:
        name, chosen = QInputDialog.getText(self, "Name on the hub", "org/name")
        if chosen and name.strip():
            self.open(name.strip())

    def _show_loading(self, loading: Loading) -> None:
        self.bar.setRange(0, 1000 if loading.total else 0)
        if loading.total:
            self.bar.setValue(1000 * loading.done // loading.total)
        done = f" · {size(loading.done)} of {size(loading.total)}" if loading.total else ""
        self.status.setText(f"{STAGES[loading.stage]}{done}…")

    def _show_model(self, model: Loaded) -> None:
        self._path = model.asked.path
        self.controls.show_model(model)
        self.controls.temperature.suggest(model.temperature)
        self.status.setText(f"{model.name} in {model.precision}, opened in {model.seconds:.1f} s")
        self.figures.setText(figures(0, model.memory_bytes))
        self._show_state()

    def _write(self, written: Written) -> None:
        self._writing.write(written)
        self.status.setText("writing…")
        self.figures.setText(figures(written.tokens_per_second, written.memory_bytes))

    def _finish(self, finished: Finished) -> None:
        reason = REASONS.get(finished.reason, finished.reason)
        self.status.setText(
            f"{finished.new_tokens} new after a prompt of {finished.prompt_tokens} tokens: {reason}"
        )
        self.figures.setText(figures(finished.tokens_per_second, finished.memory_bytes))

    def _fail(self, text: str) -> None:
        self.banner.tell(text)
        if self.link.model is not None:  # the switches may have been moved
            self._path = self.link.model.asked.path
            self.controls.show_model(self.link.model)
        else:
            self.figures.clear()
        self.status.setText("" if self.link.model is not None else "no model is open")

    def _show_comparison(self) -> None:
        texts = {State.GENERATING: "writing, one after the other…", State.READY: ""}
        if (state := self.compare.state) in texts:
            self.status.setText(texts[state])
        self._show_state()

    def _show_state(self) -> None:
        state = self.state
        self.heartbeat.phase(state.value)
        model = self.link.model
        nothing = "opening…" if state is State.LOADING else "no model"
        name = nothing if model is None else model.name.replace("&", "&&")  # no shortcut
        self.model_button.setText(f"{name}  ▾")
        busy = state in (State.GENERATING, State.STOPPING)
        self.bar.setVisible(state is State.LOADING or (busy and not self._comparing))
        self.figures.setVisible(not self._comparing)  # there each side has its own
        if state is State.GENERATING and not self._comparing:
            self.bar.setRange(0, 0)
        self.stop_button.setVisible(busy)
        self.stop_button.setEnabled(state is State.GENERATING)
        self.send_button.setVisible(not busy)
        self.clear_button.setEnabled(not busy)
        words = bool(self.prompt.toPlainText())
        text = self.text_page.transcript.text if not self._comparing else ""
        goes_on = self.pages.currentWidget() is self.text_page and bool(text)
        self.send_button.setText("Write" if words or not goes_on else "Go on")
        self.send_button.setEnabled(state is State.READY and (words or goes_on))
        switchable = state in (State.LOADING, State.READY) and not self._comparing
        self.controls.precision.setEnabled(switchable)
        self.controls.kv.setEnabled(switchable)
