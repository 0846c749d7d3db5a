"""tokenizer.json: the form of the tokenizers library, taken as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..regular_file import RegularFile
from ..strict_json import load_json_object
from . import LARGEST_TOKENIZER, TOKENIZER_VALUES

LLMC_MAGIC = (20240328).to_bytes(4, "little")  # of ``write_tokenizer`` in llm.c's train_gpt2.py


def find(path: Path) -> tuple[Path] | None:
    """tokenizer.json in a folder, or any file that is not in a form of its own."""
    if path.is_dir():
        file = path / "tokenizer.json"
        return (file,) if file.is_file() else None
    return (path,) if path.is_file() and path.suffix != ".model" else None


def read(file: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The content of ``file``."""
    with RegularFile(file, CheckpointError) as stream:
        if stream.read(0, len(LLMC_MAGIC)) == LLMC_MAGIC:
            raise CheckpointError(
                f"{file.name} is a tokenizer of llm.c, which can only decode, expected one that "
                "can encode; give the folder of the model that it is from, such as GPT-2's, which "
                "has tokenizer.json or vocab.json and merges.txt"
            )
    return load_json_object(file, LARGEST_TOKENIZER, CheckpointError, TOKENIZER_VALUES)
