"""Llama 3's tokenizer.model: ranks of byte strings, one ``base64 rank`` per line (tiktoken).

The file has neither the pattern that cuts a text into words nor the special tokens; both are Llama
3's. Any two neighbours whose bytes together are a token merge, the lowest rank first, so every such
pair is a merge here; a word that is a token as a whole is taken at once, as tiktoken does.

Sources: ``tiktoken/load.py`` and ``_educational.py`` of openai/tiktoken for format and algorithm;
``models/llama3/tokenizer.py`` of meta-llama/llama-models for the pattern; Llama 3.1's
tokenizer_config.json for the special tokens.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..regular_file import RegularFile
from ..strict_json import shown
from . import read_tokenizer_file
from .added_tokens import Token, added_token, around, configured_tokens, wanted
from .byte_alphabet import byte_alphabet, byte_level, split_by

NUM_RANKS = 128_000
NUM_SPECIAL = 256
BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Llama 3.1's names; 3.0 calls those at 4, 8 and 10 reserved, no text of its own has them.
NAMED = {
    0: BEGIN,
    1: END,
    4: "<|finetune_right_pad_id|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
    10: "<|python_tag|>",
}


def find(path: Path) -> tuple[Path] | None:
    """tokenizer.model, in a folder or named itself, if it begins as ranks do."""
    file = path / "tokenizer.model" if path.is_dir() else path
    if not file.is_file() or file.suffix != ".model":
        return None
    with RegularFile(file, CheckpointError) as stream:
        start = stream.read(0, 64)
    word, _, rest = start.partition(b" ")
    rank = rest.partition(b"\n")[0].strip()
    return (file,) if _bytes_of(word) is not None and rank.isdigit() else None


def read(file: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The same tokenizer as tokenizer.json's content; CheckpointError for a damaged file."""
    ranks = _ranks(file)
    if len(ranks) != NUM_RANKS:
        raise CheckpointError(
            f"{file.name} has {len(ranks):,} ranks, expected the {NUM_RANKS:,} of Llama 3; how "
            "another model cuts a text into words is not in this file - take its tokenizer.json"
        )
    alphabet = byte_alphabet()

    def spelled(token: bytes) -> str:
        return "".join(alphabet[byte] for byte in token)

    special = configured_tokens(config) or _special_tokens()
    ids = {token["content"]: int(token["id"]) for token in special}
    begins = wanted(config, "add_bos_token", True) and BEGIN in ids
    ends = wanted(config, "add_eos_token", False) and END in ids
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": split_by(PATTERN),
        "post_processor": around(ids, BEGIN if begins else None, END if ends else None),
        "decoder": byte_level(use_regex=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {spelled(token): rank for token, rank in ranks.items()},
            "merges": [[spelled(left), spelled(right)] for left, right in _merges(ranks)],
        },
    }


def _ranks(file: Path) -> dict[bytes, int]:
    """Rank by byte string, in the order of the ranks, which have no gaps."""
    lines = read_tokenizer_file(file, CheckpointError).split(b"\n")
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        word, _, rank = line.strip().partition(b" ")
        token = _bytes_of(word)
        if not token or token in ranks or rank != str(len(ranks)).encode():
            raise CheckpointError(
                f"{file.name}: line {number} is {shown(line.decode(errors='replace'))}, expected "
                f"a new byte string in base64 and the rank {len(ranks)}; get the file again from "
                "its source"
            )
        ranks[token] = len(ranks)
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise CheckpointError(
            f"{file.name} has no token for the byte {missing[0]:#04x}, expected all 256; get the "
            "file again from its source"
        )
    return ranks


def _bytes_of(word: bytes) -> bytes | None:
    try:
        return base64.b64decode(word, validate=True) or None
    except binascii.Error:
        return None


def _merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Every pair of tokens that together are one, by the rank of the result."""
    merges = []
    for token in ranks:
        pairs = [
            (token[:i], token[i:])
            for i in range(1, len(token))
            if token[:i] in ranks and token[i:] in ranks
        ]
        merges += sorted(pairs, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    return merges


def _special_tokens() -> list[Token]:
    """The 256 tokens after the ranks: those with a name, and reserved ones counted through."""
    tokens, reserved = [], 0
    for i in range(NUM_SPECIAL):
        name = NAMED.get(i)
        if name is None:
            name, reserved = f"<|reserved_special_token_{reserved}|>", reserved + 1
        tokens.append(added_token(NUM_RANKS + i, name, special=True))
    return tokens
