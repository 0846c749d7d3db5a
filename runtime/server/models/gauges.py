"""What /metrics tells of the models at this moment."""

from __future__ import annotations

from collections.abc import Iterator

from ..metrics import Gauge
from .pool import OPEN, Pool


def gauges_of(pool: Pool) -> Iterator[Gauge]:
    """Of each model: whether it is open, its texts, and the bytes of their keys and values."""
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
