"""What is computed for a client ends when the client goes."""

from __future__ import annotations

import asyncio
import threading

import pytest
from served import Served, served

from pocketlm.runtime.cancellation import Cancellation
from pocketlm.runtime.server.computing import computed

pytestmark = pytest.mark.serve


def never() -> None:
    raise AssertionError("nothing is opened")


def test_work_is_cancelled_when_nobody_waits_for_it() -> None:
    begun, ended = threading.Event(), threading.Event()

    def work(cancellation: Cancellation) -> None:
        begun.set()
        while not cancellation.cancelled:
            ended.wait(0.001)
        ended.set()

    async def leave(running: Served) -> None:
        task = asyncio.create_task(computed(running.service, work))
        await asyncio.to_thread(begun.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with served({"none": never}) as running:  # type: ignore[dict-item]
        asyncio.run(leave(running))
        assert ended.wait(10)
