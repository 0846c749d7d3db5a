"""Tokenizers of single characters, of all kinds, that have no token for most of Unicode."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from pocketlm.runtime.tokenizer import Tokenizer

ALPHABET = "abcde. \n"


def characters(**options: object) -> tokenizers.Tokenizer:
    """Single characters and "ab"; others are dropped, as in nanoGPT's character models."""
    tokens = [*ALPHABET, "ab", "<unk>"]
    vocab = {token: i for i, token in enumerate(tokens)}
    return tokenizers.Tokenizer(models.BPE(vocab, [("a", "b")], **options))


def unigram() -> tokenizers.Tokenizer:
    pieces = [("<unk>", 0.0), *((character, -1.0) for character in ALPHABET)]
    return tokenizers.Tokenizer(models.Unigram(pieces, 0, False))


def split_characters() -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(
        models.WordLevel({c: i for i, c in enumerate([*ALPHABET, "<unk>"])}, unk_token="<unk>")
    )
    library.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    return library


FAMILIES: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "dropping": characters,
    "unknown": lambda: characters(unk_token="<unk>"),
    "fused": lambda: characters(unk_token="<unk>", fuse_unk=True),
    "unigram": unigram,
    "split": split_characters,
}


def opened(library: tokenizers.Tokenizer, path: Path) -> Tokenizer:
    if library.decoder is None:
        library.decoder = decoders.Fuse()
    library.save(str(path / "tokenizer.json"))
    return Tokenizer.open(path / "tokenizer.json")
