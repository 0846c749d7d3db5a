r"""Lines of tab-separated fields, as the verbs that answer line by line read and print them.

    file     UTF-8, with or without a byte order mark; lines end in \n or \r\n
    line     fields with a tab between them; a blank line holds nothing to answer
    field    any text; \t \n \r \\ stand for tab, newline, carriage return and backslash, a
             backslash before another character for itself

Output is written in the same way, and its line n belongs to line n of the input: of what is blank,
or left out as bad, the line is empty.
"""

from __future__ import annotations

import codecs
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path

import click

from pocketlm.commands.options import Place, unescape
from pocketlm.commands.terminal import say
from pocketlm.export.errors import RequestError

STDIN = Path("-")

file_argument = click.argument("file", type=Place())
skip_bad_option = click.option(
    "--skip-bad",
    is_flag=True,
    help="Leave out lines that cannot be answered, and count them at the end.",
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object instead of lines."
)


@dataclass
class Row:
    """A line of a file; without fields where there is nothing to answer."""

    number: int
    place: str
    fields: tuple[str, ...] = ()


class Input:
    """The lines of a file, and what becomes of those that cannot be answered.

    Such a line ends the verb with its number, or is left out and counted.
    """

    def __init__(
        self,
        path: Traversable,
        columns: Sequence[str] = (),
        optional: Sequence[str] = (),
        *,
        skip_bad: bool | None = None,
    ) -> None:
        """Reads a file, "-" for stdin; without ``columns`` a line is one text, as it stands.

        ``skip_bad`` None: the verb has no such option for this file.

        Raises RequestError for a line that is not UTF-8 or has other fields, unless it is left out,
        and for a file without any that is not blank; OSError where it cannot be read.
        """
        self.name = "stdin" if path == STDIN else str(path)
        self.num_bad = 0
        self._skip_bad = skip_bad
        self._first_bad = ""
        self.rows: list[Row] = []
        for number, line in enumerate(_lines(path), 1):
            row = Row(number, f"{self.name}, line {number}")
            self.rows.append(row)
            with self._judging(row):
                row.fields = _fields(line, columns, optional)
        if not any(row.fields for row in self.rows) and not self.num_bad:
            raise RequestError(f"{self.name}: found no text, expected a line or more; give another")

    def check(self, answer: Callable[[Row], object]) -> None:
        """Asks ``answer``, before anything runs, whether it raises RequestError for a row."""
        for row in self.rows:
            if row.fields:
                with self._judging(row):
                    answer(row)

    @property
    def texts(self) -> list[str]:
        """All fields of all rows."""
        return [field for row in self.rows for field in row.fields]

    def tell_bad(self) -> None:
        """A line on stderr, if any was left out."""
        if self.num_bad:
            lines = "line" if self.num_bad == 1 else "lines"
            say(f"pocketlm: left out {self.num_bad:,} bad {lines}; the first: {self._first_bad}")

    @contextmanager
    def _judging(self, row: Row) -> Iterator[None]:
        try:
            yield
        except RequestError as error:
            if not self._skip_bad:
                advice = "" if self._skip_bad is None else ", or leave such lines out: --skip-bad"
                raise RequestError(f"{row.place}: {error}{advice}") from error
            row.fields = ()
            self.num_bad += 1
            self._first_bad = self._first_bad or f"{row.place}: {error}"


def _lines(path: Traversable) -> list[bytes]:
    if path == STDIN:
        data = sys.stdin.buffer.read()
    else:
        data = path.read_bytes()
    lines = data.removeprefix(codecs.BOM_UTF8).split(b"\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix(b"\r") for line in lines]


def _fields(line: bytes, columns: Sequence[str], optional: Sequence[str]) -> tuple[str, ...]:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"found the byte {line[error.start]:#04x} at {error.start}, expected UTF-8 text; save "
            "the file as UTF-8"
        ) from error
    if not text.strip():
        return ()
    if not columns:
        return (text,)
    fields = text.split("\t")
    most = len(columns) + len(optional)
    if not len(columns) <= len(fields) <= most:
        expected = "<TAB>".join([*columns, *optional])
        count = f"{len(columns)} or {most}" if optional else f"{most}"
        raise RequestError(
            f"found {len(fields)} {'field' if len(fields) == 1 else 'fields'}, expected {count}: "
            rf"{expected}; correct the line, where a tab inside a text is written \t"
        )
    return tuple(map(unescape, fields))


def escape(text: str) -> str:
    r"""``text`` as a field: what ``unescape`` takes back; tabs and newlines become \t and \n."""
    for character, spelling in (("\\", "\\\\"), ("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(character, spelling)
    return text


def print_row(fields: Sequence[object]) -> None:
    """A line of output, at once."""
    click.echo("\t".join(escape(str(field)) for field in fields))


def use_utf8() -> None:
    """Output is UTF-8, whatever the locale says; a terminal keeps what it can show."""
    if not sys.stdout.isatty() and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8")


def in_turn(rows: Sequence[Row], what: str) -> Iterator[Row]:
    """The rows, with how far it is on stderr if that, but not stdout, is a terminal."""
    if sys.stdout.isatty() or not sys.stderr.isatty():
        yield from rows
        return
    from pocketlm.commands.measuring import progress_bar  # what draws is not always needed

    with progress_bar(what) as show:
        for row in rows:
            yield row
            show(row.number / len(rows), f"{what}, line {row.number:,} of {len(rows):,}")
