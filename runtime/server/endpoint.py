"""An endpoint as an ASGI application: its body is read and checked, errors become answers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import msgspec
from starlette.types import Message, Receive, Scope, Send

from ...export.errors import SLIDE
from .call import Call
from .errors import TOO_LONG, ApiError, as_api_error, ending, let_go
from .held_bytes import bytes_parsed
from .request_body import LARGE_BYTES, parsed, read_body
from .service import Service

# The fields that hold what a model reads, of which a body has one.
READ = ("input", "messages", "prompt", "text", "token_ids", "context", "continuations")
# What the engine calls that.
CALLED = ("prompt", "text")

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
                await _until_gone(partial(self._endpoint.handle, call), receive)
        except ConnectionError as error:
            let_go(error)
        except asyncio.CancelledError:  # the server ends; a stream has told it itself
            if not begun:
                await call.answer(ending().body, ending().status, ending().headers)
        except Exception as error:
            if begun:  # what was told so far cannot be taken back: whoever reads sees a cut
                raise
            self._service.log.failed(call.id, error)
            answer = as_api_error(error)
            let_go(error)
            _name_as_in(call.body, answer)
            if answer.code == TOO_LONG:
                answer.param = _read_of(call.body)
                if answer.slides and getattr(call.body, "may_slide", False):
                    answer.message += SLIDE
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
        is_large = len(data) >= LARGE_BYTES
        if is_large:
            call.hold(bytes_parsed(data))
        parse = partial(parsed, data, kind)
        body = await self._service.prepare(parse, laborious=True) if is_large else parse()
        return replace(call, body=body, is_large=is_large)


def _read_of(body: Any) -> str | None:
    """The field of ``body`` that is too long, if anything is."""
    return next((name for name in READ if getattr(body, name, None)), None)


def _name_as_in(body: Any, error: ApiError) -> None:
    """Has ``error`` name what a model reads as ``body`` does."""
    name, read = error.param, _read_of(body)
    if name in CALLED and read is not None and getattr(body, name, None) is None:
        error.message = re.sub(rf"^{name}\b", read, error.message)
        error.param = read


async def _until_gone(work: Callable[[], Coroutine[Any, Any, None]], receive: Receive) -> None:
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
