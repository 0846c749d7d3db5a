"""How the window looks: two sets of colours, and the style made of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from string import Template

from PySide6.QtCore import Qt
from PySide6.QtGui import QColor, QGuiApplication, QPalette
from PySide6.QtWidgets import QApplication


@dataclass(frozen=True)
class Colours:
    """By what they are for."""

    window: str
    surface: str
    raised: str
    text: str
    muted: str
    line: str
    accent: str
    on_accent: str
    tint: str
    error: str
    on_error: str


LIGHT = Colours(
    window="#f3f2ef",
    surface="#ffffff",
    raised="#e8e6e1",
    text="#1e2227",
    muted="#5f6670",
    line="#d9d6cf",
    accent="#2f5bd0",
    on_accent="#ffffff",
    tint="#ffe2b8",
    error="#fbe3e0",
    on_error="#84190f",
)
DARK = Colours(
    window="#17191d",
    surface="#1f2227",
    raised="#2b2f36",
    text="#e7e6e2",
    muted="#9ba2ac",
    line="#363b43",
    accent="#7f9dff",
    on_accent="#10131a",
    tint="#5e4519",
    error="#48211f",
    on_error="#ffd5cf",
)

STYLE = Template("""
QWidget { color: $text; }
QMainWindow, QWidget#page { background: $window; }
QLabel[role="small"] { color: $muted; font-size: 11px; }
QLabel[role="title"] { font-weight: 600; }
QTextEdit, QPlainTextEdit {
    background: $surface; border: 1px solid $line; border-radius: 8px; padding: 6px;
    selection-background-color: $accent; selection-color: $on_accent;
}
QPlainTextEdit:focus { border-color: $accent; }
QPushButton, QToolButton, QComboBox {
    background: $surface; border: 1px solid $line; border-radius: 6px; padding: 4px 10px;
}
QComboBox { padding: 4px 8px; }
QComboBox::drop-down { border: none; width: 18px; }
QPushButton:hover, QToolButton:hover, QComboBox:hover { background: $raised; }
QPushButton:disabled, QToolButton:disabled, QComboBox:disabled { color: $muted; }
QPushButton:focus, QToolButton:focus, QComboBox:focus { border-color: $accent; }
QToolButton::menu-indicator { image: none; }
QToolButton:checked {
    background: $accent; color: $on_accent; border-color: $accent;
}
QPushButton { min-width: 52px; }
QPushButton#send { background: $accent; color: $on_accent; border: none; font-weight: 600; }
QPushButton#send:disabled { background: $raised; color: $muted; }
QPushButton#stop { background: $surface; color: $on_error; border: 1px solid $on_error;
    font-weight: 600; }
QProgressBar { background: $raised; border: none; border-radius: 2px; max-height: 4px; }
QProgressBar::chunk { background: $accent; border-radius: 2px; }
QFrame#banner { background: $error; border-radius: 8px; }
QFrame#banner QLabel { color: $on_error; }
QFrame#banner QToolButton { background: transparent; border: none; color: $on_error; }
QFrame#alternatives { background: $surface; border: 1px solid $line; border-radius: 8px; }
QFrame#alternatives QToolButton { background: transparent; border: none; }
QSlider::groove:horizontal { height: 4px; background: $raised; border-radius: 2px; }
QSlider::sub-page:horizontal { background: $accent; border-radius: 2px; }
QSlider::handle:horizontal {
    width: 14px; height: 14px; margin: -5px 0; border-radius: 7px; background: $accent;
}
QMenu, QComboBox QAbstractItemView { background: $surface; border: 1px solid $line; }
QMenu::item { padding: 5px 18px; }
QMenu::item:selected, QComboBox QAbstractItemView::item:selected {
    background: $accent; color: $on_accent;
}
QScrollBar:vertical { background: transparent; width: 10px; margin: 2px; }
QScrollBar::handle:vertical { background: $line; border-radius: 3px; min-height: 24px; }
QScrollBar::add-line, QScrollBar::sub-line { height: 0; width: 0; }
QScrollBar::add-page, QScrollBar::sub-page { background: transparent; }
QToolTip { background: $raised; color: $text; border: 1px solid $line; }
QSplitter::handle { background: transparent; }
""")


THEMES = {"light": LIGHT, "dark": DARK}
AUTO = "auto"

_theme = AUTO


def colours() -> Colours:
    """Those that were chosen, or of the desktop's scheme now."""
    dark = QGuiApplication.styleHints().colorScheme() is Qt.ColorScheme.Dark
    return THEMES.get(_theme, DARK if dark else LIGHT)


def follow_desktop(app: QApplication, theme: str) -> None:
    """Looks like the desktop (``theme`` "auto"), also when that changes; or "light" or "dark"."""
    app.setStyle("Fusion")
    wear(app, theme)
    app.styleHints().colorSchemeChanged.connect(lambda _: wear(app, _theme))


def wear(app: QApplication, theme: str) -> None:
    """Puts on the colours of that theme."""
    global _theme
    _theme = theme
    now = colours()
    palette = QPalette()
    for role, colour in {
        QPalette.ColorRole.Window: now.window,
        QPalette.ColorRole.Base: now.surface,
        QPalette.ColorRole.Button: now.surface,
        QPalette.ColorRole.WindowText: now.text,
        QPalette.ColorRole.Text: now.text,
        QPalette.ColorRole.ButtonText: now.text,
        QPalette.ColorRole.PlaceholderText: now.muted,
        QPalette.ColorRole.Highlight: now.accent,
        QPalette.ColorRole.HighlightedText: now.on_accent,
        QPalette.ColorRole.ToolTipBase: now.raised,
        QPalette.ColorRole.ToolTipText: now.text,
    }.items():
        palette.setColor(role, QColor(colour))
    app.setPalette(palette)
    app.setStyleSheet(STYLE.substitute(asdict(now)))
