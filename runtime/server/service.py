"""What all endpoints share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from .held_bodies import Bodies
from .log import Log
from .metrics import Metrics
from .models.gauges import gauges_of
from .models.pool import Pool, Source
from .settings import Settings

Recipe = Mapping[str, Any]
Prepared = TypeVar("Prepared")


@dataclass(frozen=True)
class Service:
    """A server's models, settings and log; ``make_service`` makes one.

    recipes     prompts with examples, for those who begin with one: mappings of "name", "title",
                "prompt" with a place {text}, "example" for that place, and "stop"
    preparing   threads that make requests: tokenizing and rendering take time
    laborious   those for what may take seconds, so that nobody else waits for it
    bodies      of requests under way
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
    bodies: Bodies = field(default_factory=Bodies)

    async def prepare(self, work: Callable[[], Prepared], *, laborious: bool) -> Prepared:
        """What ``work`` returns, by a thread of one of the two kinds."""
        threads = self.laborious if laborious else self.preparing
        return await asyncio.get_running_loop().run_in_executor(threads, work)

    def close(self) -> None:
        """Ends its threads, and closes its models."""
        for threads in (self.preparing, self.laborious):
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
