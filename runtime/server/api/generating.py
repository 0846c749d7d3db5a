"""What completions and chats have in common: a body becomes texts, pieces become events."""

from __future__ import annotations

import asyncio
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
from ..call import DONE, Call, event_in_turns, event_of
from ..errors import ApiError
from ..models.engine import Engine, Texts
from ..models.pool import Pool
from ..models.threads import in_thread
from . import calling
from .asking import Asked, BeamResult, Terms, beams_found, make_asked, scored
from .bodies import Chat, Completion
from .details import details_of, tokens_told

Told = TypeVar("Told")


async def generate(call: Call, *, chat: bool) -> None:
    """Answers with the texts that ``call.body`` asks for, at once or as they come."""
    # A slow reader of what is whole keeps neither a place nor the model.
    if (whole := await _generated(call, chat=chat)) is not None:
        await call.answer_in_turns(whole)


async def _generated(call: Call, *, chat: bool) -> dict[str, Any] | None:
    """The answer, unless it was a stream."""
    body: Completion | Chat = call.body
    terms = Terms.of(body)
    pool = call.service.pool
    async with pool.use(body.model) as engine, _drafting(pool, body.draft) as draft:
        with engine.room(terms.num_texts, terms.most_by) as room:
            make = partial(make_asked, engine.model, body, terms, draft)
            asked: Asked = await prepared(call, make)
            call.hold(asked.bytes_told)
            reply = Reply(call, engine, asked, terms, chat=chat)
            if terms.beams is not None:
                search = partial(beams_found, engine.model, asked, terms)
                return await reply.told(await engine.alone.call(search))
            texts = room.start_jobs(asked.makers)
            if terms.echo and asked.logprobs is not None:
                score: Callable[[Cancellation], list[Echo]] = partial(scored, engine.model, asked)
                reply.echoes = await engine.alone.call(score)
            if body.stream:
                await call.stream(reply.events(texts))
                return None
            jobs = await texts.finished()
            return await reply.told([job.so_far() for job in jobs])


async def prepared(call: Call, make: Callable[[], Any]) -> Any:
    """What ``make`` returns, by a thread that may take its time."""
    service = call.service
    threads = service.laborious if call.is_laborious else service.preparing
    return await asyncio.get_running_loop().run_in_executor(threads, make)


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
        self, call: Call, engine: Engine, asked: Asked, terms: Terms, *, chat: bool
    ) -> None:
        self.echoes: Sequence[Echo] = asked.echoes
        self._model = engine.model
        self._tokenizer = engine.model.tokenizer
        self._asked = asked
        self._terms = terms
        self._chat = chat
        self._logprobs = asked.logprobs is not None
        self._details = bool(call.body.details)
        options = call.body.stream_options
        self._with_usage = bool(options and options.include_usage)
        self._offsets: defaultdict[int, Offsets] = defaultdict(Offsets)  # of each text
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{call.id}",
            "created": int(time.time()),
            "model": call.service.pool.name_of(call.body.model),
        }

    async def told(self, results: Sequence[Result]) -> dict[str, Any]:
        """The ``whole``, by a thread where it has something of each token, so that others go on."""
        if not (self._logprobs or self._details):
            return self.whole(results)
        return await in_thread(partial(self.whole, results))

    def whole(self, results: Sequence[Result]) -> dict[str, Any]:
        """All texts, once they have ended; those of one prompt after the other."""
        groups = self._by_prompt(results)
        kept = [
            (place, result)
            for place, group in enumerate(groups)
            for result in best(group, self._terms.kept)
        ]
        told = {
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
            told["details"] = details
        return told

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
                async for part in event_in_turns(
                    self._told(index, echo.text, echo.steps, echo.steps)
                ):
                    yield part
        async for batch in texts.batches():
            yield b"".join(
                chunk
                for index, piece in batch
                for chunk in self._chunks(index, piece, jobs[index], readers[index])
            )
        last: dict[str, Any] = {}
        if self._with_usage:
            last["usage"] = _usage(self._by_prompt([job.timings for job in jobs]))
        if self._details:
            last["details"] = self._detailed([(job.finish_reason, job.timings) for job in jobs])
        if last:
            yield event_of({**self._named(), "choices": [], **last})
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
            reason = calling.finish_reason(job.finish_reason, num_calls)
            yield self._chunk(index, {} if self._chat else "", reason=reason)

    def _reader(self) -> CallReader | None:
        """Of a text that may call functions."""
        form, (request, *_) = self._asked.calls, self._asked.requests
        return None if form is None else calling.reader_of(form, request, self._tokenizer)

    def _deltas(self, reader: CallReader | None, piece: Piece | None) -> list[Any]:
        """What is told of a piece, in one chunk each, at least one; None is the end of a text."""
        if reader is not None:
            told = [calling.delta(change) for change in calling.read(reader, piece)]
            return told or ([] if piece is None else [{}])
        if piece is None:
            return []
        return [{"content": piece.text} if self._chat else piece.text]

    def _choice(self, index: int, result: Result, place: int) -> dict[str, Any]:
        echo, end_ids = self.echoes[place], self._asked.requests[place].end_ids
        if not self._logprobs:  # they may have been needed to choose the best
            result = replace(result, logprobs=None, tops=None)
        told = choice(
            result, self._tokenizer, chat=self._chat, index=index, echo=echo, end_ids=end_ids
        )
        if self._asked.calls is not None:
            request = self._asked.requests[place]
            changes = calling.changes_of(self._asked.calls, request, result, self._tokenizer)
            told["message"] = calling.message_of(changes)
            num_calls = len(told["message"].get(calling.TOOL_CALLS, ()))
            told["finish_reason"] = calling.finish_reason(result.finish_reason, num_calls)
        if self._details:
            steps = [*echo.steps, *steps_of(result)]
            told["tokens"] = tokens_told(steps, self._tokenizer)
        return told

    def _chunk(
        self,
        index: int,
        delta: Any,
        steps: Sequence[Step] = (),
        spelled: Sequence[Step] = (),
        reason: str | None = None,
    ) -> bytes:
        return event_of(self._told(index, delta, steps, spelled, reason))

    def _told(
        self,
        index: int,
        delta: Any,
        steps: Sequence[Step],
        spelled: Sequence[Step],
        reason: str | None = None,
    ) -> dict[str, Any]:
        """A chunk; ``spelled`` are those of the ``steps`` that are text."""
        told = {"index": index, "delta" if self._chat else "text": delta, "logprobs": None}
        if self._logprobs and spelled:
            tokens = token_logprobs(spelled, self._tokenizer)
            offsets = self._offsets[index]
            told["logprobs"] = logprobs_of(tokens, chat=self._chat, offsets=offsets)
        told["finish_reason"] = reason
        if self._details:
            told["tokens"] = tokens_told(steps, self._tokenizer)
        unknown = {"usage": None} if self._with_usage else {}
        return {**self._named(), "choices": [told], **unknown}

    def _spelled(self, index: int, piece: Piece) -> list[Step]:
        """The tokens of a piece that are text."""
        end_ids = self._asked.requests[index // self._terms.computed].end_ids
        return [step for step in piece.steps if step.token not in end_ids]

    def _by_prompt(self, told: Sequence[Told]) -> list[Sequence[Told]]:
        """What is told of each text, those of one prompt together."""
        count = self._terms.computed
        return [told[start : start + count] for start in range(0, len(told), count)]

    def _detailed(self, ends: Sequence[tuple[str | None, Timings]]) -> dict[str, Any]:
        prompts = [request.prompt_ids for request in self._asked.requests]
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
