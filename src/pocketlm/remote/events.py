"""Server-sent events: bytes as they come from a network become the data of each event.

Source: the HTML standard, "Server-sent events", 9.2.5 and 9.2.6. Nothing but data is of use here:
names, ids and times to retry after are passed over, as are comments.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterable, Iterator

MOST_CHARACTERS = 64_000_000  # of an event


def data_of_events(chunks: Iterable[bytes]) -> Iterator[str]:
    """The data of each event that is whole; ``chunks`` may break anywhere, even in a character.

    Raises ValueError for an event without an end in sight.
    """
    data: list[str] = []
    size = 0
    for line in _lines(chunks):
        field, _, value = line.partition(":")
        if field == "data":
            data.append(value.removeprefix(" "))
            size += len(value)
        if size > MOST_CHARACTERS:
            raise _endless()
        if not line:
            if data:
                yield "\n".join(data)
            data, size = [], 0


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Those that have ended, by LF, CR or both."""
    characters = codecs.getincrementaldecoder("utf-8-sig")("replace")
    decoder = io.IncrementalNewlineDecoder(characters, translate=True)
    begun = ""
    for chunk in chunks:
        *lines, begun = (begun + decoder.decode(chunk)).split("\n")
        yield from lines
        if len(begun) > MOST_CHARACTERS:
            raise _endless()
    yield from (begun + decoder.decode(b"", final=True)).split("\n")[:-1]


def _endless() -> ValueError:
    return ValueError(f"an event has more than {MOST_CHARACTERS:,} characters")
