"""JSON objects read strictly: what two parsers could understand differently is refused.

Refused are duplicate keys, bytes that are not UTF-8, half surrogate pairs, NaN and Infinity,
numbers outside float64, files over a size limit, more values or nesting than the file can need, and
any top level that is not an object (RFC 8259 leaves these to the parser). Standard library only:
the runtime uses it.

A file is judged before an object is made of it: its punctuation says how many keys and values there
will be, and how deep. Reading n bytes with v keys and values takes at most
``TEXT_FACTOR * n + VALUE_BYTES * v`` bytes of memory, and refusing it ``4 * n``, plus a megabyte.
"""

from __future__ import annotations

import json
import math
import re
from array import array
from itertools import accumulate
from pathlib import Path
from typing import Any

from .errors import PocketLMError
from .regular_file import RegularFile

MAX_DEPTH = 100  # arrays and objects inside each other; published files have about six
MAX_VALUES = 1_000_000  # keys and values, where a caller says nothing else
LARGEST_CONFIG = 1_000_000  # bytes of config.json and its like; published ones have some thousand
LARGEST_INDEX = 25_000_000  # bytes that list tensors; those of 140,000 tensors have 13 million
# The file, its text, and its strings, with four bytes a character where one of them needs that.
TEXT_FACTOR = 10
VALUE_BYTES = 150  # the dearest are the keys and values of one large object

_STRUCTURE = b'"[]{},:'
_NOT_STRUCTURE = bytes(set(range(256)) - set(_STRUCTURE))
# A step down for each bracket that opens, back up for each that closes, as signed bytes.
_STEPS = bytes({0x5B: 1, 0x7B: 1, 0x5D: 255, 0x7D: 255}.get(byte, 0) for byte in range(256))
_PIECE_BYTES = 1 << 14
_HIGH, _LOW = rb"\\u[dD][89abAB]..", rb"\\u[dD][c-fC-F].."
# In JSON that was parsed, without escaped backslashes.
_HALF_PAIR = re.compile(rb"%s(?!%s)|(?<!%s)%s" % (_HIGH, _LOW, _HIGH, _LOW))

_ADVICE = "the file is damaged or not what its name says: get it again from its source"


def quoted(text: str, limit: int = 100) -> str:
    """Returns ``text`` quoted on one line, cut to ``limit`` characters, for error messages."""
    return repr(text) if len(text) <= limit else repr(text[:limit]) + "..."


def shown(value: object, limit: int = 60) -> str:
    """Returns a JSON value of the wrong kind on one line, cut to ``limit`` characters."""
    try:
        return quoted(value if isinstance(value, str) else str(value), limit)
    except RecursionError:  # no file is that deep, but what a caller made may be
        return "a deeply nested value"


def load_json_object(
    path: Path, max_bytes: int, error: type[PocketLMError], max_values: int = MAX_VALUES
) -> dict[str, Any]:
    """Returns the JSON object in the file ``path``; raises ``error`` if it is not a strict one.

    A file over ``max_bytes`` is refused before it is read, one with more than ``max_values`` keys
    and values before they are made.
    """
    return parse_json_object(read_json(path, max_bytes, error), path.name, error, max_values)


def read_json(path: Path, max_bytes: int, error: type[PocketLMError]) -> bytes:
    """Returns the bytes of the JSON file ``path``, unparsed; ``error`` if over ``max_bytes``."""
    with RegularFile(path, error) as file:
        size = file.num_bytes()
        if size > max_bytes:
            raise error(
                f"{path.name} has {size:,} bytes, expected at most {max_bytes:,} bytes of JSON; "
                f"{_ADVICE}"
            )
        return file.read(0, max_bytes)


def parse_json_object(
    data: bytes,
    where: str,
    error: type[PocketLMError],
    max_values: int = MAX_VALUES,
    advice: str = _ADVICE,
    max_nested: int = MAX_VALUES,
) -> dict[str, Any]:
    """Returns the JSON object in ``data``; raises ``error``, its message beginning with ``where``.

    Its message ends with ``advice``. ``max_nested`` arrays and objects may be in it.
    ``-0`` becomes the float -0.0, as in parsers that have no signed integer zero.
    """
    try:
        _judge(data, max_values, max_nested)
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_integer,
        )
        # Only an escape can spell half a surrogate pair: UTF-8 itself cannot.
        if _HALF_PAIR.search(data.replace(rb"\\", b"--")):
            raise _Refused("has a string with half a surrogate pair, expected Unicode text")
    except UnicodeDecodeError as cause:
        problem = f"is not UTF-8 (byte {cause.start} is 0x{data[cause.start]:02x})"
        raise error(f"{where} {problem}, expected a JSON object; {advice}") from cause
    except json.JSONDecodeError as cause:
        problem = f"is not valid JSON ({cause.msg.removesuffix(' at')} at character {cause.pos})"
        raise error(f"{where} {problem}, expected a JSON object; {advice}") from cause
    except _Refused as cause:
        raise error(f"{where} {cause}; {advice}") from cause
    if not isinstance(value, dict):
        problem = f"holds a JSON {_kind(value)}"
        raise error(f"{where} {problem}, expected a JSON object; {advice}")
    return value


class _Refused(ValueError):
    """Valid for Python's parser, refused by us; the message has found and expected."""


def _judge(data: bytes, max_values: int, max_nested: int) -> None:
    """Raises _Refused for more than ``max_values`` keys and values, or ``MAX_DEPTH`` levels.

    And for more than ``max_nested`` arrays and objects.
    """
    # Without escapes every quote begins or ends a string; an empty string hides nothing.
    text = data.replace(rb"\\", b"").replace(rb"\"", b"")
    text = text.translate(None, _NOT_STRUCTURE).replace(b'""', b"")
    inside = level = values = nested = 0
    for start in range(0, len(text), _PIECE_BYTES):
        parts = text[start : start + _PIECE_BYTES].split(b'"')
        outside = b"".join(parts[inside::2])
        inside ^= len(parts) - 1 & 1
        levels = array("i", accumulate(array("b", outside.translate(_STEPS)), initial=level))
        level = levels[-1]
        if max(levels) > MAX_DEPTH:
            raise _Refused(f"is nested too deeply, expected at most {MAX_DEPTH} levels")
        # Each follows a comma, a colon, or the bracket that it is the first behind.
        values += len(outside) - outside.count(b"]") - outside.count(b"}")
        if values > max_values:
            raise _Refused(f"has too many values, expected at most {max_values:,}")
        nested += outside.count(b"[") + outside.count(b"{")
        if nested > max_nested:
            raise _Refused(f"has too many arrays and objects, expected at most {max_nested:,}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _Refused(f"has the key {quoted(key)} twice, expected each key once")
            seen.add(key)
    return result


def _refuse_constant(text: str) -> float:
    raise _Refused(f"has the number {text}, expected finite numbers only")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _Refused(f"has the number {quoted(text, 30)}, expected one that fits float64")
    return value


def _integer(text: str) -> int | float:
    # 400 digits are beyond float64, and Python refuses to convert more than some thousand.
    if len(text) > 400:
        raise _Refused(f"has an integer of {len(text):,} digits, expected one that fits float64")
    return -0.0 if text == "-0" else int(text)


def _kind(value: object) -> str:
    names = {list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
