"""An application frozen into an executable: beside it is no Python, and its users have no pip.

Standard library only.
"""

from __future__ import annotations

import sys


def is_frozen() -> bool:
    """Whether PyInstaller or the like, or Nuitka, has made this program."""
    return bool(getattr(sys, "frozen", False)) or "__compiled__" in globals()


def to_install(command: str, verb: str = "install it") -> str:
    """The end of a message: what to type, or, in an application, what whoever makes it types."""
    if is_frozen():
        return f"whoever makes this application has to {verb} there and freeze it again: {command}"
    return f"{verb} with: {command}"
