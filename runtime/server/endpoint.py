"""An endpoint as an ASGI application: its body is read and checked, errors become answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import msgspec
from starlette.types import Message, Receive, Scope, Send

from .call import LARGE_BYTES, Call, parsed, read_body, until_gone
from .errors import TOO_LONG, ending, let_go, told
from .held_bytes import bytes_parsed
from .service import Service

# The fields that hold what a model reads, of which a body has one.
READ = ("input", "messages", "prompt", "text", "token_ids", "context")

Handle = Callable[[Call], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class Endpoint:
    """What is served at a path.

    body        the type of what is sent there; None where nothing is
    summary     what its description in the OpenAPI document says
    is_open     whether it is there for those without a key
    answer      the type of what it answers with; None: a JSON object, or no JSON
    answers_in  the media type of that
    streams     whether it may also answer with events
    """

    method: str
    path: str
    handle: Handle
    summary: str
    body: type[msgspec.Struct] | None = None
    is_open: bool = False
    answer: type[msgspec.Struct] | None = None
    answers_in: str = "application/json"
    streams: bool = False

    def app(self, service: Service) -> Application:
        """The application that serves it."""
        return Application(self, service)


class Application:
    """The ASGI application of an endpoint."""

    def __init__(self, endpoint: Endpoint, service: Service) -> None:
        self._endpoint = endpoint
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False
        scope["state"]["endpoint"] = self._endpoint.path

        async def noticing(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        call = Call(scope, receive, noticing, self._service)
        try:
            with self._service.held.one() as held:
                call = await self._with_body(replace(call, held=held))
                await until_gone(partial(self._endpoint.handle, call), receive)
        except ConnectionError as error:
            let_go(error)
        except asyncio.CancelledError:  # the server ends; a stream has told it itself
            if not begun:
                await call.answer(ending().body, ending().status, ending().headers)
        except Exception as error:
            if begun:  # what was told so far cannot be taken back: whoever reads sees a cut
                raise
            self._service.log.failed(call.id, error)
            answer = told(error)
            let_go(error)
            if answer.code == TOO_LONG:
                answer.param = _read_of(call.body)
            await call.answer(answer.body, answer.status, answer.headers)
        finally:
            self._service.held.rest(held)

    async def _with_body(self, call: Call) -> Call:
        kind = self._endpoint.body
        if kind is None:
            return call
        settings = self._service.settings
        most, seconds = settings.most_body_bytes, settings.body_seconds
        data = await read_body(call.receive, most, seconds, call.hold)
        loop = asyncio.get_running_loop()
        is_large = len(data) >= LARGE_BYTES
        if is_large:
            call.hold(bytes_parsed(data))
        body = (
            await loop.run_in_executor(self._service.laborious, parsed, data, kind)
            if is_large
            else parsed(data, kind)
        )
        _bound(body, settings.max_seconds)
        return replace(call, body=body, is_large=is_large)


def _read_of(body: Any) -> str | None:
    """The field of ``body`` that is too long, if anything is."""
    return next((name for name in READ if getattr(body, name, None)), None)


def _bound(body: Any, most_seconds: float | None) -> None:
    """Has a body that asks for texts ask for no more time than they may take."""
    if most_seconds is None or "max_seconds" not in body.__struct_fields__:
        return
    if getattr(body, "beams", None) is None:  # which have no time of their own
        asked = body.max_seconds
        body.max_seconds = most_seconds if asked is None else min(asked, most_seconds)
