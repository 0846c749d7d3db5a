"""What all endpoints share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from .held_bytes import HeldBytes
from .log import Log
from .metrics import Gauge, Metrics
from .models.pool import OPEN, Pool, Source
from .settings import Settings

Recipe = Mapping[str, Any]


@dataclass(frozen=True)
class Service:
    """A server's models, settings and log; ``make_service`` makes one.

    recipes     prompts with examples, for those who begin with one: mappings of "name", "title",
                "prompt" with a place {text}, "example" for that place, and "stop"
    preparing   threads that make requests: tokenizing and rendering take time
    laborious   those for what may take seconds, so that nobody else waits for it
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
    held: HeldBytes = field(default_factory=HeldBytes)

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
    metrics.watch(lambda: _gauges(pool))
    return Service(pool, settings, log, metrics, recipes)


def _gauges(pool: Pool) -> Iterator[Gauge]:
    """What there is at this moment."""
    models = pool.served.items()
    engines = {name: served.engine for name, served in models if served.engine is not None}
    begun = {
        name: [job for job in engine.jobs if job.timings.new_tokens]
        for name, engine in engines.items()
    }
    yield (
        "model_open",
        "Whether it is open",
        {name: float(served.state == OPEN) for name, served in models},
    )
    yield (
        "texts_running",
        "Texts that have their first token, and not yet their last",
        {name: len(jobs) for name, jobs in begun.items()},
    )
    yield (
        "texts_waiting",
        "Texts that wait for their first token, in the queue or while their prompt is computed",
        {name: len(engine.jobs) - len(begun[name]) for name, engine in engines.items()},
    )
    yield (
        "kv_bytes",
        "Keys and values of the texts that run",
        {
            name: engines[name].model.session.kv_bytes_per_token
            * sum(job.timings.prompt_tokens + job.timings.new_tokens for job in jobs)
            for name, jobs in begun.items()
        },
    )
    yield (
        "prefix_cache_bytes",
        "Keys and values of prompts that are kept for those that begin alike",
        {name: engine.model.prefix_cache.num_bytes for name, engine in engines.items()},
    )
