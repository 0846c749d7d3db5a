"""Freezes applications that use pocketlm: PyInstaller finds what is here by an entry point.

``hook-pocketlm.py`` says what goes into an application, and ``rthooks`` what runs first in it.
"""

from __future__ import annotations

from pathlib import Path


def get_hook_dirs() -> list[str]:
    """The folder of the hooks; asked for by the entry point ``pyinstaller40``."""
    return [str(Path(__file__).parent)]
