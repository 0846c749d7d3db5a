"""One request under way: what it asks for, and how it is answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from starlette.types import Receive, Scope, Send

from .errors import as_api_error, ending
from .held_bytes import Held
from .json_encoding import PART_BYTES, encoded, parts_of

if TYPE_CHECKING:
    from .service import Service

JSON = b"application/json"
EVENTS = b"text/event-stream; charset=utf-8"
EVENT_END = b"\n\n"  # nothing else has it
DONE = b"data: [DONE]\n\n"
# Fields that have a form compiled, of any kind of body.
FORMS = ("json_schema", "regex", "choices", "grammar", "response_format", "tools", "text")

Prepared = TypeVar("Prepared")


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

    async def prepare(self, work: Callable[[], Prepared]) -> Prepared:
        """What ``work`` makes of it, by a thread that may take its time."""
        return await self.service.prepare(work, laborious=self.is_laborious)

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
        part = await self._next_of(parts)
        if len(part) < PART_BYTES:
            return await self.answer_bytes(part, JSON)
        headers = [(b"content-type", JSON)]
        await self.send({"type": "http.response.start", "status": 200, "headers": headers})
        while part:
            await self._write(part)
            part = await self._next_of(parts)
        await self._write(b"", more=False)

    async def stream(self, events: AsyncIterator[bytes]) -> None:
        """Answers with server-sent ``events`` as they come, an error among them if one is raised.

        A large one comes in parts; what goes wrong in the midst of it cuts the answer off.
        The first is awaited before the answer begins: until then an error is an answer of its own.
        """
        part = await anext(events)  # which may be all of an event
        headers = [(b"content-type", EVENTS), (b"cache-control", b"no-store")]
        await self.send({"type": "http.response.start", "status": 200, "headers": headers})
        since_others = 0
        is_whole = True  # the last event of what was sent
        try:
            while part:
                for at in range(0, len(part), PART_BYTES):
                    await self._write(part[at : at + PART_BYTES])
                    is_whole = False
                is_whole = part.endswith(EVENT_END)
                since_others += len(part)
                if since_others >= PART_BYTES:  # many were there at once: others come in between
                    since_others = 0
                    await asyncio.sleep(0)
                part = await anext(events, b"")
        except asyncio.CancelledError:
            if not is_whole:
                raise
            # Where it is the client who left, nothing of it goes anywhere.
            await self._write(event_of(ending().body))
        except Exception as error:
            if not is_whole:
                raise
            self.service.log.failed(self.id, error)
            await self._write(event_of(as_api_error(error).body))
        await self._write(b"", more=False)

    async def event_in_turns(self, value: Any, name: str | None = None) -> AsyncIterator[bytes]:
        """A server-sent event that may be megabytes, in parts."""
        parts = parts_of(value)
        yield _head_of(name)
        while part := await self._next_of(parts):
            yield part
        yield EVENT_END

    async def _next_of(self, parts: Iterator[bytes]) -> bytes:
        """Made by a thread; b"" after the last."""
        return await self.service.encode(partial(next, parts, b""))

    async def _write(self, data: bytes, more: bool = True) -> None:
        """Waits until the client has taken what was written before; its connection cuts it off."""
        for at in range(0, len(data) or 1, PART_BYTES):
            part, comes = data[at : at + PART_BYTES], more or at + PART_BYTES < len(data)
            await self.send({"type": "http.response.body", "body": part, "more_body": comes})


def event_of(value: Any, name: str | None = None) -> bytes:
    """A server-sent event."""
    return _head_of(name) + encoded(value) + EVENT_END


def _head_of(name: str | None) -> bytes:
    return b"data: " if name is None else b"event: " + name.encode() + b"\ndata: "
