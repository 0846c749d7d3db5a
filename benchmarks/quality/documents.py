"""A text file goes in, its documents come out, each in blocks; neither is ever held as a whole.

    a text with a separator     split there, and without the line ends at the ends of each document
    NAME.jsonl                  a document a line: the field "text" of a JSON object
    any other text              one document, as it is

What is empty between two separators is no document.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from ...export.errors import RequestError
from ..json_lines import read_lines

BLOCK_SIZE = 1 << 16  # bytes read at once
LINE_ENDS = "\r\n"
Pieces = Iterator[tuple[int, str]]  # (number of its document, a piece of it)


def is_json_lines(path: Path) -> bool:
    """Whether the file has a document a line, by its name."""
    return path.suffix.lower() == ".jsonl"


@dataclass(frozen=True)
class Text:
    """A text file that is known to be good, and what there is in it."""

    path: Path
    documents: int
    bytes: int  # of the documents, in UTF-8


def check_files(paths: Sequence[Path], separator: str | None = None) -> list[Text]:
    """Reads texts once, as ``read_documents`` will, and says what there is in each.

    Raises the RequestError that that would end with, and one for no text, for what is no regular
    file, for a text without any document, and for a ``separator`` that divides none of them.
    """
    if not paths:
        raise RequestError("found no text, expected at least one; give one")
    for path in paths:
        check_regular(path)
    if separator is not None:
        _check_separator(paths, separator)
    return [_check_file(path, separator) for path in paths]


def check_regular(path: Path) -> None:
    """Raises RequestError for a pipe or a device: what is read twice is not there again."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise RequestError(
            f"{path}: found {'a pipe' if path.is_fifo() else 'a device or socket'}, expected a "
            "regular file: a text is read more than once; write it to a file and give that"
        )


def _check_separator(paths: Sequence[Path], separator: str) -> None:
    if not separator:
        raise RequestError(
            "split is empty, expected what stands between the documents of a text; is a variable "
            "not set? Leave it out for a text that is one document"
        )
    plain = [path for path in paths if not is_json_lines(path)]
    if not plain:
        raise RequestError(
            "split is given with JSON lines alone, expected a text to split: these have a document "
            "a line; leave it out"
        )
    if not any(_has(path, separator) for path in plain):
        raise RequestError(
            f"split is {separator!r:.60}, expected what stands between the documents of a text: "
            f"found it nowhere in {', '.join(map(str, plain)):.200}; correct it or leave it out"
        )


def _has(path: Path, separator: str) -> bool:
    return any(number for number, _ in _split(read_text(path), separator))


def _check_file(path: Path, separator: str | None) -> Text:
    documents = num_bytes = 0
    for document in read_documents(path, separator):
        documents += 1
        num_bytes += sum(len(piece.encode()) for piece in document)
    if not documents:
        raise RequestError(f"{path}: found no document, expected at least one; give another text")
    return Text(path, documents, num_bytes)


def read_documents(path: Path, separator: str | None = None) -> Iterator[Iterator[str]]:
    """The documents of a file, each to be read before the next.

    Raises RequestError for a file that cannot be read, is empty, not UTF-8, or JSON lines without a
    text.
    """
    for _, pieces in groupby(_pieces(path, separator), key=lambda piece: piece[0]):
        yield (text for _, text in pieces)


def _pieces(path: Path, separator: str | None) -> Pieces:
    if is_json_lines(path):
        yield from enumerate(line.text("text", may_be_empty=True) for line in read_lines(path))
    elif separator is None:
        yield from ((0, block) for block in read_text(path))
    else:
        yield from _trimmed(_split(read_text(path), separator))


def _split(blocks: Iterator[str], separator: str) -> Pieces:
    """Cut as ``str.split`` cuts the whole; a separator may lie across two blocks."""
    number, held = 0, ""
    for block in blocks:
        *ended, held = (held + block).split(separator)
        for text in ended:
            yield number, text
            number += 1
        cut = max(0, len(held) - len(separator) + 1)
        yield number, held[:cut]
        held = held[cut:]
    yield number, held


def _trimmed(pieces: Pieces) -> Pieces:
    """Without the line ends at the ends of a document, and without what is empty then."""
    for number, group in groupby(pieces, key=lambda piece: piece[0]):
        begun, held = False, ""
        for _, text in group:
            text = held + text if begun else text.lstrip(LINE_ENDS)
            kept = text.rstrip(LINE_ENDS)
            held = text[len(kept) :]
            begun = begun or bool(kept)
            if kept:
                yield number, kept


def read_text(path: Path) -> Iterator[str]:
    """A file as it is, in blocks; RequestError if it cannot be read, is empty or not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    done, line = 0, 1
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK_SIZE):
                pending = len(decoder.getstate()[0])
                try:
                    yield decoder.decode(block)
                except UnicodeDecodeError as error:
                    raise _not_utf8(path, error, done - pending, line) from error
                done += len(block)
                line += block.count(b"\n")
            try:
                decoder.decode(b"", final=True)
            except UnicodeDecodeError as error:
                raise _not_utf8(path, error, done - len(error.object), line) from error
    except OSError as error:
        raise RequestError(
            f"{path}: cannot be read ({error.strerror or error}), expected a text file; "
            "check path and permissions"
        ) from error
    if done == 0:
        raise RequestError(f"{path}: found an empty file, expected a text; give another")


def _not_utf8(path: Path, error: UnicodeDecodeError, before: int, line: int) -> RequestError:
    line += error.object[: error.start].count(b"\n")
    return RequestError(
        f"{path}: found the byte {error.object[error.start]:#04x} at {before + error.start} "
        f"(line {line}), expected UTF-8 text; convert it, for instance with: "
        "iconv -f latin1 -t utf-8"
    )
