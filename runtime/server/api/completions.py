"""What completions and chats have in common: a body becomes texts, pieces become events."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from ...cancellation import Cancellation
from ...model import Model
from ...openai_form import Echo, Offsets, choice, logprobs_of, steps_of, token_logprobs, usage
from ...scheduler import Job
from ...sequence import Step
from ...text import Piece, Result, Timings
from ...tool_calls import CallReader
from ..call import DONE, Call, event_of
from ..errors import ApiError
from ..json_encoding import PART_BYTES
from ..models.engine import Engine, Texts
from ..models.pool import Pool
from ..request_body import LARGE_BYTES
from . import function_calls
from .bodies import Chat, Completion
from .details import details_of, token_entries
from .generation import BeamResult, Generation, make_generation, scored_echoes, search_beams
from .terms import Terms

Value = TypeVar("Value")


async def generate(call: Call, *, chat: bool) -> None:
    """Answers with the texts that ``call.body`` asks for, at once or as they come."""
    # A slow reader of what is whole keeps neither a place nor the model.
    if (whole := await _generated(call, chat=chat)) is not None:
        await call.answer_in_turns(whole)


async def _generated(call: Call, *, chat: bool) -> dict[str, Any] | None:
    """The answer, unless it was a stream."""
    body: Completion | Chat = call.body
    terms = Terms.of(body, call.service.settings.max_seconds)
    pool = call.service.pool
    async with pool.use(body.model) as engine, _drafting(pool, body.draft) as draft:
        with engine.room(terms.num_texts, terms.most_by) as room:
            generation = await call.prepare(
                partial(make_generation, engine.model, body, terms, draft)
            )
            call.hold(generation.answer_bytes)
            reply = Reply(call, engine, generation, terms, chat=chat)
            if terms.beams is not None:
                search = partial(search_beams, engine.model, generation, terms)
                return await reply.answer(await engine.alone.call(search))
            texts = room.start_jobs(generation.makers)
            if terms.echo and generation.logprobs is not None:
                score: Callable[[Cancellation], list[Echo]] = partial(
                    scored_echoes, engine.model, generation
                )
                reply.echoes = await engine.alone.call(score)
            if body.stream:
                await call.stream(reply.events(texts))
                return None
            jobs = await texts.finished()
            return await reply.answer([job.so_far() for job in jobs])


@asynccontextmanager
async def _drafting(pool: Pool, name: str | None) -> AsyncIterator[Model | None]:
    """The model of that name, to guess with; None: none is asked for."""
    if name is None:
        yield None
        return
    try:
        pool.find(name)
    except ApiError as error:
        raise ApiError(error.status, error.message, param="draft", code=error.code) from error
    async with pool.use(name) as engine:
        yield engine.model


class Reply:
    """The answer in OpenAI's form.

    echoes      of each prompt, what of it is told before each of its texts
    """

    def __init__(
        self, call: Call, engine: Engine, generation: Generation, terms: Terms, *, chat: bool
    ) -> None:
        self._call = call
        self.echoes: Sequence[Echo] = generation.echoes
        self._model = engine.model
        self._tokenizer = engine.model.tokenizer
        self._generation = generation
        self._terms = terms
        self._chat = chat
        self._logprobs = generation.logprobs is not None
        self._details = bool(call.body.details)
        options = call.body.stream_options
        self._with_usage = bool(options and options.include_usage)
        self._offsets: defaultdict[int, Offsets] = defaultdict(Offsets)  # of each text
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{call.id}",
            "created": int(time.time()),
            "model": call.service.pool.name_of(call.body.model),
        }

    async def answer(self, results: Sequence[Result]) -> dict[str, Any]:
        """The ``whole``; what may take its time by a thread, so that others go on."""
        texts = [result.text for result in results] + [echo.text for echo in self.echoes]
        is_small = sum(map(len, texts)) < LARGE_BYTES
        if is_small and not (self._logprobs or self._details or self._generation.calls):
            return self.whole(results)
        return await self._call.service.encode(partial(self.whole, results))

    def whole(self, results: Sequence[Result]) -> dict[str, Any]:
        """All texts, once they have ended; those of one prompt after the other."""
        groups = self._by_prompt(results)
        kept = [
            (place, result)
            for place, group in enumerate(groups)
            for result in best(group, self._terms.kept)
        ]
        answer = {
            **self._head,
            "object": "chat.completion" if self._chat else "text_completion",
            "choices": [self._choice(i, result, place) for i, (place, result) in enumerate(kept)],
            "usage": _usage(self._by_prompt([result.timings for result in results])),
        }
        if self._details:
            details = self._detailed([(result.finish_reason, result.timings) for _, result in kept])
            for end, (_, result) in zip(details["choices"], kept, strict=True):
                if isinstance(result, BeamResult):
                    end |= {"logprob": result.logprob, "score": result.score}
            answer["details"] = details
        return answer

    async def events(self, texts: Texts) -> AsyncIterator[bytes]:
        """Each piece as it comes."""
        jobs = texts.jobs
        readers = [self._reader() for _ in jobs]
        for index in range(len(jobs)):
            if self._chat:
                content = "" if readers[index] is None else None
                yield self._chunk(index, {"role": "assistant", "content": content})
            elif self._terms.echo:
                echo = self.echoes[index // self._terms.computed]
                event = self._entry(index, echo.text, echo.steps, echo.steps)
                async for part in self._call.event_in_turns(event):
                    yield part
        async for batch in texts.batches():
            data = bytearray()
            for index, piece in batch:
                for chunk in self._chunks(index, piece, jobs[index], readers[index]):
                    data += chunk
                if len(data) >= PART_BYTES:  # a slow reader's: others come in between
                    yield bytes(data)
                    data.clear()
            if data:
                yield bytes(data)
        last: dict[str, Any] = {}
        if self._with_usage:
            last["usage"] = _usage(self._by_prompt([job.timings for job in jobs]))
        if self._details:
            last["details"] = self._detailed([(job.finish_reason, job.timings) for job in jobs])
        if last:
            # With details it repeats the prompts, which may have a million tokens.
            async for part in self._call.event_in_turns({**self._named(), "choices": [], **last}):
                yield part
        yield DONE

    def _chunks(
        self, index: int, piece: Piece | None, job: Job, reader: CallReader | None
    ) -> Iterator[bytes]:
        """Of a piece, or None at the end of a text."""
        deltas = self._deltas(reader, piece)
        if piece is not None:
            spelled = self._spelled(index, piece)
            first = deltas.pop(0)
            if first or self._logprobs or self._details or not self._chat:
                yield self._chunk(index, first, piece.steps, spelled)
        for delta in deltas:
            yield self._chunk(index, delta)
        if piece is None:
            num_calls = reader.num_calls if reader else 0
            reason = function_calls.finish_reason(job.finish_reason, num_calls)
            yield self._chunk(index, {} if self._chat else "", reason=reason)

    def _reader(self) -> CallReader | None:
        """Of a text that may call functions."""
        form, (request, *_) = self._generation.calls, self._generation.requests
        return None if form is None else function_calls.reader_of(form, request, self._tokenizer)

    def _deltas(self, reader: CallReader | None, piece: Piece | None) -> list[Any]:
        """What is told of a piece, in one chunk each, at least one; None is the end of a text."""
        if reader is not None:
            deltas = [function_calls.delta(change) for change in function_calls.read(reader, piece)]
            return deltas or ([] if piece is None else [{}])
        if piece is None:
            return []
        return [{"content": piece.text} if self._chat else piece.text]

    def _choice(self, index: int, result: Result, place: int) -> dict[str, Any]:
        echo, end_ids = self.echoes[place], self._generation.requests[place].end_ids
        if not self._logprobs:  # they may have been needed to choose the best
            result = replace(result, logprobs=None, tops=None)
        entry = choice(
            result, self._tokenizer, chat=self._chat, index=index, echo=echo, end_ids=end_ids
        )
        if self._generation.calls is not None:
            request = self._generation.requests[place]
            changes = function_calls.changes_of(
                self._generation.calls, request, result, self._tokenizer
            )
            entry["message"] = function_calls.message_of(changes)
            num_calls = len(entry["message"].get(function_calls.TOOL_CALLS, ()))
            entry["finish_reason"] = function_calls.finish_reason(result.finish_reason, num_calls)
        if self._details:
            steps = [*echo.steps, *steps_of(result)]
            entry["tokens"] = token_entries(steps, self._tokenizer)
        return entry

    def _chunk(
        self,
        index: int,
        delta: Any,
        steps: Sequence[Step] = (),
        spelled: Sequence[Step] = (),
        reason: str | None = None,
    ) -> bytes:
        return event_of(self._entry(index, delta, steps, spelled, reason))

    def _entry(
        self,
        index: int,
        delta: Any,
        steps: Sequence[Step],
        spelled: Sequence[Step],
        reason: str | None = None,
    ) -> dict[str, Any]:
        """A chunk; ``spelled`` are those of the ``steps`` that are text."""
        entry = {"index": index, "delta" if self._chat else "text": delta, "logprobs": None}
        if self._logprobs and spelled:
            tokens = token_logprobs(spelled, self._tokenizer)
            offsets = self._offsets[index]
            entry["logprobs"] = logprobs_of(tokens, chat=self._chat, offsets=offsets)
        entry["finish_reason"] = reason
        if self._details:
            entry["tokens"] = token_entries(steps, self._tokenizer)
        unknown = {"usage": None} if self._with_usage else {}
        return {**self._named(), "choices": [entry], **unknown}

    def _spelled(self, index: int, piece: Piece) -> list[Step]:
        """The tokens of a piece that are text."""
        end_ids = self._generation.requests[index // self._terms.computed].end_ids
        return [step for step in piece.steps if step.token not in end_ids]

    def _by_prompt(self, values: Sequence[Value]) -> list[Sequence[Value]]:
        """Those of the texts after one prompt together."""
        count = self._terms.computed
        return [values[start : start + count] for start in range(0, len(values), count)]

    def _detailed(self, ends: Sequence[tuple[str | None, Timings]]) -> dict[str, Any]:
        prompts = [request.prompt_ids for request in self._generation.requests]
        return details_of(self._model, prompts, ends)

    def _named(self) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return {**self._head, "object": kind}


def best(results: Sequence[Result], count: int) -> Sequence[Result]:
    """The ``count`` with the highest mean logprob, the best first; all of them as they are."""
    if len(results) <= count:
        return results
    return sorted(results, key=_mean, reverse=True)[:count]


def _mean(result: Result) -> float:
    logprobs = result.logprobs or [-result.index]  # of beams, which come in order
    return sum(logprobs) / len(logprobs)


def _usage(groups: Sequence[Sequence[Timings]]) -> dict[str, Any]:
    cached = sum(group[0].reused_tokens for group in groups)
    return {**usage(groups), "prompt_tokens_details": {"cached_tokens": cached}}
