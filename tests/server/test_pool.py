"""Several models: opened when asked for, dropped when idle, bounded in what they take."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from served import Served, served

import pocketlm
from pocketlm.export.errors import RequestError, ResourceError
from pocketlm.export.folder import ModelFolder
from pocketlm.runtime.model import Model
from pocketlm.runtime.server.errors import ApiError
from pocketlm.runtime.server.log import Log
from pocketlm.runtime.server.metrics import Metrics
from pocketlm.runtime.server.models import pool as pool_module
from pocketlm.runtime.server.models.facts import Facts, facts_of, share_of
from pocketlm.runtime.server.models.pool import Pool, Source
from pocketlm.runtime.server.settings import Settings

pytestmark = pytest.mark.serve

ASKED = {"prompt": "a", "max_tokens": 2}


def pool_of(log: StringIO, *sources: Source, **settings: Any) -> Pool:
    return Pool(sources, Settings(**settings), Log(log), Metrics())


def run(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return asyncio.run(work())


@pytest.fixture
def opens(tiny_folder: ModelFolder) -> Callable[[], Model]:
    return lambda: pocketlm.load(tiny_folder.path, threads=1)


@pytest.fixture
def facts(tiny_folder: ModelFolder) -> Facts:
    return facts_of(tiny_folder)


class Gate:
    """What opens a model once it may, and counts how often it was asked to."""

    def __init__(self, opened: Callable[[], Model]) -> None:
        self.may = threading.Event()
        self.count = 0
        self._opened = opened

    def __call__(self) -> Model:
        self.count += 1
        assert self.may.wait(20)
        return self._opened()


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.002)


def test_a_model_is_opened_once_for_all_who_wait(opens: Callable[[], Model]) -> None:
    gate = Gate(opens)

    async def work() -> None:
        pool = pool_of(StringIO(), Source("a", gate))

        async def use() -> object:
            async with pool.use("a") as engine:
                return engine

        waiting = [asyncio.create_task(use()) for _ in range(3)]
        await until(lambda: gate.count)
        assert pool.served["a"].state == "opening"
        gate.may.set()
        assert len(set(await asyncio.gather(*waiting))) == 1
        assert gate.count == 1
        pool.close()

    run(work)


def test_who_leaves_while_a_model_is_opened_leaves_it_to_the_others(
    opens: Callable[[], Model],
) -> None:
    gate = Gate(opens)

    async def work() -> None:
        pool = pool_of(StringIO(), Source("a", gate))

        async def use() -> str:
            async with pool.use("a"):
                return "used"

        leaving, staying = asyncio.create_task(use()), asyncio.create_task(use())
        await until(lambda: gate.count)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        gate.may.set()
        assert await staying == "used"
        assert (gate.count, pool.served["a"].num_users) == (1, 0)
        pool.close()

    run(work)


def test_a_failed_opening_is_told_to_all_and_tried_again_by_the_next(
    opens: Callable[[], Model],
) -> None:
    tries = iter([pocketlm.ModelFolderError("/secret/place: missing"), None])
    log = StringIO()

    def sometimes() -> Model:
        if (error := next(tries)) is not None:
            raise error
        return opens()

    async def work() -> None:
        pool = pool_of(log, Source("a", sometimes))

        async def use() -> None:
            async with pool.use("a"):
                pass

        errors = await asyncio.gather(use(), use(), return_exceptions=True)
        for error in errors:
            assert isinstance(error, ApiError)
            assert (error.status, error.code) == (503, "model_unavailable")
            assert "the model a cannot be opened" in error.message
            assert "secret" not in error.message
        assert pool.served["a"].state == "failed"
        assert "/secret/place: missing" in log.getvalue()  # for whoever runs it
        await use()
        assert pool.served["a"].state == "open"
        pool.close()

    run(work)


def test_no_memory_for_opening_is_worth_another_try() -> None:
    def fails() -> Model:
        raise ResourceError("opening it: found 1 MB of memory free, expected 2 MB")

    async def work() -> None:
        pool = pool_of(StringIO(), Source("a", fails))
        with pytest.raises(ApiError, match="memory does not suffice") as refused:
            async with pool.use("a"):
                pass
        assert (refused.value.status, refused.value.headers["Retry-After"]) == (503, "2")

    run(work)


@pytest.mark.parametrize("name", ["a", "b"])
def test_an_error_tells_the_name_that_was_asked_for(
    opens: Callable[[], Model], tiny_folder: ModelFolder, name: str
) -> None:
    """Of two that are served from one folder, whose path no message keeps."""
    path = tiny_folder.path

    async def work() -> None:
        pool = pool_of(StringIO(), Source("a", opens), Source("b", opens))
        async with pool.use("a"), pool.use("b"):
            for error in (RequestError(f"{path}: found x"), ApiError(400, f"{path}: found x")):
                with pytest.raises(ApiError) as raised:
                    async with pool.use(name):
                        raise error
                assert raised.value.message == f"{name}: found x"
        pool.close()

    run(work)


def test_a_model_without_requests_is_dropped_and_gives_its_memory_back(
    opens: Callable[[], Model],
) -> None:
    log = StringIO()

    async def work() -> None:
        pool = pool_of(log, Source("a", opens), idle_seconds=0.05)
        async with pool.use("a") as engine:
            model = engine.model
            await asyncio.sleep(0.2)
            assert pool.served["a"].state == "open"  # in use, however long
        await until(lambda: model.closed)
        assert pool.served["a"].state == "closed"
        async with pool.use("a") as engine:
            assert not engine.model.closed and engine.model is not model
        pool.close()

    run(work)
    assert '"event": "model_closed", "model": "a", "reason": "idle"' in log.getvalue()


def test_the_one_used_least_recently_makes_room(opens: Callable[[], Model], facts: Facts) -> None:
    async def work() -> None:
        sources = [Source(name, opens, facts) for name in "abc"]
        most = 5 * (facts.weights_bytes + 1000) // 2  # room for two
        pool = pool_of(StringIO(), *sources, kv_bytes=1000, memory_bytes=most)
        for name in ("a", "b", "a", "c"):
            async with pool.use(name):
                pass
        assert [pool.served[name].state for name in "abc"] == ["open", "closed", "open"]
        pool.close()

    run(work)


def test_where_those_in_use_leave_no_room_a_request_is_refused_with_their_names(
    opens: Callable[[], Model], facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "ROOM_SECONDS", 0.02)

    async def work() -> None:
        sources = [Source(name, opens, facts) for name in ("first", "second")]
        pool = pool_of(StringIO(), *sources, memory_bytes=facts.weights_bytes)
        async with pool.use("first") as engine:
            with pytest.raises(ApiError, match="second has no room .* beside first") as refused:
                async with pool.use("second"):
                    pass
            assert not engine.model.closed
        assert (refused.value.status, refused.value.headers["Retry-After"]) == (503, "2")
        assert pool.served["second"].state == "closed"
        async with pool.use("second"):  # now there is
            assert pool.served["first"].state == "closed"
        pool.close()

    run(work)


def test_a_request_waits_a_little_for_room(opens: Callable[[], Model], facts: Facts) -> None:
    async def work() -> None:
        sources = [Source(name, opens, facts) for name in ("first", "second")]
        pool = pool_of(StringIO(), *sources, memory_bytes=facts.weights_bytes)

        async def second() -> str:
            async with pool.use("second"):
                return "used"

        async with pool.use("first"):
            waiting = asyncio.create_task(second())
            await until(lambda: pool.served["second"].opening)
            await asyncio.sleep(0.02)
            assert not waiting.done()
        assert await waiting == "used"
        pool.close()

    run(work)


def test_what_was_held_is_given_back_after_a_failed_opening(
    opens: Callable[[], Model], facts: Facts
) -> None:
    def fails() -> Model:
        raise pocketlm.ModelFolderError("gone")

    async def work() -> None:
        sources = [Source("broken", fails, facts), Source("good", opens, facts)]
        pool = pool_of(StringIO(), *sources, memory_bytes=facts.weights_bytes)
        with pytest.raises(ApiError):
            async with pool.use("broken"):
                pass
        assert not pool.served["broken"].held_bytes  # nor is it named among those that have some
        async with pool.use("good"):
            assert pool._held == pool.served["good"].held_bytes
        pool.close()

    run(work)


def test_shares_of_models_that_all_fit_fit_together(facts: Facts) -> None:
    everyone = [facts] * 3
    for most in (10 * facts.weights_bytes, 1 << 40):
        share = share_of(facts, everyone, Settings(memory_bytes=most))
        assert 3 * share.num_bytes <= most
        assert share.kv and share.prefixes
    wanted = 8 * facts.context_length * facts.kv_bytes_per_token
    assert share_of(facts, everyone, Settings(memory_bytes=1 << 40)).kv == wanted


def test_a_folder_that_vanishes_and_comes_back(tiny_folder: ModelFolder, tmp_path: Path) -> None:
    place, aside = tmp_path / "secret", tmp_path / "aside"
    shutil.copytree(tiny_folder.path, place)

    def opened(path: Path) -> Model:
        return Model(ModelFolder.open(path), 1)

    sources: dict[str, Source | Callable[[], Model]] = {
        "coming": Source("coming", partial(opened, place), facts_of(ModelFolder.open(place))),
        "staying": partial(opened, tiny_folder.path),
    }
    place.rename(aside)
    with served(sources) as server:
        status, found = server.post("/v1/completions", {"model": "coming", **ASKED})
        assert status == 503
        assert "the model coming cannot be opened" in found["error"]["message"]
        assert "secret" not in found["error"]["message"]
        assert server.post("/v1/completions", {"model": "staying", **ASKED})[0] == 200
        states = server.get("/health")[1]["models"]
        assert states == {"coming": "failed", "staying": "open"}
        aside.rename(place)
        assert server.post("/v1/completions", {"model": "coming", **ASKED})[0] == 200


def test_a_folder_that_was_written_anew_is_opened_anew(
    tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    place = tmp_path / "model"
    shutil.copytree(tiny_folder.path, place)

    async def work() -> None:
        log = StringIO()
        pool = pool_of(log, Source("a", lambda: Model(ModelFolder.open(place), 1)))
        async with pool.use("a") as engine:
            first = engine.model
        shutil.rmtree(place)
        async with pool.use("a") as engine:
            assert engine.model is first  # gone, but open
        shutil.copytree(tiny_folder.path, place)
        async with pool.use("a") as engine:
            assert engine.model is not first
        await until(lambda: '"reason": "rewritten"' in log.getvalue())
        assert first.closed
        pool.close()

    run(work)


def test_the_first_model_is_opened_at_the_start_if_so_set(opens: Callable[[], Model]) -> None:
    async def work() -> None:
        pool = pool_of(StringIO(), Source("a", opens), Source("b", opens), open_first=True)
        pool.start()
        await until(lambda: pool.served["a"].state == "open")
        assert pool.served["b"].state == "closed"
        pool.close()

    run(work)


def test_a_model_that_is_open_only_after_the_end_is_closed(opens: Callable[[], Model]) -> None:
    gate = Gate(opens)
    models: list[Model] = []

    def noting() -> Model:
        models.append(gate())
        return models[0]

    async def work() -> None:
        pool = pool_of(StringIO(), Source("a", noting), open_first=True)
        pool.start()
        await until(lambda: gate.count)
        pool.close()
        gate.may.set()
        await until(lambda: models and models[0].closed)

    run(work)


def test_models_are_told_without_being_opened(opens: Callable[[], Model], facts: Facts) -> None:
    with served({"known": Source("known", opens, facts), "unknown": opens}) as server:
        _, found = server.get("/v1/models")
        known, unknown = found["data"]
        assert (known["id"], known["state"], known["open"]) == ("known", "closed", False)
        assert known["context_length"] == facts.context_length
        assert (known["precision"], known["chat"]) == ("fp32", False)
        assert "context_length" not in unknown
        assert _states(server) == {"known": "closed", "unknown": "closed"}
        server.post("/v1/completions", {"model": "unknown", **ASKED})
        assert server.get("/v1/models/unknown")[1]["context_length"] == facts.context_length
        assert _states(server) == {"known": "closed", "unknown": "open"}


def _states(server: Served) -> Any:
    return server.get("/health")[1]["models"]


def test_health_names_no_model_where_there_is_a_key(opens: Callable[[], Model]) -> None:
    with served({"secret": opens}, api_key="key") as server:
        assert server.get("/health") == (200, {"status": "ok"})


def test_an_unknown_model_is_answered_with_those_there_are(opens: Callable[[], Model]) -> None:
    with served({"one": opens, "two": opens}) as server:
        status, found = server.post("/v1/completions", {"model": "three", **ASKED})
    assert (status, found["error"]["code"]) == (404, "model_not_found")
    assert "expected one of: one, two" in found["error"]["message"]
