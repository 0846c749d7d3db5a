"""The texts of one model: whatever happens to some, the others and the places are right."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pocketlm
from pocketlm.export.errors import PocketLMError
from pocketlm.runtime.request import Request
from pocketlm.runtime.scheduler import Job, Listener
from pocketlm.runtime.server.errors import ApiError
from pocketlm.runtime.server.metrics import Metrics
from pocketlm.runtime.server.models import engine as module
from pocketlm.runtime.server.models.engine import Engine, MakeJob
from pocketlm.runtime.server.settings import Settings

pytestmark = pytest.mark.serve

FATES = ("whole", "stream", "pieces", "leaves", "never begins", "fails", "is cut off")


@dataclass(frozen=True)
class Plan:
    """A request for ``count`` texts, so many turns of the loop after the others, and its fate."""

    count: int
    tokens: int
    turns: int
    fate: str


plans = st.lists(
    st.builds(
        Plan,
        count=st.integers(1, 3),
        tokens=st.integers(1, 12),
        turns=st.integers(0, 30),
        fate=st.sampled_from(FATES),
    ),
    min_size=1,
    max_size=6,
)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(plans)
def test_every_place_is_free_in_the_end_and_every_text_is_the_one_alone(
    tiny_model: pocketlm.Model, plans: list[Plan]
) -> None:
    async def play() -> int:
        engine = Engine(
            tiny_model, Settings(parallel=2, most_waiting=100), Metrics().of_model("tiny")
        )
        async with asyncio.timeout(30):
            await asyncio.gather(*(_live(engine, place, plan) for place, plan in enumerate(plans)))
            while engine.num_held > 0:
                await asyncio.sleep(0.001)
        return engine.num_held

    assert asyncio.run(play()) == 0


async def _live(engine: Engine, place: int, plan: Plan) -> None:
    for _ in range(plan.turns):
        await asyncio.sleep(0)
    requests = [
        engine.model.request(f"{place}", max_tokens=plan.tokens, seed=seed, ignore_eos=True)
        for seed in range(plan.count)
    ]
    expected = [_alone(engine.model, f"{place}", plan.tokens, seed) for seed in range(plan.count)]
    if plan.fate == "fails":  # the context has no room for it
        requests[-1] = Request([1] * (engine.model.session.shape.context_length + 1))
    if plan.fate == "is cut off":
        waiting = asyncio.create_task(_read(engine, requests, "whole"))
        for _ in range(plan.tokens):
            await asyncio.sleep(0.001)
        waiting.cancel()
        await asyncio.wait({waiting})
    elif plan.fate == "fails":
        with pytest.raises(PocketLMError):
            await _read(engine, requests, "whole")
    else:
        found = await _read(engine, requests, plan.fate)
        if plan.fate in ("whole", "stream", "pieces"):
            assert found == expected
        else:
            for text, whole in zip(found, expected, strict=True):
                assert whole.startswith(text)


def makers(engine: Engine, requests: Sequence[Request]) -> list[MakeJob]:
    """Of a job for each."""

    def make(request: Request, listener: Listener) -> Job:
        return engine.model.new_job(request, listener=listener)

    return [partial(make, request) for request in requests]


async def _read(engine: Engine, requests: Sequence[Request], fate: str) -> list[str]:
    """What was read of each."""
    found = ["" for _ in requests]
    with engine.room(len(requests)) as room:
        if fate == "never begins":
            return found
        texts = room.start_jobs(makers(engine, requests))
        if fate == "whole":
            return [job.so_far().text for job in await texts.finished()]
        if fate == "pieces":
            async for index, piece in texts:
                found[index] += piece.text if piece else ""
            return found
        async for batch in texts.batches():
            for index, piece in batch:
                found[index] += piece.text if piece else ""
            if fate == "leaves":
                break
    return found


@cache
def _alone(model: pocketlm.Model, prompt: str, tokens: int, seed: int) -> str:
    return model.submit(prompt, max_tokens=tokens, seed=seed, ignore_eos=True).result().text


def test_no_more_texts_are_held_than_there_is_room_for(tiny_model: pocketlm.Model) -> None:
    async def ask() -> None:
        engine = Engine(
            tiny_model, Settings(parallel=1, most_waiting=2), Metrics().of_model("tiny")
        )
        with engine.room(2):
            with pytest.raises(ApiError, match="2 texts under way, expected at most 3") as refused:
                with engine.room(2):
                    pass
            assert refused.value.status == 429
            assert 1 <= int(refused.value.headers["Retry-After"]) <= 5
            with engine.room(1):
                assert engine.num_held == 3
        with pytest.raises(ApiError, match="4 texts, expected at most 3") as refused:
            with engine.room(4):  # which would not go better later
                pass
        assert refused.value.status == 400
        assert engine.num_held == 0

    asyncio.run(ask())


def test_who_falls_behind_gets_the_beginning_and_an_error(
    tiny_model: pocketlm.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_BEHIND_BYTES", 3 * module.PIECE_BYTES)

    async def ask() -> tuple[str, int]:
        engine = Engine(tiny_model, Settings(), Metrics().of_model("tiny"))
        request = tiny_model.request("a", max_tokens=100, seed=1, ignore_eos=True)
        with engine.room(1) as room:
            texts = room.start_jobs(makers(engine, [request]))
            batches = texts.batches()
            found = await anext(batches)
            while not texts.jobs[0].done or engine.num_held:
                await asyncio.sleep(0.001)
            with pytest.raises(ApiError, match="takes its answer too slowly"):
                async for batch in batches:
                    found += batch
        return "".join(piece.text for _, piece in found if piece), len(texts.jobs[0].token_ids)

    text, count = asyncio.run(ask())
    assert 3 < count < 100
    assert _alone(tiny_model, "a", 100, 1).startswith(text)


def test_a_stream_keeps_none_of_its_pieces(tiny_model: pocketlm.Model) -> None:
    async def ask() -> str:
        engine = Engine(tiny_model, Settings(), Metrics().of_model("tiny"))
        with engine.room(1) as room:
            request = tiny_model.request("a", max_tokens=8, seed=1)
            texts = room.start_jobs(makers(engine, [request]))
            async for _ in texts.batches():
                pass
            return texts.jobs[0].so_far().text

    assert asyncio.run(ask()) == ""


def test_alternatives_wait_for_a_client_as_long_as_they_are_packed(
    tiny_model: pocketlm.Model,
) -> None:
    """A client in Python reads four texts with a hundred each slower than they are made."""

    async def ask() -> int:
        engine = Engine(tiny_model, Settings(), Metrics().of_model("tiny"))
        request = tiny_model.request("a", max_tokens=100, logprobs=100, ignore_eos=True)
        with engine.room(4) as room:
            texts = room.start_jobs(makers(engine, [request] * 4))
            batches = texts.batches()
            found = await anext(batches)
            while engine.num_held:
                await asyncio.sleep(0.001)
            async for batch in batches:
                found += batch
        return sum(len(step.top) for _, piece in found if piece for step in piece.steps)

    assert asyncio.run(ask()) == 4 * 100 * 100
