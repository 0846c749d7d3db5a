"""The texts that clients of one model wait for: a bound on how many, and their pieces as they come.

The model's own scheduler computes them in a thread. What its steps tell crosses into the event loop
for all texts at once, a hundred times a second at most but for their first pieces and their ends.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

from ...model import Model
from ...scheduler import Job, Listener
from ...text import Piece
from ..errors import ApiError, busy
from ..metrics import ModelMetrics
from ..settings import Settings
from .alone import Alone, AloneJob

# Who reads sees no difference, and to write a token costs as much as a small model takes for it.
PACE_SECONDS = 0.01
MOST_BEHIND_BYTES = 1_000_000  # of pieces that a client has not yet taken
# What a piece takes while it waits, and each of the likeliest tokens in it: see ``TopLogprobs``.
PIECE_BYTES, TOP_BYTES = 700, 12

MakeJob = Callable[[Listener], Job]


class Engine:
    """Runs the texts of one model; for one event loop.

    num_held    texts that run, wait, or are about to
    jobs        of those that run or wait
    alone       what runs beside them
    """

    def __init__(self, model: Model, settings: Settings, metrics: ModelMetrics) -> None:
        model.try_forms_apart()
        self.model = model
        self.num_held = 0
        self.jobs: set[Job] = set()
        self._metrics = metrics
        self.alone = Alone(self._call, settings.max_seconds)
        self._most = settings.most_texts
        self._background = model.new_background(
            rows=settings.parallel,
            kv_bytes=settings.kv_bytes,
            reproducible=settings.reproducible,
            after_step=self._call,
        )
        self._loop = asyncio.get_running_loop()
        self._news: deque[tuple[Texts, int, Piece | None]] = deque()
        self._is_urgent = False  # some of it
        self._is_timed = False  # it will be delivered

    @contextmanager
    def room(self, count: int, field: str = "n") -> Iterator[Room]:
        """Room for ``count`` texts, as ``field`` asks for, until the block ends and they have.

        Raises ApiError: 429 while others take it, 400 where there never is as much.
        """
        if count > self._most:
            raise ApiError(
                400,
                f"the request asks for {count} texts, expected at most {self._most}: what one "
                "model's queue has room for; ask for fewer at once",
                param=field,
            )
        if self.num_held + count > self._most:
            self._metrics.refused(count)
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
        """From a thread that computes, which calls then; a first piece and an end are urgent."""
        self._news.append((texts, index, piece))
        self._is_urgent |= piece is None or not texts.begun

    def run(self, job: Job) -> None:
        """Raises ResourceError where there can be no thread, ClosedError for a closed model."""
        if job.done:
            self._call()
            return
        self.model.session.check_usable()
        if isinstance(job, AloneJob):
            self.alone.run(job)
        else:
            self._background.run(job)
        self.jobs.add(job)

    def ended(self, job: Job) -> None:
        """Nothing more comes of it: its place is free."""
        self.num_held -= 1
        self.jobs.discard(job)
        self._metrics.ended(job)

    def close(self) -> None:
        """Ends all that is under way, and closes the model."""
        self.model.close()
        self.alone.close()

    def _call(self) -> None:
        """From a thread that computes, after each step."""
        if self._news and (self._is_urgent or not self._is_timed):
            self._is_urgent = False
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        if not self._news:
            return
        while self._news:
            texts, index, piece = self._news.popleft()
            texts.arrive(index, piece)
        if not self._is_timed:
            self._is_timed = True
            self._loop.call_later(PACE_SECONDS, self._pace)

    def _pace(self) -> None:
        self._is_timed = False  # before it looks, so that nothing told meanwhile is passed over
        self._deliver()


class Room:
    """Places for texts of one request; each is free when its text has ended, or never began."""

    def __init__(self, engine: Engine, count: int) -> None:
        self._engine = engine
        self._unused = count
        self._texts: list[Texts] = []
        engine.num_held += count

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
            texts.leave()


class Texts:
    """Several texts at once, the answer to one request.

    jobs    a ``Job`` of each
    begun   whether there was a piece of any
    """

    def __init__(self, engine: Engine, makers: Sequence[MakeJob]) -> None:
        self._engine = engine
        self._arrived: deque[tuple[int, Piece | None]] = deque()
        self.begun = False
        self._bytes = 0  # that those take, of a stream
        self._streams = self._has_left = False
        self._news = asyncio.Event()
        self.jobs = [make(partial(engine.tell, self, index)) for index, make in enumerate(makers)]

    def start(self) -> None:
        """Has them join the others."""
        for index, job in enumerate(self.jobs):
            try:
                self._engine.run(job)
            except Exception:
                # Those never begin; of one that has ended already, its listener was told.
                self._engine.num_held -= sum(not other.done for other in self.jobs[index:])
                self.cancel()
                raise

    def cancel(self) -> None:
        """Ends those that have not, with their next token or chunk of a prompt."""
        for job in self.jobs:
            job.cancel()

    def leave(self) -> None:
        """Nobody takes their pieces any more."""
        self._has_left = True
        self._arrived.clear()
        self.cancel()

    def arrive(self, index: int, piece: Piece | None) -> None:
        """A piece of the text ``index``, or None at its end."""
        if piece is None:
            self._engine.ended(self.jobs[index])
        if self._has_left:
            return
        self._arrived.append((index, piece))
        self.begun = True
        self._news.set()
        if self._streams:
            self._bytes += _bytes_of(piece)
            if self._is_behind:
                self.cancel()

    @property
    def _is_behind(self) -> bool:
        """Whether more waits than a client may leave waiting, and not for a step or two only."""
        return self._bytes > MOST_BEHIND_BYTES and len(self._arrived) > 2 * len(self.jobs)

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

    async def batches(self, streams: bool = True) -> AsyncIterator[list[tuple[int, Piece | None]]]:
        """All pieces that are there, whenever there are any; None ends each text.

        Whoever is slow gets several at once, and who falls too far behind the beginning only. No
        job keeps its pieces. Raises what one of them failed with, and ApiError (503) at the end for
        who was too slow, unless what is told is no stream: then nobody waits for it.
        """
        self._streams = streams
        left = len(self.jobs)
        while left:
            if not self._arrived:
                self._news.clear()
                await self._news.wait()
            was_behind = self._is_behind
            batch, self._arrived, self._bytes = list(self._arrived), deque(), 0
            for job in self.jobs:
                job.forget()
            ended = [index for index, piece in batch if piece is None]
            left -= len(ended)
            errors = [self.jobs[index].error for index in ended]
            yield [(index, piece) for index, piece in batch if piece or not self.jobs[index].error]
            for error in errors:
                if error is not None:
                    raise error
            if was_behind:
                raise busy("the client takes its answer too slowly", 503)

    async def finished(self) -> Sequence[Job]:
        """All of them, ended; raises as iterating does."""
        async for _ in self:
            pass
        return self.jobs


def _bytes_of(piece: Piece | None) -> int:
    """About what it takes of memory."""
    if piece is None:
        return 0
    return PIECE_BYTES + sum(TOP_BYTES * len(step.top) for step in piece.steps)
