"""A text through the ``tokenizers`` library, so that other threads go on meanwhile."""

from __future__ import annotations

import tokenizers

LONG = 4_000  # characters, which take some milliseconds


def encoded(
    library: tokenizers.Tokenizer, text: str, add_special_tokens: bool
) -> tokenizers.Encoding:
    """What ``library`` makes of ``text``.

    Of one text the library (0.23) keeps Python's lock all the while: seconds, for a long one. Of
    several it does not.
    """
    if len(text) < LONG:
        return library.encode(text, add_special_tokens=add_special_tokens)
    (found,) = library.encode_batch([text], add_special_tokens=add_special_tokens)
    return found
