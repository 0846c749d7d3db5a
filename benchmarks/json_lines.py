"""Reads JSONL: one JSON object a line goes in, its fields come out, or an error that says where."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..export.errors import RequestError
from ..export.strict_json import parse_json_object, shown


class Line:
    """A JSON object of a file; its methods take out a field or say what is wrong with it."""

    def __init__(self, where: str, number: int, fields: Mapping[str, Any]) -> None:
        self.number = number
        self.fields = fields
        self._where = where

    def error(self, found: str, expected: str) -> RequestError:
        """Names the place; ``found`` and ``expected`` are what the message says of them."""
        return RequestError(
            f"{self._where}: found {found}, expected {expected}; correct the line or give another "
            "file"
        )

    def text(self, name: str, *, may_be_empty: bool = False) -> str:
        """A field that holds a string."""
        value = self._get(name)
        if not isinstance(value, str) or not (value or may_be_empty):
            raise self.error(f"{name} {shown(value)}", "a text")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A field that holds a list of two strings or more."""
        value = self._get(name)
        if (
            not isinstance(value, list)
            or len(value) < 2
            or not all(isinstance(text, str) and text for text in value)
        ):
            raise self.error(f"{name} {shown(value)}", "a list of two texts or more")
        return tuple(value)

    def index(self, name: str, count: int) -> int:
        """A field that holds which of ``count`` choices is right: a number, or one as text."""
        value = self._get(name)
        number = value
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
            number = int(value)
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < count:
            raise self.error(f"{name} {shown(value)}", f"0 to {count - 1}, the right choice")
        return number

    def _get(self, name: str) -> Any:
        if name not in self.fields:
            found = ", ".join(self.fields) or "none"
            expected = name if self.number == 1 else f"{name} too, as in the first line"
            raise self.error(f"the fields {found:.200}", expected)
        return self.fields[name]


def read_lines(path: Path) -> Iterator[Line]:
    """The objects of a file; blank lines are skipped.

    Raises RequestError that names file and line for what is not UTF-8 or not a JSON object, and for
    a file that cannot be read.
    """
    try:
        with path.open("rb") as file:
            for number, content in enumerate(file, start=1):
                content = content.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").strip()
                if content:
                    where = f"{path}, line {number}"
                    yield Line(where, number, parse_json_object(content, where, RequestError))
    except OSError as error:
        raise RequestError(
            f"{path}: cannot be read ({error.strerror or error}), expected JSONL; check path and "
            "permissions"
        ) from error
