"""The models that are served: each is opened when it is first asked for, and dropped when idle."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from ...export.errors import PocketLMError
from ...export.strict_json import quoted
from ..model import Model
from .engine import Engine
from .errors import ApiError, busy, unopened, without_paths
from .settings import Settings


@dataclass(frozen=True)
class Source:
    """A model by its name, and how it is opened; that may take minutes, and raise."""

    name: str
    open: Callable[[], Model]


@dataclass
class Served:
    """A model of the pool.

    engine      None while it is not open
    num_users   requests that have it
    last_used   on the monotonic clock
    """

    source: Source
    engine: Engine | None = None
    num_users: int = 0
    last_used: float = 0.0
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)


class Pool:
    """All models that a server has; for one event loop."""

    def __init__(self, sources: Sequence[Source], settings: Settings) -> None:
        self._settings = settings
        self.served = {source.name: Served(source) for source in sources}
        self.created = int(time.time())

    @property
    def names(self) -> list[str]:
        """Those that may be asked for; the first is the one that is meant where none is named."""
        return list(self.served)

    @asynccontextmanager
    async def use(self, name: str | None) -> AsyncIterator[Engine]:
        """The engine of the model called ``name``, opened if need be; kept until the block ends.

        Raises ApiError (404) for another name, and what opening it raises.
        """
        served = self.find(name)
        # Of an open one the engine says how many: what counts is texts, and not who asks for them.
        if served.engine is None and served.num_users >= self._settings.most_texts:
            raise busy(f"{served.num_users} requests wait for the model to open; try again later")
        served.num_users += 1
        try:
            async with served.opening:
                if served.engine is None:
                    served.engine = Engine(await self._opened(served.source), self._settings)
            try:
                yield served.engine
            except PocketLMError as error:
                raise without_paths(error, self._names_of_folders()) from error
        finally:
            served.num_users -= 1
            served.last_used = time.monotonic()

    async def _opened(self, source: Source) -> Model:
        """Raises ApiError (503)."""
        try:
            return await asyncio.to_thread(source.open)
        except PocketLMError as error:
            raise unopened(source.name, error) from error

    def _names_of_folders(self) -> dict[str, str]:
        """By path, what clients call those models that are open."""
        opened = [served for served in self.served.values() if served.engine is not None]
        return {str(one.engine.model.folder.path): one.source.name for one in opened if one.engine}

    def find(self, name: str | None) -> Served:
        """Raises ApiError (404) with the names that there are."""
        if not name:
            return self.served[self.names[0]]
        if name not in self.served:
            raise ApiError(
                404,
                f"found no model {quoted(name, 100)}, expected one of: {', '.join(self.names)}",
                param="model",
                code="model_not_found",
            )
        return self.served[name]

    def close(self) -> None:
        """Closes those that are open."""
        for served in self.served.values():
            if served.engine is not None:
                served.engine.close()
                served.engine = None
