"""The models that are served: each is opened when it is first asked for, and dropped when idle.

What all that are open may come to take of memory is bounded: where one more has no room, those go
that nobody uses, the one that was used least recently first. Who uses one keeps it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from ....export.errors import PocketLMError
from ....export.folder import MANIFEST, ModelFolder
from ....export.memory import is_exhaustion
from ....export.strict_json import quoted
from ...model import Model
from ..errors import ApiError, as_api_error, busy, ending, unopened
from ..log import Log, places
from ..metrics import Metrics
from ..settings import Settings
from .engine import Engine
from .facts import Facts, facts_of, share_of
from .threads import in_thread

ROOM_SECONDS = 5.0  # that a request waits for a model's memory while others use theirs

OPEN, OPENING, CLOSED, FAILED = "open", "opening", "closed", "failed"


@dataclass(frozen=True)
class Source:
    """A model by its name, and how it is opened; that may take minutes, and raise.

    facts   what is known of it before; None: nothing
    """

    name: str
    open: Callable[[], Model]
    facts: Facts | None = None


@dataclass
class Served:
    """A model of the pool.

    facts       what is known of it by now
    engine      None while it is not open
    num_users   requests that have it, or wait for it
    last_used   on the clock of the event loop
    has_failed  whether it could not be opened when it last was to be
    opening     what opens it, while there is that
    held_bytes  what it may come to take of memory, once there is room for it
    written     changes when its folder is written anew
    idle        what drops it when its time is over
    """

    source: Source
    facts: Facts | None
    engine: Engine | None = None
    num_users: int = 0
    last_used: float = 0.0
    has_failed: bool = False
    opening: asyncio.Task[Engine] | None = None
    held_bytes: int = 0
    written: object = None
    idle: asyncio.TimerHandle | None = None

    @property
    def state(self) -> str:
        """``OPEN``, ``OPENING``, ``CLOSED``, or ``FAILED`` when it was last to be opened."""
        if self.engine is not None:
            return OPEN
        if self.opening is not None:
            return OPENING
        return FAILED if self.has_failed else CLOSED

    @property
    def is_idle(self) -> bool:
        """Whether it is open, and nobody has it."""
        return self.engine is not None and not self.num_users


class Pool:
    """All models that a server has; for one event loop."""

    def __init__(
        self, sources: Sequence[Source], settings: Settings, log: Log, metrics: Metrics
    ) -> None:
        self._settings = settings
        self._log = log
        self._metrics = metrics
        self.served = {source.name: Served(source, source.facts) for source in sources}
        self.created = int(time.time())
        self._held = 0  # bytes that those may take that are open, being opened or being closed
        self._freed = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    @property
    def names(self) -> list[str]:
        """Those that may be asked for."""
        return list(self.served)

    def start(self) -> None:
        """In the event loop: opens the first one, if the settings say so."""
        first = self.served[self.names[0]]
        if self._settings.open_first and first.opening is None:
            self._begin_opening(first)

    @asynccontextmanager
    async def use(self, name: str | None) -> AsyncIterator[Engine]:
        """The engine of the model called ``name``, opened if need be; kept until the block ends.

        Who leaves while it is opened does not end that: others may wait for it. Raises ApiError:
        404 for another name, 503 for a model that cannot be opened now.
        """
        served = self.find(name)
        self._drop_if_rewritten(served)
        # Of an open one the engine says how many: what counts is texts, and not who asks for them.
        if served.engine is None and served.num_users >= self._settings.most_texts:
            raise busy(f"{served.num_users} requests wait for the model to open; try again later")
        served.num_users += 1
        if served.idle is not None:
            served.idle.cancel()
        try:
            engine = await self._engine(served)
            try:
                yield engine
            except (ApiError, PocketLMError) as error:
                # Of one folder there may be several names: the one that was asked for is told.
                names = {str(engine.model.folder.path): served.source.name}
                answer = as_api_error(error, names)
                if answer is error:
                    raise
                raise answer from error
        finally:
            served.num_users -= 1
            self._rest(served)

    def name_of(self, name: str | None) -> str:
        """The one that is meant: the first, where none is named."""
        return self.names[0] if name is None else name

    def find(self, name: str | None) -> Served:
        """Raises ApiError (404) with the names that there are."""
        name = self.name_of(name)
        if name not in self.served:
            raise ApiError(
                404,
                f"found no model {quoted(name, 100)}, expected one of: {', '.join(self.names)}",
                param="model",
                code="model_not_found",
            )
        return self.served[name]

    def close(self) -> None:
        """Closes those that are open, and what is being opened as soon as it is."""
        self._closed = True
        for served in self.served.values():
            if served.idle is not None:
                served.idle.cancel()
            if served.engine is not None:
                served.engine.close()
                served.engine = None

    # Opening -------------------------------------------------------------------------------------

    async def _engine(self, served: Served) -> Engine:
        if served.engine is not None:
            return served.engine
        return await asyncio.shield(served.opening or self._begin_opening(served))

    def _begin_opening(self, served: Served) -> asyncio.Task[Engine]:
        served.opening = self._run(self._open(served))
        return served.opening

    async def _open(self, served: Served) -> Engine:
        started = time.perf_counter()
        try:
            await self._reserve(served)
            engine = await self._opened(served)
        except ApiError:
            raise
        except Exception as error:
            self._note_failure(served, error)
            if not _is_known(error):
                raise
            raise unopened(served.source.name, error) from error
        finally:
            served.opening = None
        model = engine.model
        self._log.event(
            "model_opened",
            model=served.source.name,
            seconds=round(time.perf_counter() - started, 3),
            bytes=served.held_bytes,
            notes=[note for note in (model.fallback, model.session.prefill_note) if note],
        )
        served.engine, served.has_failed = engine, False
        self._rest(served)
        return engine

    async def _reserve(self, served: Served) -> None:
        """Makes room for it, and takes it. Raises ApiError (503) where there is none for long."""
        needed = self._bytes_of(served)
        loop = asyncio.get_running_loop()
        until = loop.time() + ROOM_SECONDS
        while not self._fits(needed):
            idle = [other for other in self.served.values() if other.is_idle]
            if self._fits(needed, without=sum(other.held_bytes for other in idle)):
                await self._drop(min(idle, key=lambda other: other.last_used), "memory")
            elif (left := until - loop.time()) > 0:
                self._freed.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._freed.wait(), left)
            else:
                raise self._no_room(served)
        served.held_bytes = needed
        self._held += needed

    async def _opened(self, served: Served) -> Engine:
        """It, for which there is room; that is given back where it cannot be opened."""
        try:
            model = await in_thread(served.source.open)
            if self._closed:
                model.close()
                raise ending()
            return self._engine_of(served, model)
        except BaseException:
            self._held -= served.held_bytes
            served.held_bytes = 0
            self._freed.set()
            raise

    def _engine_of(self, served: Served, model: Model) -> Engine:
        served.facts = facts_of(model.folder, model.session.kv, model.session.prefill)
        served.written = _written(model.folder)
        held = self._bytes_of(served)  # another model may be there than was at the start
        self._held += held - served.held_bytes
        served.held_bytes = held
        share = share_of(served.facts, self._everyone, self._settings)
        if share.prefixes is not None:
            cache = model.prefix_cache
            cache.most_bytes = min(cache.most_bytes, share.prefixes)
        settings = replace(self._settings, kv_bytes=share.kv)
        return Engine(model, settings, self._metrics.of_model(served.source.name))

    def _bytes_of(self, served: Served) -> int:
        return share_of(served.facts, self._everyone, self._settings).num_bytes

    @property
    def _everyone(self) -> list[Facts]:
        return [served.facts for served in self.served.values() if served.facts is not None]

    def _fits(self, needed: int, without: int = 0) -> bool:
        """Whether so much has room beside the others; a model alone always has."""
        most, held = self._settings.memory_bytes, self._held - without
        return most is None or held <= 0 or held + needed <= most

    def _no_room(self, served: Served) -> ApiError:
        others = [name for name, other in self.served.items() if other.held_bytes]
        return busy(
            f"the model {served.source.name} has no room in memory beside {', '.join(others)}, "
            "expected one of them to be without a request; try again later",
            503,
        )

    def _note_failure(self, served: Served, error: Exception) -> None:
        served.has_failed = True
        # Of a bug the message may hold anything.
        note = {"note": str(error)} if _is_known(error) else {"at": places(error)}
        kind = type(error).__name__
        self._log.event("model_failed", model=served.source.name, kind=kind, **note)

    # Dropping ------------------------------------------------------------------------------------

    def _rest(self, served: Served) -> None:
        """Notes that nobody has it any more, if so: it may go, at the latest when its time is over.

        What waits for room may find it now.
        """
        if not served.is_idle or self._closed:
            return
        loop = asyncio.get_running_loop()
        served.last_used = loop.time()
        self._freed.set()
        if (seconds := self._settings.idle_seconds) is not None:
            served.idle = loop.call_later(seconds, self._drop_if_idle, served)

    def _drop_if_idle(self, served: Served) -> None:
        if served.is_idle and not self._closed:
            self._drop(served, "idle")

    def _drop_if_rewritten(self, served: Served) -> None:
        """Has it opened anew if its folder holds another by now; one that is gone serves on."""
        if served.is_idle and served.engine is not None:
            found = _written(served.engine.model.folder)
            if found is not None and found != served.written:
                self._drop(served, "rewritten")

    def _drop(self, served: Served, reason: str) -> asyncio.Task[None]:
        """Takes an open one out; its memory counts until the task has given it back."""
        engine, served.engine = served.engine, None
        held, served.held_bytes = served.held_bytes, 0
        assert engine is not None
        return self._run(self._close(served.source.name, engine, held, reason))

    async def _close(self, name: str, engine: Engine, held: int, reason: str) -> None:
        try:
            await in_thread(engine.close)
        finally:
            self._held -= held
            self._freed.set()
        self._log.event("model_closed", model=name, reason=reason)

    def _run(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # those that wait hear of it; if none does, the log has it


def _is_known(error: Exception) -> bool:
    """Whether it is no bug of ours."""
    return isinstance(error, PocketLMError) or is_exhaustion(error)


def _written(folder: ModelFolder) -> object:
    """Changes when the folder is written anew; None if it is gone."""
    try:
        status = os.stat(folder.path / MANIFEST)
    except OSError:
        return None
    # A copy has the time of the original, and perhaps the number of what was removed.
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
