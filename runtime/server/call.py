"""One request under way: what it asks for, and how it is answered."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec
from starlette.types import Receive, Scope, Send

from ...export.errors import RequestError
from ...export.strict_json import parse_json_object
from .errors import ApiError, told
from .wrong_body import wrong

if TYPE_CHECKING:
    from .service import Service

JSON = b"application/json"
EVENTS = b"text/event-stream; charset=utf-8"
DONE = b"data: [DONE]\n\n"

Found = TypeVar("Found", bound=msgspec.Struct)


@dataclass(frozen=True)
class Call:
    """A request, its ``id``, and the ``service`` that answers it; ``body`` is of its endpoint."""

    scope: Scope
    receive: Receive
    send: Send
    service: Service
    body: Any = None

    @property
    def id(self) -> str:
        """What the log and the answer name it by."""
        return cast(str, self.scope["state"]["request_id"])

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

    async def stream(self, events: AsyncIterator[bytes]) -> None:
        """Answers with server-sent ``events`` as they come, an error among them if one is raised.

        The first is awaited before the answer begins: until then an error is an answer of its own.
        """
        first = await anext(events)
        headers = [(b"content-type", EVENTS), (b"cache-control", b"no-store")]
        await self.send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._write(first)
        try:
            async for event in events:
                await self._write(event)
        except Exception as error:
            self.service.log.failed(self.id, error)
            await self._write(event_of(told(error).body))
        await self._write(b"", more=False)

    async def _write(self, data: bytes, more: bool = True) -> None:
        """Raises ConnectionError when the client takes nothing for too long; it is cut off then."""
        try:
            async with asyncio.timeout(self.service.settings.stall_seconds):
                await self.send({"type": "http.response.body", "body": data, "more_body": more})
        except TimeoutError as error:
            self.scope["state"]["abort"]()
            raise ConnectionError("the client reads nothing") from error


def encoded(value: Any) -> bytes:
    """``value`` as JSON; in ASCII, which has no half of a character."""
    return json.dumps(value, allow_nan=False).encode("ascii")


def event_of(value: Any, name: str | None = None) -> bytes:
    """A server-sent event."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + encoded(value) + b"\n\n"


async def read_body(receive: Receive, most_bytes: int, seconds: float) -> bytes:
    """The body of a request. Raises ApiError (413, 408), and ConnectionError if it breaks off."""
    data = bytearray()
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ConnectionError("the client left")
                data += message.get("body", b"")
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


async def until_gone(work: Callable[[], Any], receive: Receive) -> None:
    """Runs ``work`` (a coroutine function), and cancels it when the client leaves."""
    task = asyncio.ensure_future(work())
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
        await task
    except asyncio.CancelledError:
        task.cancel()
        if not gone.done():  # the server itself is ending
            raise
    finally:
        gone.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
