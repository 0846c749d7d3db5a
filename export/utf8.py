"""Text from the system as UTF-8, whatever the locale says."""

from __future__ import annotations

import codecs
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


def piped(data: bytes) -> str:
    """The text that came through a pipe, without what Windows adds there.

    That is a byte order mark, of UTF-8 or UTF-16, and a carriage return at the end of lines. Raises
    UnicodeDecodeError for what is neither.
    """
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if is_utf16 else "utf-8-sig").replace("\r\n", "\n")
