"""What completions and chats have in common: a body becomes requests, pieces become events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

from .. import openai_form
from ..openai_form import OpenAIRequest, choice, finish_reason, logprobs_of, token_logprobs, usage
from ..request import ChatPrompt, Request
from ..text import Piece
from .bodies import Chat, Completion, fields_of
from .call import DONE, Call, event_of
from .engine import Engine, Texts
from .service import Service

# Decided here, and not by the model.
OURS = ("stream", "n", "best_of", "echo", "suffix", "tools", "tool_choice")


async def generate(call: Call, *, chat: bool) -> None:
    """Answers with the texts that ``call.body`` asks for, at once or as they come."""
    body: Completion | Chat = call.body
    count = body.n or 1
    async with call.service.pool.use(body.model) as engine:
        with engine.room(count) as room:
            asked, requests = await prepared(call.service, partial(_requests, engine, body, count))
            texts = room.start(requests)
            reply = Reply(call, engine, asked, texts, chat=chat)
            if body.stream:
                options = body.stream_options
                await call.stream(reply.events(bool(options and options.include_usage)))
            else:
                await call.answer(await reply.whole())


async def prepared(service: Service, make: Callable[[], Any]) -> Any:
    """What ``make`` returns, by a thread that may take its time."""
    return await asyncio.get_running_loop().run_in_executor(service.preparing, make)


def _requests(
    engine: Engine, body: Completion | Chat, count: int
) -> tuple[OpenAIRequest, list[Request]]:
    """Of each text; raises RequestError."""
    given = {name: value for name, value in fields_of(body).items() if name not in OURS}
    url = openai_form.CHAT if isinstance(body, Chat) else openai_form.COMPLETION
    asked = openai_form.read_request(url, given)
    model = engine.model
    prompt: ChatPrompt | Any = asked.prompt
    if asked.messages is not None:
        prompt = model.chat_prompt(asked.messages)
    request = model.request(prompt, **asked.options)
    return asked, [request.seeded(place) for place in range(count)]


class Reply:
    """The answer in OpenAI's form."""

    def __init__(
        self, call: Call, engine: Engine, asked: OpenAIRequest, texts: Texts, *, chat: bool
    ) -> None:
        self._texts = texts
        self._tokenizer = engine.model.tokenizer
        self._chat = chat
        self._logprobs = texts.jobs[0].request.logprobs is not None
        self._lengths = [0] * len(texts.jobs)  # characters told of each
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{call.id}",
            "created": int(time.time()),
            "model": asked.model or call.service.pool.names[0],
        }

    async def whole(self) -> dict[str, Any]:
        """All texts, once they have ended."""
        jobs = await self._texts.finished()
        return {
            **self._head,
            "object": "chat.completion" if self._chat else "text_completion",
            "choices": [
                choice(job.so_far(), self._tokenizer, chat=self._chat, index=index)
                for index, job in enumerate(jobs)
            ],
            "usage": usage([job.timings for job in jobs]),
        }

    async def events(self, with_usage: bool) -> AsyncIterator[bytes]:
        """Each piece as it comes."""
        if self._chat:
            for index in range(len(self._texts.jobs)):
                yield self._chunk(index, {"role": "assistant", "content": ""})
        async for batch in self._texts.batches():
            yield b"".join([self._event(index, piece) for index, piece in batch])
        if with_usage:
            told = usage([job.timings for job in self._texts.jobs])
            yield event_of({**self._named(), "choices": [], "usage": told})
        yield DONE

    def _event(self, index: int, piece: Piece | None) -> bytes:
        if piece is None:
            reason = finish_reason(self._texts.jobs[index].finish_reason)
            return self._chunk(index, {} if self._chat else "", reason=reason)
        delta = {"content": piece.text} if self._chat else piece.text
        return self._chunk(index, delta, piece)

    def _chunk(
        self, index: int, delta: Any, piece: Piece | None = None, reason: str | None = None
    ) -> bytes:
        logprobs = None
        if self._logprobs and piece is not None:
            tokens = token_logprobs(piece.steps, self._tokenizer)
            logprobs = logprobs_of(tokens, chat=self._chat, offset=self._lengths[index])
            self._lengths[index] += len(piece.text)
        field = "delta" if self._chat else "text"
        told = {"index": index, field: delta, "logprobs": logprobs, "finish_reason": reason}
        return event_of({**self._named(), "choices": [told]})

    def _named(self) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return {**self._head, "object": kind}
