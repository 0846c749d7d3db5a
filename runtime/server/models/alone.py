"""What cannot be computed in company: guessed tokens, beams, scores.

It runs in a thread beside the one that computes all others, one after another, and takes turns with
them step by step. So it takes the memory of one text, however many wait for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from ...cancellation import Cancellation
from ...request import Request
from ...scheduler import Job, Listener
from ...text import TextStream
from ...tokenizer import Tokenizer
from ..errors import NO_RETRY, SERVER, ApiError

Found = TypeVar("Found")


class Alone:
    """Runs one thing at a time."""

    def __init__(self, after_step: Callable[[], None], most_seconds: float | None) -> None:
        """``after_step`` is called by the thread, when the listener of a job has been told more.

        ``most_seconds`` is what anything else than a job may take; None: any.
        """
        self._after_step = after_step
        self._most_seconds = most_seconds
        self._executor = ThreadPoolExecutor(1, "alone")

    def run(self, job: AloneJob) -> None:
        """Has it wait for its turn."""
        job.after_step = self._after_step
        job.waiting = self._executor.submit(job.work)

    def close(self) -> None:
        """Ends its thread, when that has ended what it does."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def call(self, work: Callable[[Cancellation], Found]) -> Found:
        """What ``work`` returns; its argument is cancelled when nobody waits for it any more.

        Raises ApiError (503) where it takes too long.
        """
        cancellation = Cancellation()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._most_seconds):
                return await loop.run_in_executor(self._executor, partial(work, cancellation))
        except TimeoutError as error:
            raise ApiError(
                503,
                f"it takes longer than {self._most_seconds:g} seconds, expected less; ask for less",
                kind=SERVER,
                headers=NO_RETRY,
            ) from error
        finally:
            cancellation.cancel()


class AloneJob(Job):
    """A text that runs by itself, as ``Model.stream`` does, told as any other job is.

    waiting     for its turn, once it is run
    after_step  called when its listener has been told something
    """

    after_step: Callable[[], None]

    def __init__(
        self, request: Request, stream: TextStream, tokenizer: Tokenizer, listener: Listener
    ) -> None:
        super().__init__(request, tokenizer, listener=listener)
        self._stream = stream
        self.token_ids, self.timings = stream.token_ids, stream.timings
        self.waiting: Future[None] | None = None

    def cancel(self) -> None:
        """Ends it, at once if it has not begun."""
        super().cancel()
        self._stream.cancel()
        if self.waiting is not None and self.waiting.cancel():
            self.finish("cancelled")
            self.after_step()

    def work(self) -> None:
        """All of it."""
        try:
            for piece in self._stream:
                self._tell(piece)
                self.after_step()
        except Exception as error:  # of whatever kind: who waits for it is to hear of it
            self.fail(error)
        else:
            self.finish_reason = self._stream.finish_reason
            self._close()
        self.after_step()
