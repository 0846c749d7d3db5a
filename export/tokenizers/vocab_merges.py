"""vocab.json and merges.txt: byte-level BPE as GPT-2 and Qwen2 publish it.

``vocab.json`` maps tokens, spelled in GPT-2's byte alphabet, to ids; ``merges.txt`` has one merge
per line after an optional version line. How a text is cut into words depends on the family, which
``tokenizer_class`` of tokenizer_config.json names, or config.json; else the files are GPT-2's.

Sources: encoder.py of the GPT-2 repository; ``tokenization_qwen2.py`` of transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..strict_json import load_json_object, quoted, shown
from . import LARGEST_TOKENIZER, TOKENIZER_VALUES, read_tokenizer_file
from .added_tokens import added_token, around, configured_tokens, named_token, wanted
from .byte_alphabet import byte_level, split_by

GPT2, QWEN2 = "GPT2Tokenizer", "Qwen2Tokenizer"
END_OF_TEXT = "<|endoftext|>"
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def find(path: Path) -> tuple[Path, Path] | None:
    """Both files of a folder."""
    files = (path / "vocab.json", path / "merges.txt")
    return files if all(file.is_file() for file in files) else None


def read(vocab_file: Path, merges_file: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The same tokenizer as tokenizer.json's content; CheckpointError for damaged files."""
    family = str(config.get("tokenizer_class") or GPT2).removesuffix("Fast")
    if family not in (GPT2, QWEN2):
        raise CheckpointError(
            f"tokenizer_config.json: tokenizer_class is {shown(family)}, expected {GPT2} or "
            f"{QWEN2} beside vocab.json and merges.txt; how it cuts a text into words is in "
            "neither file - take the model's tokenizer.json"
        )
    vocab = load_json_object(vocab_file, LARGEST_TOKENIZER, CheckpointError, TOKENIZER_VALUES)
    are_ids = all(type(token_id) is int for token_id in vocab.values())
    if not are_ids or set(vocab.values()) != set(range(len(vocab))):
        raise CheckpointError(
            f"{vocab_file.name} has {len(vocab):,} tokens with other ids than 0 to "
            f"{len(vocab) - 1:,}, expected each of these once; get the file again from its source"
        )
    special = configured_tokens(config)
    if END_OF_TEXT in vocab and END_OF_TEXT not in (token["content"] for token in special):
        special = [added_token(vocab[END_OF_TEXT], END_OF_TEXT, special=True), *special]
    known = vocab | {token["content"]: int(token["id"]) for token in special}
    begin = named_token(config, "bos_token", END_OF_TEXT)
    begins = wanted(config, "add_bos_token", False) and begin in known
    qwen2 = family == QWEN2
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": {"type": "NFC"} if qwen2 else None,
        "pre_tokenizer": split_by(QWEN2_PATTERN) if qwen2 else byte_level(use_regex=True),
        "post_processor": around(known, begin if begins else None, None),
        "decoder": byte_level(use_regex=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": _merges(merges_file, vocab),
        },
    }


def _merges(file: Path, vocab: dict[str, Any]) -> list[list[str]]:
    data = read_tokenizer_file(file, CheckpointError)
    merges = []
    for number, line in enumerate(data.decode("utf-8", errors="replace").split("\n"), 1):
        line = line.removesuffix("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pair = line.split(" ")
        if len(pair) != 2 or not all(part in vocab for part in (*pair, "".join(pair))):
            raise CheckpointError(
                f"{file.name}: line {number} is {quoted(line, 60)}, expected two tokens of "
                "vocab.json that together are a third; take both files from the same place"
            )
        merges.append(pair)
    return merges
