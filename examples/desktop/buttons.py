"""Buttons by their text and tip."""

from __future__ import annotations

from PySide6.QtWidgets import QPushButton, QToolButton


def tool_button(text: str, tip: str = "") -> QToolButton:
    """A small one."""
    button = QToolButton()
    button.setText(text)
    button.setToolTip(tip)
    return button


def push_button(text: str, name: str, tip: str = "") -> QPushButton:
    """A large one; ``name`` is what its style goes by."""
    button = QPushButton(text)
    button.setObjectName(name)
    button.setToolTip(tip)
    return button
