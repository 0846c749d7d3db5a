"""What is answered as JSON, whole or in parts: what is made of one go stops all other threads."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from itertools import chain, repeat
from typing import Any

from ..openai_form import Each

PART_BYTES = 65_536  # of an answer that are written at once
# Levels that are taken apart, down to the part of a message, in its content, in an output, in a
# response, in an event; and numbers or words that are encoded at once.
PARTED, AT_ONCE = 6, 10_000

_encoder = json.JSONEncoder(allow_nan=False, separators=(",", ":"), default=list)


def encoded(value: Any) -> bytes:
    """``value`` as JSON; in ASCII, which has no half of a character and no line's end but ours."""
    return _encoder.encode(value).encode("ascii")


def parts_of(value: Any) -> Iterator[bytes]:
    """The same of what may be megabytes, in parts of ``PART_BYTES`` or little more; then the rest.

    Nothing of it is made before it is asked for, what ``Each`` makes neither: it is never there as
    a whole.
    """
    part = bytearray()
    for piece in _parts(value, PARTED):
        part += piece.encode("ascii")
        if len(part) >= PART_BYTES:
            yield bytes(part)
            part.clear()
    yield bytes(part)


def _parts(value: Any, levels: int) -> Iterator[str]:
    """Python's encoder lets no other thread run before it is done with what it is given."""
    if isinstance(value, Each) or levels and _is_nested(value):
        inner = 0 if isinstance(value, Each) else levels - 1  # a token with its alternatives
        yield "["
        for mark, part in zip(_marks(), value, strict=False):
            yield mark
            yield from _parts(part, inner)
        yield "]"
    elif not isinstance(value, array) and (not levels or not isinstance(value, dict | list)):
        yield _encoder.encode(value)
    elif isinstance(value, dict):
        yield "{"
        for mark, (name, part) in zip(_marks(), value.items(), strict=False):
            yield f"{mark}{_encoder.encode(name)}:"
            yield from _parts(part, levels - 1)
        yield "}"
    else:
        yield "["
        for mark, start in zip(_marks(), range(0, len(value), AT_ONCE), strict=False):
            yield mark + _encoder.encode(list(value[start : start + AT_ONCE]))[1:-1]
        yield "]"


def _is_nested(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict | list)


def _marks() -> Iterator[str]:
    """Before each part."""
    return chain([""], repeat(","))
