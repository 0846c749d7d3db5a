"""Many requests at once: who joins when, and where their text goes.

Requests wait in the order in which they came, and join as soon as there is room: for rows, and for
the keys and values that all of them may come to hold. Then every one gets a token a step.
"""

from __future__ import annotations

import _thread
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from ..export.errors import PocketLMError, RequestError
from ..export.memory import exhausted, free_bytes, memory_errors
from ..export.whole_number import brief, whole_number
from .arena import SHORTER
from .cancellation import Cancelled
from .decode import Batch
from .prefix import Prefixes
from .process import check_process
from .request import Request
from .row_rule import MOST_ROWS, PLAIN, RowSteps
from .sequence import Sequence, Step
from .session import Session
from .text import Output, Piece, Result
from .tokenizer import Tokenizer

TAKING_SECONDS = 0.005  # that requests are made one after the other while others could go on
BIRTH_SECONDS = 5.0  # that a new thread may take to begin, on a machine that is busy

Listener = Callable[[Piece | None], None]


def _nobody(piece: Piece | None) -> None:
    """Listens to what has ended."""


class Job(Output):
    """A request that runs in the background: its pieces are there to be waited for.

        job = model.submit("Once upon a time", max_tokens=20)
        for piece in job:
            print(piece.text, end="")
        job.result().finish_reason, job.cancel()

    prompt_ids      the tokens of the prompt
    token_ids       those generated so far
    finish_reason   what ended it, see ``Result``; None while it goes on
    timings         seconds and rates: a ``Timings``
    index           place among the requests that were given together
    error           what it failed with, else None
    """

    def __init__(
        self,
        request: Request,
        tokenizer: Tokenizer,
        index: int = 0,
        listener: Listener | None = None,
    ) -> None:
        """``listener`` is told every piece, and None at the end, by the thread that computes."""
        super().__init__(request, tokenizer)
        self.index = index
        self.error: Exception | None = None
        self._pieces: list[Piece] = []
        self._arrived: queue.SimpleQueue[Piece | None] = queue.SimpleQueue()
        self._listener = self._arrived.put if listener is None else listener
        self._cancelled = False
        self._done = threading.Event()
        self._process = os.getpid()

    @property
    def request(self) -> Request:
        """What was asked for."""
        return self._request

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return self._done.is_set()

    @property
    def wants_to_end(self) -> str | None:
        """The finish reason of a job that is not to go on: cancelled, or out of time."""
        if self._cancelled:
            return "cancelled"
        return "timeout" if self.expired else None

    def cancel(self) -> None:
        """Ends it from any thread, at the next token or chunk of a prompt."""
        self._cancelled = True

    def __iter__(self) -> Iterator[Piece]:
        """The pieces as they come, once; raises what the job failed with.

        In a fork of the process PocketLMError, unless it has ended.
        """
        self._check_comes()
        while (piece := self._arrived.get()) is not None:
            yield piece
        self._arrived.put(None)  # for who iterates again
        if self.error is not None:
            raise self.error

    def result(self, timeout: float | None = None) -> Result:
        """The whole, when it is there: waits for it, ``timeout`` seconds at most.

        Raises what the job failed with, TimeoutError, and in a fork of the process, where nobody
        computes it, PocketLMError unless it has ended.
        """
        self._check_comes()
        if not self._done.wait(timeout):
            raise TimeoutError(f"the job has not ended within {timeout} seconds")
        if self.error is not None:
            raise self.error
        return self.so_far()

    def so_far(self) -> Result:
        """What there is of it."""
        return self.result_of(self._pieces, self.index, self.error)

    def forget(self) -> None:
        """Lets go of the pieces so far, for a ``listener`` that has them: ``so_far`` has not."""
        self._pieces.clear()

    def take(self, step: Step, sequence: Sequence) -> None:
        """A token has come."""
        self._tell(self.add(step, sequence))
        if self.finish_reason is not None:
            self.finish(self.finish_reason)

    def finish(self, reason: str) -> None:
        """Nothing more comes; ``reason`` is why, if nothing else ended it."""
        self._tell(self.end(reason))
        self._close()

    def fail(self, error: Exception) -> None:
        """Nothing more comes, because of ``error``."""
        self.error, self.finish_reason = error, "error"
        self._close()

    def _check_comes(self) -> None:
        """Raises PocketLMError where what is not there yet never comes."""
        if not self.done:
            check_process(self._process)

    def _tell(self, piece: Piece | None) -> None:
        if piece is not None:
            self._pieces.append(piece)
            self._listener(piece)

    def _close(self) -> None:
        self._done.set()
        # Who listens may well hold the job, and would be held by it.
        listener, self._listener = self._listener, _nobody
        listener(None)


class Scheduler:
    """Runs jobs together on one session; one thread at a time may use it."""

    def __init__(
        self,
        session: Session,
        rows: RowSteps = PLAIN,
        most_rows: int = MOST_ROWS,
        kv_bytes: int | None = None,
        prefixes: Prefixes | None = None,
    ) -> None:
        """``rows`` and ``prefixes`` are those of ``Batch``.

        ``kv_bytes`` is what keys and values of those that run may take, None: any.

        Raises RequestError for rows or bytes out of range.
        """
        check_limits(most_rows, kv_bytes)
        self._session = session
        self._batch = Batch(session, rows, prefixes)
        self._most_rows = most_rows
        self._kv_bytes = kv_bytes
        self._waiting: deque[Job] = deque()
        self._running: dict[Sequence, Job] = {}

    def add(self, job: Job) -> None:
        """Has it wait for its turn."""
        self._waiting.append(job)

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._waiting and not self._running

    def run(self, jobs: Iterator[Job]) -> Iterator[Result]:
        """Runs ``jobs``, taken only as fast as they run; their results as they end.

        Raises what ``step`` raises, after which, as when it is closed, none goes on.
        """
        more = True
        try:
            while more or not self.is_idle:
                more = more and self._take(jobs)
                for job in self.step():
                    yield job.so_far()
        finally:
            self.drained()

    def _take(self, jobs: Iterator[Job]) -> bool:
        """Adds as many as there are rows for; whether there may be more.

        It waits for one only, while there is none: who makes them may be slow.
        """
        until = time.perf_counter() + TAKING_SECONDS
        while len(self._waiting) < max(1, self._most_rows - len(self._batch)):
            if self._waiting and time.perf_counter() > until:
                break
            job = next(jobs, None)
            if job is None:
                return False
            self.add(job)
        return True

    def step(self) -> list[Job]:
        """One step of all; the jobs that ended with it.

        An error of one job is its own. Raises what ends a step of all: Cancelled when the process
        ends, ResourceError without memory for it; nothing is lost then, and it can be tried again.
        """
        ended = self._ended_early()
        for sequence, step in self._batch.step(lambda: self._joins(ended)):
            job = self._running[sequence]
            if isinstance(step, PocketLMError):
                job.fail(step)
            else:
                job.take(step, sequence)
            if job.done:
                self._leave(sequence)
                ended.append(job)
        return ended

    def _joins(self, ended: list[Job]) -> bool:
        """Has the next request join, if there is one and room for it; ``ended`` get who cannot."""
        while self._waiting and self._has_room(self._waiting[0]):
            job = self._waiting.popleft()
            try:
                with memory_errors("beginning with a request", advice=SHORTER):
                    self._running[self._batch.join(job.request)] = job
                return True
            except Exception as error:  # of whatever kind: in neither list, nobody else ends it
                job.fail(error)
                ended.append(job)
        return False

    def drained(self) -> list[Job]:
        """Takes out every job that has not ended."""
        jobs = [*self._running.values(), *self._waiting]
        for sequence in list(self._running):
            self._leave(sequence)
        self._waiting.clear()
        return jobs

    def _ended_early(self) -> list[Job]:
        ended = []
        for sequence, job in list(self._running.items()):
            if (reason := job.wants_to_end) is not None:
                self._leave(sequence)
                job.finish(reason)
                ended.append(job)
        for job in list(self._waiting):
            stops = job.request.stops_at_once(self._session.shape.context_length)
            if (reason := job.wants_to_end or ("context" if stops else None)) is not None:
                self._waiting.remove(job)
                job.finish(reason)
                ended.append(job)
        return ended

    def _leave(self, sequence: Sequence) -> None:
        self._batch.leave(sequence)
        del self._running[sequence]

    def _has_room(self, job: Job) -> bool:
        """Of rows and bytes; the first request always has."""
        count = len(self._batch) + 1
        if count == 1:
            return True
        tokens = count * max(self._batch.most_tokens, self._batch.longest(job.request))
        fits = self._kv_bytes is None or tokens * self._session.kv_bytes_per_token <= self._kv_bytes
        return count <= self._most_rows and fits


def half_of_free(asked: int | None = None) -> int | None:
    """``asked``, or else half of the memory that is free; None where that is unknown."""
    free = free_bytes()
    return asked if asked is not None or free is None else free // 2


def check_limits(rows: object, kv_bytes: object) -> None:
    """Raises RequestError for rows or bytes out of range; None of the latter are any."""
    _check("rows", rows, 1, MOST_ROWS)
    if kv_bytes is not None:
        _check("kv_bytes", kv_bytes, 0, None)


def _check(name: str, value: object, least: int, most: int | None) -> None:
    number = whole_number(value)
    if number is None or number < least or (most is not None and number > most):
        bounds = f"{least} up" if most is None else f"{least} to {most}"
        raise RequestError(
            f"{name} is {brief(value)}, expected an integer from {bounds}; leave it out for as "
            "many as serve"
        )


class Background:
    """Runs jobs in a thread, which there is as long as there are any."""

    def __init__(
        self,
        make_scheduler: Callable[[], Scheduler],
        after_step: Callable[[], None] = lambda: None,
    ) -> None:
        """``make_scheduler`` is called by the thread: finding a model's row group takes time.

        So is ``after_step``, when the listeners have been told what a step came to.
        """
        self._make_scheduler = make_scheduler
        self._after_step = after_step
        self._lock = threading.Lock()
        self._given: deque[Job] = deque()
        self._at_work = False

    def run(self, job: Job) -> None:
        """Has it join the others. Raises ResourceError where there can be no thread."""
        with self._lock:
            if not self._at_work:
                self._start()
                self._at_work = True
            self._given.append(job)

    def _start(self) -> None:
        """Starts the thread, and waits until it works.

        One that finds no memory dies without a word: ``Thread.start`` would wait for it for ever.
        """
        claim, begun = threading.Lock(), threading.Event()

        def work() -> None:
            if claim.acquire(blocking=False):
                begun.set()
                self._work()

        with memory_errors("a thread for jobs"):
            _thread.start_new_thread(work, ())
        if not begun.wait(BIRTH_SECONDS) and claim.acquire(blocking=False):
            raise exhausted("a thread for jobs")

    def _work(self) -> None:
        scheduler: Scheduler | None = None
        while (given := self._next_jobs(scheduler is None or scheduler.is_idle)) is not None:
            try:
                scheduler = scheduler or self._make_scheduler()
                while given:
                    scheduler.add(given.popleft())
                scheduler.step()
            except Cancelled:
                _end([*given, *([] if scheduler is None else scheduler.drained())], None)
            except Exception as error:  # of whatever kind: who waits for a job is to hear of it
                _end([*given, *([] if scheduler is None else scheduler.drained())], error)
            self._after_step()

    def _next_jobs(self, idle: bool) -> deque[Job] | None:
        """Those that were given since; None ends the thread, once there is nothing to do."""
        with self._lock:
            given, self._given = self._given, deque()
            self._at_work = bool(given) or not idle
            return given if self._at_work else None


def _end(jobs: Iterable[Job], error: Exception | None) -> None:
    for job in jobs:
        if error is None:
            job.finish("cancelled")
        else:
            job.fail(error)
