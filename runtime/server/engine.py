"""The texts that clients of one model wait for: a bound on how many, and their pieces as they come.

The model's own scheduler computes them in a thread. What it tells crosses into the event loop in
one call for all texts of a step.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from ..model import Model
from ..request import Request
from ..scheduler import Job, Listener
from ..text import Piece
from .alone import Alone, AloneJob
from .errors import ApiError, busy
from .settings import Settings

MakeJob = Callable[[Listener], Job]


class Engine:
    """Runs the texts of one model; for one event loop.

    num_held    texts that run, wait, or are about to
    alone       what runs beside them
    """

    def __init__(self, model: Model, settings: Settings) -> None:
        model.try_forms_apart()
        self.model = model
        self.num_held = 0
        self.alone = Alone()
        self._most = settings.parallel + settings.most_waiting
        self._background = model.new_background(
            rows=settings.parallel,
            kv_bytes=settings.kv_bytes,
            reproducible=settings.reproducible,
        )
        self._loop = asyncio.get_running_loop()
        self._news: deque[tuple[Texts, int, Piece | None]] = deque()
        self._called = False

    @contextmanager
    def room(self, count: int) -> Iterator[Room]:
        """Room for ``count`` texts, until the block ends and they have.

        Raises ApiError (429), and (400) for more than there is ever room for.
        """
        if count > self._most:
            raise ApiError(
                400,
                f"the request asks for {count} texts, expected at most {self._most}: what one "
                "model's queue has room for; ask for fewer at once",
                param="n",
            )
        if self.num_held + count > self._most:
            raise busy(
                f"the model has {self.num_held} texts under way, expected at most {self._most} "
                "with this request's; try again later"
            )
        room = Room(self, count)
        try:
            yield room
        finally:
            room.leave()

    def tell(self, texts: Texts, index: int, piece: Piece | None) -> None:
        """From the thread that computes."""
        self._news.append((texts, index, piece))
        if not self._called:
            self._called = True
            self._loop.call_soon_threadsafe(self._deliver)

    def run(self, job: Job) -> None:
        """Raises ResourceError where there can be no thread, ClosedError for a closed model."""
        self.model.session.check_usable()
        if isinstance(job, AloneJob):
            self.alone.run(job)
        elif not job.done:
            self._background.run(job)

    def _deliver(self) -> None:
        self._called = False
        while self._news:
            texts, index, piece = self._news.popleft()
            texts.arrive(index, piece)


class Room:
    """Places for texts of one request; each is free when its text has ended, or never began."""

    def __init__(self, engine: Engine, count: int) -> None:
        self._engine = engine
        self._unused = count
        self._texts: list[Texts] = []
        engine.num_held += count

    def start(self, requests: Sequence[Request]) -> Texts:
        """Runs them together with others."""
        return self.start_jobs([partial(job_of, self._engine.model, one) for one in requests])

    def start_jobs(self, makers: Sequence[MakeJob]) -> Texts:
        """Runs the job that each makes, given who is to be told its pieces."""
        texts = Texts(self._engine, makers)
        self._texts.append(texts)
        self._unused -= len(makers)
        texts.start()
        return texts

    def leave(self) -> None:
        """Nobody waits for them any more."""
        self._engine.num_held -= self._unused
        for texts in self._texts:
            texts.cancel()


class Texts:
    """Several texts at once, the answer to one request.

    jobs    a ``Job`` of each
    """

    def __init__(self, engine: Engine, makers: Sequence[MakeJob]) -> None:
        self._engine = engine
        self._arrived: deque[tuple[int, Piece | None]] = deque()
        self._news = asyncio.Event()
        self.jobs = [make(partial(engine.tell, self, index)) for index, make in enumerate(makers)]

    def start(self) -> None:
        """Has them join the others."""
        for index, job in enumerate(self.jobs):
            try:
                self._engine.run(job)
            except Exception:
                self._engine.num_held -= len(self.jobs) - index  # that never began
                self.cancel()
                raise

    def cancel(self) -> None:
        """Ends those that have not, with their next token or chunk of a prompt."""
        for job in self.jobs:
            job.cancel()

    def arrive(self, index: int, piece: Piece | None) -> None:
        """A piece of the text ``index``, or None at its end."""
        if piece is None:
            self._engine.num_held -= 1
        self._arrived.append((index, piece))
        self._news.set()

    async def __aiter__(self) -> AsyncIterator[tuple[int, Piece | None]]:
        """(which, piece) as they come, with None for the piece at the end of each.

        Raises what one of them failed with.
        """
        left = len(self.jobs)
        while left:
            while self._arrived:
                index, piece = self._arrived.popleft()
                if piece is None:
                    left -= 1
                    if (error := self.jobs[index].error) is not None:
                        raise error
                yield index, piece
            if left:
                self._news.clear()
                await self._news.wait()

    async def finished(self) -> Sequence[Job]:
        """All of them, ended; raises as iterating does."""
        async for _ in self:
            pass
        return self.jobs


def job_of(model: Model, request: Request, listener: Listener) -> Job:
    """A text that is computed together with others."""
    return model.new_job(request, listener=listener)
