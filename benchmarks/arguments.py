"""Types of arguments that the scripts of this folder share, for argparse."""

from __future__ import annotations

import argparse
from pathlib import Path


def model_name(text: str) -> str:
    """What names a model to the command line; not an empty name: that is a variable not set."""
    if not text.strip():
        raise argparse.ArgumentTypeError("found an empty name, is a variable not set?")
    return text


def given_path(text: str) -> Path:
    """A path; not an empty one, which pathlib would take for the current folder."""
    return Path(model_name(text))
