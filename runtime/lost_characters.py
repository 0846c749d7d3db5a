"""Which characters of a text have no token, and so never reach the model.

Most tokenizers have a token for every byte. One that has not, such as that of a model of single
characters, drops what is not in its alphabet, or puts its unknown token there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .tokenizer import Tokenizer


def kept_characters(
    tokenizer: Tokenizer, text: str, ids: Sequence[int], ends: Sequence[int]
) -> NDArray[np.bool_] | None:
    """For each character of ``text`` whether its tokens stand for it; None where all do.

    ``ids`` and ``ends`` are those of ``encode_with_ends``. Characters that the tokenizer writes in
    another way (in lower case, composed) have a token.
    """
    unknown = tokenizer.unknown_id
    if unknown not in ids:
        joined = b"".join(tokenizer.token_bytes(i, skip_special_tokens=False) for i in ids)
        if text.encode() in (joined, joined[tokenizer.strips_leading_spaces :]):
            return None
    kept = np.ones(len(text), bool)
    known, begin = [], 0
    spelling = "" if unknown is None else _decoded(tokenizer, [unknown])
    for token_id, end in zip(ids, ends, strict=True):
        if token_id == unknown and text[begin:end] != spelling:
            kept[begin:end] = False
        else:
            known.append(token_id)
        begin = max(begin, end)
    left = "".join(c for c, keep in zip(text, kept, strict=True) if keep)
    # What is dropped shifts the library's ends, so it is told by the character instead.
    missing = Counter(left) - Counter(_decoded(tokenizer, known))
    lost = {character for character in missing if not _has_token(tokenizer, character)}
    kept &= [character not in lost for character in text]
    return None if kept.all() else kept


def lost_characters(tokenizer: Tokenizer, text: str) -> str:
    """The characters of ``text`` without a token, in their order."""
    kept = kept_characters(tokenizer, text, *tokenizer.encode_with_ends(text))
    if kept is None:
        return ""
    return "".join(c for c, keep in zip(text, kept, strict=True) if not keep)


def _has_token(tokenizer: Tokenizer, character: str) -> bool:
    """Twice, since a single space may be taken for the one that is put before a text."""
    ids = tokenizer.encode(2 * character, add_special_tokens=False)
    return bool(_decoded(tokenizer, [i for i in ids if i != tokenizer.unknown_id]))


def _decoded(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False)
