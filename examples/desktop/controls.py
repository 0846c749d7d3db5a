"""The switches above the text: precision, KV cache, temperature, length."""

from __future__ import annotations

from messages import PRECISIONS, Loaded
from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QPainter, QPaintEvent, QStandardItemModel
from PySide6.QtWidgets import (
    QComboBox,
    QHBoxLayout,
    QLabel,
    QSlider,
    QVBoxLayout,
    QWidget,
)

KVS = ("fp32", "int8")
LENGTHS = ("20", "50", "100", "200", "500", "1000")
ONE_PRECISION = "a model folder has one precision; open its checkpoint to choose"
NO_INT8_KV = "this model has no graph for an int8 cache: pocketlm export … --calibrate dream"


class Controls(QWidget):
    """Each with its name above it."""

    switched = Signal(str, str)  # precision, KV

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.precision = Switch(PRECISIONS)
        self.kv = Switch(KVS)
        self.temperature = Temperature()
        self.tokens = Switch(LENGTHS)
        self.tokens.setCurrentText("200")
        self.tokens.setToolTip("most tokens to generate")
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(8)
        row.addLayout(_named("Precision", self.precision))
        row.addLayout(_named("KV cache", self.kv))
        row.addLayout(_named("Tokens", self.tokens))
        row.addLayout(_named("Temperature", self.temperature), 1)
        for switch in (self.precision, self.kv):
            switch.activated.connect(self._switch)

    def show_model(self, model: Loaded) -> None:
        """What is open, and what else could be."""
        self.precision.show_values(model.precision, model.precisions, ONE_PRECISION)
        self.kv.show_values(model.kv, model.kvs, NO_INT8_KV)

    def _switch(self) -> None:
        self.switched.emit(self.precision.currentText(), self.kv.currentText())


class Switch(QComboBox):
    """One of several values, some of which may not be to be had."""

    def __init__(self, values: tuple[str, ...]) -> None:
        super().__init__()
        self.addItems(values)
        self.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.setMinimumContentsLength(4)

    def paintEvent(self, event: QPaintEvent) -> None:
        super().paintEvent(event)
        painter = QPainter(self)
        place = self.rect().adjusted(0, 0, -8, 0)
        middle = Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
        painter.drawText(place, middle, "▾")  # the style has an arrow from a file only
        painter.end()

    def show_values(self, value: str, possible: tuple[str, ...], why_not: str) -> None:
        """Shows ``value``; what is not possible cannot be chosen, and the tip says why."""
        model = self.model()
        assert isinstance(model, QStandardItemModel)
        for place in range(self.count()):
            model.item(place).setEnabled(self.itemText(place) in possible)
        self.setToolTip("" if len(possible) == self.count() else why_not)
        self.setCurrentText(value)


class Temperature(QWidget):
    """0 to 2 in steps of 0.05; the model's own until it is moved."""

    def __init__(self) -> None:
        super().__init__()
        self._slider = QSlider(Qt.Orientation.Horizontal)
        self._slider.setRange(0, 40)
        self._slider.setValue(16)
        self._slider.setToolTip("0 takes the likeliest token; the larger, the wilder")
        self._slider.setAccessibleName("Temperature")
        self._label = QLabel()
        self._moved = False
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self._slider, 1)
        row.addWidget(self._label)
        self._label.setMinimumWidth(self._label.fontMetrics().horizontalAdvance("0.00"))
        self._slider.valueChanged.connect(self._show)
        self._slider.actionTriggered.connect(self._touch)  # by mouse, wheel, or key
        self._show()

    @property
    def value(self) -> float:
        """As a request takes it."""
        return float(self._slider.value()) / 20

    def choose(self, value: float) -> None:
        """As if it was moved there."""
        self._moved = True
        self._slider.setValue(round(20 * value))

    def suggest(self, value: float) -> None:
        """The model's own, unless another was chosen."""
        if not self._moved:
            self._slider.setValue(round(20 * value))

    def _touch(self) -> None:
        self._moved = True

    def _show(self) -> None:
        self._label.setText(f"{self.value:.2f}")


def _named(name: str, widget: QWidget) -> QVBoxLayout:
    label = QLabel(name)
    label.setProperty("role", "small")
    label.setBuddy(widget)
    column = QVBoxLayout()
    column.setSpacing(2)
    column.addWidget(label)
    column.addWidget(widget, 1)
    return column
