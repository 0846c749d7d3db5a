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

from ..cancellation import Cancellation
from ..request import Request
from ..scheduler import Job, Listener
from ..text import TextStream
from ..tokenizer import Tokenizer

Found = TypeVar("Found")


class Alone:
    """Runs one thing at a time."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, "alone")

    def run(self, job: AloneJob) -> None:
        """Has it wait for its turn."""
        job.waiting = self._executor.submit(job.work)

    async def call(self, work: Callable[[Cancellation], Found]) -> Found:
        """What ``work`` returns; its argument is cancelled when nobody waits for it any more."""
        cancellation = Cancellation()
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._executor, partial(work, cancellation))
        finally:
            cancellation.cancel()


class AloneJob(Job):
    """A text that runs by itself, as ``Model.stream`` does, told as any other job is.

    waiting     for its turn, once it is run
    """

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

    def work(self) -> None:
        """All of it."""
        try:
            for piece in self._stream:
                self._tell(piece)
        except Exception as error:  # of whatever kind: who waits for it is to hear of it
            self.fail(error)
        else:
            self.finish_reason = self._stream.finish_reason
            self._close()
