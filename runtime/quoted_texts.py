"""Texts of strangers inside a text of ours: how both become token ids.

Most texts spell no marker, and are encoded as they stand; only for one that does is it
hidden (see ``quoting``), which needs a twin of the tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeAlias

from .quoting import Quotation
from .tokenizer import Tokenizer

Hide: TypeAlias = Callable[[str], str]
Encode: TypeAlias = Callable[..., list[int]]
"""Takes a text and the keyword arguments of ``Tokenizer.encode``."""


def quoting(tokenizer: Tokenizer, texts: Iterable[str]) -> tuple[Hide, Encode]:
    """What each of ``texts`` goes through before it is put into a text, and what encodes that.

    So that whatever they spell is read as the text that it is.
    """
    if not spell_markers(tokenizer, texts):
        return str, tokenizer.encode
    quotation = Quotation(tokenizer.marker_spellings)
    return quotation.hide, partial(tokenizer.encode_quoting, quotation=quotation)


def spell_markers(tokenizer: Tokenizer, texts: Iterable[str]) -> bool:
    """Whether any of ``texts`` has what may be a marker in a text of ours."""
    # The tokenizer is asked, not the spellings: it may also take other characters for them.
    return any(tokenizer.marker_ids.intersection(_ids_alone(tokenizer, text)) for text in texts)


def num_markers(tokenizer: Tokenizer, texts: Iterable[str]) -> int:
    """How many markers each of ``texts`` would have in a text of ours, all together."""
    ids = (token_id for text in texts for token_id in _ids_alone(tokenizer, text))
    return sum(token_id in tokenizer.marker_ids for token_id in ids)


def _ids_alone(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False, max_characters=len(text))
