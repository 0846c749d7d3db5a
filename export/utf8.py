"""Text from the system as UTF-8, whatever the locale says."""

from __future__ import annotations

import os


def utf8(text: str) -> str:
    """``text``, an argument or a path, with the bytes that the locale has no letters for read.

    In the locale "C" Python keeps those above 127 as lone surrogates (PEP 383), when it is told not
    to use UTF-8. Bytes that are not UTF-8 either stay as they are.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        try:
            return os.fsencode(text).decode("utf-8")
        except UnicodeError:
            pass
    return text
