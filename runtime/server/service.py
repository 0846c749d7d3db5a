"""What all endpoints share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from .log import Log
from .pool import Pool
from .settings import Settings


@dataclass(frozen=True)
class Service:
    """A server's models, settings and log.

    recipes     prompts with examples, for those who begin with one: mappings of "name", "title",
                "prompt" with a place {text}, "example" for that place, and "stop"
    preparing   threads that make requests: tokenizing, rendering and compiling forms take time
    """

    pool: Pool
    settings: Settings
    log: Log
    recipes: Sequence[Mapping[str, Any]] = ()
    preparing: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(2, "preparing")
    )

    def close(self) -> None:
        """Ends its threads, and closes its models."""
        self.preparing.shutdown(wait=False, cancel_futures=True)
        self.pool.close()
