"""tokenizer.json: the form of the tokenizers library, taken as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..strict_json import load_json_object
from . import LARGEST_TOKENIZER, TOKENIZER_VALUES


def find(path: Path) -> tuple[Path] | None:
    """tokenizer.json in a folder, or any file that is not in a form of its own."""
    if path.is_dir():
        file = path / "tokenizer.json"
        return (file,) if file.is_file() else None
    return (path,) if path.is_file() and path.suffix != ".model" else None


def read(file: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The content of ``file``."""
    return load_json_object(file, LARGEST_TOKENIZER, CheckpointError, TOKENIZER_VALUES)
