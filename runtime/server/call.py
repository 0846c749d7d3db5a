"""One request under way: what it asks for, and how it is answered."""

from __future__ import annotations

import asyncio
import json
from array import array
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec
from starlette.types import Receive, Scope, Send

from ...export.errors import RequestError
from ...export.strict_json import parse_json_object
from ..openai_form import Each
from .api.wrong_body import wrong
from .errors import ApiError, ending, told
from .held_bytes import Held
from .models.threads import in_thread

if TYPE_CHECKING:
    from .service import Service

JSON = b"application/json"
EVENTS = b"text/event-stream; charset=utf-8"
EVENT_END = b"\n\n"  # nothing else has it
DONE = b"data: [DONE]\n\n"
PART_BYTES = 65_536  # of an answer that are written at once
# Of an answer that is encoded in turns: levels that are taken apart, down to a token with its
# alternatives, and numbers or words that are encoded at once.
PARTED, AT_ONCE = 5, 10_000

LARGE_BYTES = 100_000  # of a body
# Fields that have a form compiled, of any kind of body.
FORMS = ("json_schema", "regex", "choices", "grammar", "response_format", "tools", "text")

_encoder = json.JSONEncoder(allow_nan=False, separators=(",", ":"), default=list)

Found = TypeVar("Found", bound=msgspec.Struct)


@dataclass(frozen=True)
class Call:
    """A request, its ``id``, and the ``service`` that answers it.

    body        of its endpoint
    is_large    whether it is so large that all that is done with it takes its time
    held        what it takes of memory, which ends with it
    """

    scope: Scope
    receive: Receive
    send: Send
    service: Service
    body: Any = None
    is_large: bool = False
    held: Held | None = None

    @property
    def is_laborious(self) -> bool:
        """Whether to make of it what is to be computed may take seconds."""
        return self.is_large or any(getattr(self.body, name, None) for name in FORMS)

    @property
    def id(self) -> str:
        """What the log and the answer name it by."""
        return cast(str, self.scope["state"]["request_id"])

    def hold(self, num_bytes: int) -> None:
        """Has it take so much more of memory. Raises ApiError (503) where others leave no room."""
        assert self.held is not None
        self.held.grow(num_bytes)

    async def answer(
        self, value: Any, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        """Answers with ``value`` as JSON."""
        await self.answer_bytes(encoded(value), JSON, status, headers)

    async def answer_bytes(
        self,
        data: bytes,
        content_type: bytes,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Answers with ``data``."""
        given = [(b"content-type", content_type), (b"content-length", str(len(data)).encode())]
        given += [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()]
        await self.send({"type": "http.response.start", "status": status, "headers": given})
        await self._write(data, more=False)

    async def answer_in_turns(self, value: Any) -> None:
        """Answers with ``value`` as JSON, which may be megabytes, made as the client takes it.

        Of what has more than one part the length is not told before: the parts are chunks.
        """
        parts = parts_of(value)
        first = next(parts)
        if len(first) < PART_BYTES:
            return await self.answer_bytes(first, JSON)
        headers = [(b"content-type", JSON)]
        await self.send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._write(first)
        async for part in in_turns(parts):
            await self._write(part)
        await self._write(b"", more=False)

    async def stream(self, events: AsyncIterator[bytes]) -> None:
        """Answers with server-sent ``events`` as they come, an error among them if one is raised.

        A large one comes in parts; what goes wrong in the midst of it cuts the answer off.
        The first is awaited before the answer begins: until then an error is an answer of its own.
        """
        first = await anext(events)
        headers = [(b"content-type", EVENTS), (b"cache-control", b"no-store")]
        await self.send({"type": "http.response.start", "status": 200, "headers": headers})
        part = first  # or all of an event
        try:
            await self._write(first)
            async for part in events:
                await self._write(part)
        except asyncio.CancelledError:
            if part and not part.endswith(EVENT_END):
                raise
            # Where it is the client who left, nothing of it goes anywhere.
            await self._write(event_of(ending().body))
        except Exception as error:
            if part and not part.endswith(EVENT_END):
                raise
            self.service.log.failed(self.id, error)
            await self._write(event_of(told(error).body))
        await self._write(b"", more=False)

    async def _write(self, data: bytes | bytearray, more: bool = True) -> None:
        """Waits until the client has taken what was written before; its connection cuts it off."""
        for at in range(0, len(data) or 1, PART_BYTES):
            part, comes = data[at : at + PART_BYTES], more or at + PART_BYTES < len(data)
            await self.send({"type": "http.response.body", "body": part, "more_body": comes})


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


async def in_turns(parts: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Each made by a thread, so that others have their turn, and once it is asked for."""
    while part := await in_thread(lambda: next(parts, b"")):
        yield part


def _parts(value: Any, levels: int) -> Iterator[str]:
    """Python's encoder lets no other thread run before it is done with what it is given."""
    if isinstance(value, Each) or levels and _is_nested(value):
        yield "["
        for mark, part in zip(_marks(), value, strict=False):
            yield mark
            yield from _parts(part, max(levels - 1, 0))
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


def event_of(value: Any, name: str | None = None) -> bytes:
    """A server-sent event."""
    return _head_of(name) + encoded(value) + EVENT_END


async def event_in_turns(value: Any, name: str | None = None) -> AsyncIterator[bytes]:
    """The same of what may be megabytes, in parts."""
    yield _head_of(name)
    async for part in in_turns(parts_of(value)):
        yield part
    yield EVENT_END


def _head_of(name: str | None) -> bytes:
    return b"data: " if name is None else b"event: " + name.encode() + b"\ndata: "


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


def parsed(data: bytes, kind: type[Found]) -> Found:
    """The body ``data`` as ``kind``. Raises ApiError (400) that names the field."""
    try:
        found = parse_json_object(data, "the body", RequestError, advice="correct it")
    except RequestError as error:
        raise ApiError(400, str(error), code="invalid_json") from error
    try:
        return msgspec.convert(found, kind)
    except msgspec.ValidationError as error:
        raise wrong(error, found, kind) from error


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
