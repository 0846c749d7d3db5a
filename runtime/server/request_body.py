"""The body of a request: read as it comes, and checked against the type of its endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, TypeVar

import msgspec
from starlette.types import Receive

from ...export.errors import RequestError
from ...export.strict_json import parse_json_object
from .api.validation_errors import wrong
from .errors import ApiError

LARGE_BYTES = 100_000  # from which all that is done with a body takes its time
# Keys and values in one, and arrays and objects among them. Python's parser makes strings, and its
# collector of garbage looks at arrays and objects, in one go, which all others wait for. The tokens
# of 40 prompts of 7,000 are less, and so are 10,000 messages with calls of functions.
MOST_VALUES, MOST_NESTED = 300_000, 50_000
AT_ONCE = 10_000  # entries of a field that are checked in one go

Body = TypeVar("Body", bound=msgspec.Struct)


async def read_body(
    receive: Receive, most_bytes: int, seconds: float, hold: Callable[[int], None]
) -> bytes:
    """The body of a request, for which ``hold`` finds room.

    Raises ApiError (413, 408, 503), and ConnectionError if it breaks off.
    """
    data = bytearray()
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ConnectionError("the client left")
                part = message.get("body", b"")
                hold(len(part))
                data += part
                if len(data) > most_bytes:
                    raise ApiError(
                        413,
                        f"the body has more than {most_bytes:,} bytes, expected fewer; shorten it",
                        headers={"Connection": "close"},
                    )
                if not message.get("more_body"):
                    return bytes(data)
    except TimeoutError as error:
        raise ApiError(
            408,
            f"the body did not arrive within {seconds:g} seconds, expected all of it; send it "
            "faster",
            headers={"Connection": "close"},
        ) from error


def parsed(data: bytes, kind: type[Body]) -> Body:
    """The body ``data`` as ``kind``. Raises ApiError (400) that names the field."""
    try:
        found = parse_json_object(
            data,
            "the body",
            RequestError,
            MOST_VALUES,
            advice="correct it",
            max_nested=MOST_NESTED,
        )
    except RequestError as error:
        raise ApiError(400, str(error), code="invalid_json") from error
    pieces = {name: list(_pieces(value)) for name, value in found.items()}
    first = {name: parts[0] for name, parts in pieces.items()}
    body = _checked(first, kind)
    for name, (_, *rest) in pieces.items():
        whole = getattr(body, name) if rest else None
        for place, piece in enumerate(rest, 1):
            more = getattr(_checked(first | {name: piece}, kind, place * AT_ONCE), name)
            if isinstance(whole, dict):
                whole |= more
            else:
                whole += more
    return body


def _pieces(value: Any) -> Iterator[Any]:
    """``value``, which is checked in one go, or what has many entries by so many at once."""
    if not isinstance(value, dict | list) or len(value) <= AT_ONCE:
        yield value
    elif isinstance(value, list):
        for start in range(0, len(value), AT_ONCE):
            yield value[start : start + AT_ONCE]
    else:
        entries = iter(value.items())
        while piece := dict(islice(entries, AT_ONCE)):
            yield piece


def _checked(found: Mapping[str, Any], kind: type[Body], start: int = 0) -> Body:
    """``start`` is where what may be a piece of a field began in it."""
    try:
        return msgspec.convert(found, kind)
    except msgspec.ValidationError as error:
        raise wrong(error, found, kind, start) from error
