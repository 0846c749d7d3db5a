r"""Lines of JSON, one at a time, from a file that may be larger than memory, as often as wanted.

file     UTF-8, with or without a byte order mark; lines end in \n or \r\n
line     a JSON object or a string, of at most ``LARGEST_LINE`` bytes; a blank one is none
"""

from __future__ import annotations

import codecs
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pocketlm.export.errors import RequestError
from pocketlm.export.strict_json import parse_json_object, quoted

STDIN = Path("-")
LARGEST_LINE = 64_000_000  # bytes; a prompt of a million tokens has ten million
ADVICE = "correct the line"


@dataclass(frozen=True)
class Line:
    """A line that is not blank: its number, from 1 on, and its bytes without space around them."""

    number: int
    data: bytes

    def parse(self) -> dict[str, Any] | str:
        """The JSON in it; raises RequestError for what is none, or is neither object nor string."""
        if len(self.data) > LARGEST_LINE:
            raise RequestError(
                f"found more than {LARGEST_LINE:,} bytes, expected a shorter line; is there no "
                "newline between two?"
            )
        if self.data.startswith(b'"'):
            return self._string()
        return parse_json_object(self.data, "the line", RequestError, advice=ADVICE)

    def _string(self) -> str:
        try:
            text: str = json.loads(self.data.decode("utf-8"))
            text.encode("utf-8")  # an escape can spell half a surrogate pair
        except ValueError as cause:  # of decoding, parsing and encoding
            raise RequestError(
                f"the line {quoted(self.data.decode('utf-8', 'replace'), 40)} is no string in "
                f"JSON, expected one, or an object; {ADVICE}"
            ) from cause
        return text


class JsonLines:
    """The lines of an open file that are not blank; each ``for`` begins at the first."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.name = name
        self._file = file

    def __iter__(self) -> Iterator[Line]:
        self._file.seek(0)
        number = 0
        while data := self._file.readline(LARGEST_LINE + 3):
            number += 1
            data = data.removeprefix(codecs.BOM_UTF8) if number == 1 else data
            rest = data
            while not rest.endswith(b"\n") and (rest := self._file.readline(1 << 20)):
                pass  # of a line that is too long
            if data := data.strip(b" \t\r\n"):
                yield Line(number, data)

    def place(self, line: Line) -> str:
        """How a message begins that is about ``line``."""
        return f"{self.name}, line {line.number}"


@contextmanager
def open_lines(path: Path) -> Iterator[JsonLines]:
    """The lines of a file, of stdin for "-"; OSError where it cannot be read.

    What can be read only once, as a pipe, is copied to a temporary file.
    """
    if path == STDIN:
        with _copied(sys.stdin.buffer) as file:
            yield JsonLines(file, "stdin")
        return
    with open(path, "rb") as found:
        if found.seekable():
            yield JsonLines(found, str(path))
            return
        with _copied(found) as file:
            yield JsonLines(file, str(path))


@contextmanager
def _copied(source: BinaryIO) -> Iterator[BinaryIO]:
    with tempfile.TemporaryFile() as file:
        shutil.copyfileobj(source, file)
        yield file
