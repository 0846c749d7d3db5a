"""/v1/responses: what a text says becomes items of an output, and the events that tell of them.

An answer is made of a message where there are words, and of one item for each call of a function.
Whole or streamed, it is built by the same events.

Source: the API reference of OpenAI, "Responses" and "Streaming events".
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

from ...model import Model
from ...openai_form import Token, chat_logprobs, finish_reason, token_logprobs
from ...sequence import Step
from ...text import Piece, Timings
from ...tool_calls import Arguments, Begun, CallReader, Change, Words
from ..call import Call, event_of
from ..errors import as_api_error
from ..models.engine import Engine, Texts
from . import function_calls
from .bodies import Response
from .generation import Generation, make_generation
from .response_input import as_responses, chat_of
from .terms import Terms

Event = dict[str, Any]


async def respond(call: Call) -> None:
    """Answers with the output that ``call.body`` asks for, at once or as it comes."""
    body: Response = call.body
    most_seconds = call.service.settings.max_seconds
    async with call.service.pool.use(body.model) as engine:
        with engine.room(1) as room:
            generation = await call.prepare(partial(_generation, engine.model, body, most_seconds))
            call.hold(generation.answer_bytes)
            texts = room.start_jobs(generation.makers)
            answer = Answer(call, engine, generation)
            events = answer.events(texts)
            if body.stream:
                await call.stream(answer.streamed(events))
                return
            async for _ in events:
                pass
        await call.answer_in_turns(answer.whole)


def _generation(model: Model, body: Response, most_seconds: float | None) -> Generation:
    """As ``make_generation``."""
    chat = chat_of(body)
    try:
        return make_generation(model, chat, Terms.of(chat, most_seconds), None)
    except Exception as error:
        raise as_responses(as_api_error(error)) from error


class Answer:
    """One response, which grows; ``whole`` is what there is of it."""

    def __init__(self, call: Call, engine: Engine, generation: Generation) -> None:
        self._call = call
        self._tokenizer = engine.model.tokenizer
        self._request = generation.requests[0]
        form = generation.calls
        self._reader = (
            None if form is None else function_calls.reader_of(form, self._request, self._tokenizer)
        )
        self._with_logprobs = generation.logprobs is not None
        self._tokens: list[Token] = []  # whose logprobs are still to be told
        self._open: Event | None = None  # the item that grows
        body: Response = call.body
        self.whole: dict[str, Any] = {
            "id": f"resp_{call.id}",
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": self._request.max_tokens,
            "metadata": body.metadata or {},
            "model": call.service.pool.name_of(body.model),
            "output": [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": self._request.sampling.temperature,
            "text": body.text or {"format": {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "top_p": self._request.sampling.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": body.user,
        }

    async def streamed(self, events: AsyncIterator[Event]) -> AsyncIterator[bytes]:
        """``events`` as they are sent, numbered; an error is the last of them."""
        number = 0
        async for event in self._with_error(events):
            numbered = {**event, "sequence_number": number}
            if self._repeats(event["type"]):
                async for part in self._call.event_in_turns(numbered, event["type"]):
                    yield part
            else:
                yield event_of(numbered, event["type"])
            number += 1

    async def _with_error(self, events: AsyncIterator[Event]) -> AsyncIterator[Event]:
        """``events``, and one of what goes wrong before the next; in none that is being sent."""
        try:
            async for event in events:
                yield event
        except Exception as error:
            self._call.service.log.failed(self._call.id, error)
            found = as_api_error(error)
            told = {"code": found.code, "message": found.message, "param": found.param}
            yield {"type": "error", **told}

    def _repeats(self, kind: str) -> bool:
        """Whether an event tells again what was asked for, or all that was told: megabytes."""
        return not kind.endswith(".delta") and (self._call.is_large or self._with_logprobs)

    async def events(self, texts: Texts) -> AsyncIterator[Event]:
        """What happens, until the response is whole."""
        yield self._response_event("response.created")
        yield self._response_event("response.in_progress")
        async for batch in texts.batches(streams=bool(self._call.body.stream)):
            for _, piece in batch:
                if piece is not None:
                    self._note(piece)
                for change in _changes(self._reader, piece):
                    for event in self._take(change):
                        yield event
        (job,) = texts.jobs
        is_whole = finish_reason(job.finish_reason) == "stop"
        status = "completed" if is_whole else "incomplete"
        if not self.whole["output"]:  # it says nothing
            for event in self._begin(_message()):
                yield event
        for event in self._end(status):
            yield event
        self.whole["status"] = status
        if not is_whole:
            self.whole["incomplete_details"] = {"reason": "max_output_tokens"}
        self.whole["usage"] = _usage(job.timings)
        yield self._response_event(f"response.{status}")

    def _response_event(self, kind: str) -> Event:
        return {"type": kind, "response": {**self.whole, "output": [*self.whole["output"]]}}

    def _note(self, piece: Piece) -> None:
        if self._with_logprobs:
            steps: list[Step] = [s for s in piece.steps if s.token not in self._request.end_ids]
            self._tokens += token_logprobs(steps, self._tokenizer)

    def _take(self, change: Change) -> Iterator[Event]:
        match change:
            case Words():
                if self._open is None:
                    yield from self._begin(_message())
                item = self._item()
                (part,) = item["content"]
                part["text"] += change.text
                tokens, self._tokens = self._tokens, []
                part["logprobs"].items.extend(tokens)
                delta = {**self._where(), "content_index": 0, "delta": change.text}
                delta["logprobs"] = chat_logprobs(tokens)
                yield {"type": "response.output_text.delta", **delta}
            case Begun():
                yield from self._end("completed")
                yield from self._begin(_call(change))
            case Arguments():
                self._item()["arguments"] += change.text
                kind = "response.function_call_arguments.delta"
                yield {"type": kind, **self._where(), "delta": change.text}

    def _begin(self, item: dict[str, Any]) -> Iterator[Event]:
        item["id"] = f"{item['id']}_{self._call.id[:24]}{len(self.whole['output']):02}"
        self._open = item
        self.whole["output"].append(item)
        parts = item.get("content")
        added = {**item, "content": []} if parts is not None else dict(item)
        yield {
            "type": "response.output_item.added",
            "output_index": len(self.whole["output"]) - 1,
            "item": added,
        }
        if parts is not None:
            place = {**self._where(), "content_index": 0}
            part = {**parts[0], "logprobs": []}
            yield {"type": "response.content_part.added", **place, "part": part}

    def _end(self, status: str) -> Iterator[Event]:
        """Of the item that grows, if there is one."""
        if self._open is None:
            return
        item, where = self._item(), self._where()
        item["status"] = status
        if item["type"] == "message":
            (part,) = item["content"]
            told = {"text": part["text"], "logprobs": part["logprobs"]}
            place = {**where, "content_index": 0}
            yield {"type": "response.output_text.done", **place, **told}
            yield {"type": "response.content_part.done", **place, "part": part}
        else:
            told = {"name": item["name"], "arguments": item["arguments"]}
            yield {"type": "response.function_call_arguments.done", **where, **told}
        yield {
            "type": "response.output_item.done",
            "output_index": where["output_index"],
            "item": item,
        }
        self._open = None

    def _item(self) -> dict[str, Any]:
        assert self._open is not None
        return self._open

    def _where(self) -> dict[str, Any]:
        return {"item_id": self._item()["id"], "output_index": len(self.whole["output"]) - 1}


def _message() -> dict[str, Any]:
    part = {"type": "output_text", "text": "", "annotations": [], "logprobs": chat_logprobs([])}
    return {
        "id": "msg",
        "type": "message",
        "status": "in_progress",
        "role": "assistant",
        "content": [part],
    }


def _call(begun: Begun) -> dict[str, Any]:
    return {
        "id": "fc",
        "type": "function_call",
        "status": "in_progress",
        "call_id": begun.id,
        "name": begun.name,
        "arguments": "",
    }


def _changes(reader: CallReader | None, piece: Piece | None) -> Iterator[Change]:
    if reader is not None:
        yield from function_calls.read(reader, piece)
    elif piece is not None and piece.text:
        yield Words(piece.text)


def _usage(timings: Timings) -> dict[str, Any]:
    return {
        "input_tokens": timings.prompt_tokens,
        "input_tokens_details": {"cached_tokens": timings.reused_tokens},
        "output_tokens": timings.new_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": timings.prompt_tokens + timings.new_tokens,
    }
