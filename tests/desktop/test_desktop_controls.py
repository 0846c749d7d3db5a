"""The switches of the example's window."""

from __future__ import annotations

import pytest
from controls import Temperature
from PySide6.QtCore import Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QSlider

pytestmark = pytest.mark.desktop


def test_a_temperature_that_was_chosen_by_key_stays(app: QApplication) -> None:
    temperature = Temperature()
    temperature.suggest(1.0)
    slider = temperature.findChild(QSlider)
    assert isinstance(slider, QSlider)
    QTest.keyClick(slider, Qt.Key.Key_Right)
    temperature.suggest(0.5)
    assert temperature.value == 1.05
