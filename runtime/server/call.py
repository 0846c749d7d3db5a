"""One request under way: what it asks for, and how it is answered."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice, repeat
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec
from starlette.types import Receive, Scope, Send

from ...export.errors import RequestError
from ...export.strict_json import parse_json_object
from ..openai_form import Each
from .api.validation_errors import wrong
from .errors import ApiError, as_api_error, ending
from .held_bodies import HeldBody

if TYPE_CHECKING:
    from .service import Service

JSON = b"application/json"
EVENTS = b"text/event-stream; charset=utf-8"
DONE = b"data: [DONE]\n\n"
PART_BYTES = 65_536  # of an answer that are written at once
# Of an answer that is encoded in turns: levels that are taken apart, down to the part of a message,
# in its content, in an output, in a response, in an event. And how many numbers or words are
# encoded, or entries of a field checked, in one go, during which Python lets no other thread run.
PARTED, AT_ONCE = 6, 10_000

LARGE_BYTES = 100_000  # of a body
# Keys and values in one, and arrays and objects among them. Python's parser makes strings, and its
# collector of garbage looks at arrays and objects, in one go, which all others wait for. The tokens
# of 40 prompts of 7,000 are less, and so are 10,000 messages with calls of functions.
MOST_VALUES, MOST_NESTED = 300_000, 50_000
# Fields that have a form compiled, of any kind of body.
FORMS = ("json_schema", "regex", "choices", "grammar", "response_format", "tools", "text")

_encoder = json.JSONEncoder(allow_nan=False, separators=(",", ":"), default=list)

Body = TypeVar("Body", bound=msgspec.Struct)
Prepared = TypeVar("Prepared")


@dataclass(frozen=True)
class Call:
    """A request, its ``id``, and the ``service`` that answers it.

    body        of its endpoint
    is_large    whether it is so large that all that is done with it takes its time
    """

    scope: Scope
    receive: Receive
    send: Send
    service: Service
    body: Any = None
    is_large: bool = False

    @property
    def is_laborious(self) -> bool:
        """Whether to make of it what is to be computed may take seconds."""
        return self.is_large or any(getattr(self.body, name, None) for name in FORMS)

    @property
    def id(self) -> str:
        """What the log and the answer name it by."""
        return cast(str, self.scope["state"]["request_id"])

    async def prepare(self, work: Callable[[], Prepared]) -> Prepared:
        """What ``work`` makes of it, by a thread that may take its time."""
        return await self.service.prepare(work, laborious=self.is_laborious)

    async def answer(
        self, value: Any, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        """Answers with ``value`` as JSON."""
        await self.answer_bytes(encoded(value), JSON, status, headers)

    async def answer_bytes(
        self,
        data: bytes | bytearray,
        content_type: bytes,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Answers with ``data``."""
        given = [(b"content-type", content_type), (b"content-length", str(len(data)).encode())]
        given += [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()]
        await self.send({"type": "http.response.start", "status": status, "headers": given})
        await self._write(data, more=False)

    async def stream(self, events: AsyncIterator[bytes]) -> None:
        """Answers with server-sent ``events`` as they come, an error among them if one is raised.

        The first is awaited before the answer begins: until then an error is an answer of its own.
        """
        first = await anext(events)
        headers = [(b"content-type", EVENTS), (b"cache-control", b"no-store")]
        await self.send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            await self._write(first)
            async for event in events:
                await self._write(event)
                await asyncio.sleep(0)  # where many are there at once, others come in between
        except asyncio.CancelledError:
            # Where it is the client who left, nothing of it goes anywhere.
            await self._write(event_of(ending().body))
        except Exception as error:
            self.service.log.failed(self.id, error)
            await self._write(event_of(as_api_error(error).body))
        await self._write(b"", more=False)

    async def _write(self, data: bytes | bytearray, more: bool = True) -> None:
        """Waits until the client has taken what was written before; its connection cuts it off."""
        for at in range(0, len(data) or 1, PART_BYTES):
            part, comes = bytes(data[at : at + PART_BYTES]), more or at + PART_BYTES < len(data)
            await self.send({"type": "http.response.body", "body": part, "more_body": comes})


def encoded(value: Any) -> bytes:
    """``value`` as JSON; in ASCII, which has no half of a character and no line's end but ours."""
    return _encoder.encode(value).encode("ascii")


def encoded_in_turns(value: Any) -> bytearray:
    """The same of what may be megabytes, for a thread beside others: none waits for all of it.

    What ``Each`` makes is written as it comes, so that it is never there as a whole.
    """
    data = bytearray()
    for part in _parts(value, PARTED):
        data += part.encode("ascii")
    return data


def _parts(value: Any, levels: int) -> Iterator[str]:
    """Python's encoder lets no other thread run before it is done with what it is given."""
    if isinstance(value, Each) or levels and _is_nested(value):
        inner = 0 if isinstance(value, Each) else levels - 1  # a token with its alternatives
        yield "["
        for mark, part in zip(_marks(), value, strict=False):
            yield mark
            yield from _parts(part, inner)
        yield "]"
    elif not levels or not isinstance(value, dict | list):
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
            yield mark + _encoder.encode(value[start : start + AT_ONCE])[1:-1]
        yield "]"


def _is_nested(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict | list)


def _marks() -> Iterator[str]:
    """Before each part."""
    return chain([""], repeat(","))


def event_of(
    value: Any, name: str | None = None, encode: Callable[[Any], bytes | bytearray] = encoded
) -> bytes:
    """A server-sent event."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + encode(value) + b"\n\n"


async def read_body(receive: Receive, most_bytes: int, seconds: float, held: HeldBody) -> bytes:
    """The body of a request, for which ``held`` has room.

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
                held.grow(len(part))
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


async def until_gone(work: Callable[[], Coroutine[Any, Any, None]], receive: Receive) -> None:
    """Runs ``work``, and cancels it when the client leaves: that is ConnectionError.

    Cancelled itself, it waits for what ``work`` does about it.
    """
    task = asyncio.create_task(work())
    gone = asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            await _cancelled(task)
            raise ConnectionError("the client left")
        task.result()
    except asyncio.CancelledError:
        await _cancelled(task)
        raise
    finally:
        gone.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancelled(task: asyncio.Task[None]) -> None:
    """Once it has ended, however it does."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # or asyncio complains that nobody asked for it
