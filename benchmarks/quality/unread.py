"""What a tokenizer did not read of a text, in a sentence to be said loudly."""

from __future__ import annotations

from typing import Any

from ...export.quantities import number_text


def unread_sentence(quality: dict[str, Any] | None) -> str | None:
    """The warning of what ``measure_quality`` found; None where all was read."""
    unread = (quality or {}).get("without_token")
    if not unread or not unread["characters"]:
        return None
    count, share = unread["characters"], number_text(100 * unread["share"])
    return (
        f"{count:,} character{'s' * (count != 1)} of the text ({share} % of its bytes) "
        f"{'have' if count != 1 else 'has'} no token in this tokenizer: the models did not read "
        "them, and bytes and words are those of the rest"
    )
