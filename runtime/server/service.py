"""What all endpoints share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from .held_bytes import HeldBytes
from .log import Log
from .metrics import Metrics
from .models.gauges import gauges_of
from .models.pool import Pool, Source
from .settings import Settings

Recipe = Mapping[str, Any]
Made = TypeVar("Made")


@dataclass(frozen=True)
class Service:
    """A server's models, settings and log; ``make_service`` makes one.

    recipes     prompts with examples, for those who begin with one: mappings of "name", "title",
                "prompt" with a place {text}, "example" for that place, and "stop"
    preparing   threads that make requests: tokenizing and rendering take time
    laborious   those for what may take seconds, so that nobody else waits for it
    encoding    the one that writes large answers, a part of each in turn
    held        what requests under way take of memory
    """

    pool: Pool
    settings: Settings
    log: Log
    metrics: Metrics
    recipes: Sequence[Recipe] = ()
    preparing: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(2, "preparing")
    )
    laborious: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(2, "laborious")
    )
    encoding: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "encoding"))
    held: HeldBytes = field(default_factory=HeldBytes)

    async def prepare(self, work: Callable[[], Made], *, laborious: bool) -> Made:
        """What ``work`` returns, by a thread of one of the two kinds."""
        threads = self.laborious if laborious else self.preparing
        return await asyncio.get_running_loop().run_in_executor(threads, work)

    async def encode(self, work: Callable[[], Made]) -> Made:
        """A part of an answer."""
        return await asyncio.get_running_loop().run_in_executor(self.encoding, work)

    def close(self) -> None:
        """Ends its threads, and closes its models."""
        for threads in (self.preparing, self.laborious, self.encoding):
            threads.shutdown(wait=False, cancel_futures=True)
        self.pool.close()


def make_service(
    sources: Sequence[Source], settings: Settings, log: Log, recipes: Sequence[Recipe] = ()
) -> Service:
    """A service of the models ``sources``, none of which is open yet."""
    metrics = Metrics()
    pool = Pool(sources, settings, log, metrics)
    metrics.watch(lambda: gauges_of(pool))
    return Service(pool, settings, log, metrics, recipes)
