"""What is no text but takes a model's time, computed by a thread that stops when nobody waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from ..cancellation import Cancellation
from .service import Service

Found = TypeVar("Found")


async def computed(service: Service, work: Callable[[Cancellation], Found]) -> Found:
    """What ``work`` returns; its steps take turns with those of the texts under way.

    It is given a ``Cancellation``, which is used when the client leaves.
    """
    cancellation = Cancellation()
    loop = asyncio.get_running_loop()
    try:
        return await loop.run_in_executor(service.preparing, work, cancellation)
    finally:
        cancellation.cancel()
