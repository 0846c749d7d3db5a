"""What a tokenizer did not read of a text: its counts, and a sentence to be said loudly."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ...export.quantities import number_text
from ...runtime.lost_characters import lost_characters
from ...runtime.tokenizer import Tokenizer


def without_token(characters: int, lost_bytes: int, num_bytes: int) -> dict[str, Any]:
    """As it stands in results: of a text of ``num_bytes`` so many characters and bytes."""
    share = lost_bytes / num_bytes if num_bytes else 0.0
    return {"characters": characters, "bytes": lost_bytes, "share": share}


def unread_of(tokenizer: Tokenizer, texts: Iterable[str]) -> dict[str, Any]:
    """``without_token`` of short texts."""
    lost, num_bytes = "", 0
    for text in texts:
        lost += lost_characters(tokenizer, text)
        num_bytes += len(text.encode())
    return without_token(len(lost), len(lost.encode()), num_bytes)


def unread_sentence(found: dict[str, Any] | None, of: str = "the text") -> str | None:
    """The warning of what holds a ``without_token``; None where all was read."""
    unread = (found or {}).get("without_token")
    if not unread or not unread["characters"]:
        return None
    count, share = unread["characters"], number_text(100 * unread["share"])
    return (
        f"{count:,} character{'s' * (count != 1)} of {of} ({share} % of its bytes) "
        f"{'have' if count != 1 else 'has'} no token in this tokenizer: the models did not read "
        f"{'them' if count != 1 else 'it'}, and figures are those of the rest"
    )
