"""Calls that are inside ONNX Runtime, and how they end when they are no longer wanted.

Such a call takes from milliseconds to minutes. Two things may come meanwhile:

The process ends. A thread that comes back from native code while Python is finalizing is unwound
(before Python 3.14: "PyEval_RestoreThread" in the C API's reference), through C++ frames that let
nothing through: the process aborts. So at exit every call is told to stop and waited for, and none
begins any more. By then Python itself has waited for all threads but daemons and those it did not
start, and what those compute is not cut short: a program may well leave the waiting to Python.

Ctrl-C. Python runs a signal's handler in the main thread between two of its own instructions, so
not before a call returns. One that may be long is made by another thread instead, for which the
main thread can wait and hear. No handler is installed: what Ctrl-C means is the program's affair.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

from .cancellation import Cancelled

EXIT_SECONDS = 10.0  # most that exit waits: a call ends with its graph node, which takes less
HELD_SECONDS = 2.0  # that exit takes at most once no call is under way
HEARING_SECONDS = 0.1  # where a wait hears no signal (Windows), it is one of many

Result = TypeVar("Result")
Stop = Callable[[], object]


class _Calls:
    """The calls of this process that are under way, each by what stops it."""

    def __init__(self) -> None:
        self.closing = False
        self._changed = threading.Condition()
        self._stops: dict[object, Stop] = {}

    @contextmanager
    def under_way(self, stop: Stop) -> Iterator[None]:
        """Counts a call. Raises Cancelled if the process is ending."""
        call = object()
        with self._changed:
            if self.closing:
                raise Cancelled("the process is ending")
            self._stops[call] = stop
        try:
            yield
        finally:
            with self._changed:
                del self._stops[call]
                self._changed.notify_all()

    def close(self) -> None:
        """Stops all calls, waits until they have returned, and lets no other begin."""
        with self._changed:
            self.closing = True
            for stop in self._stops.values():
                stop()
            self._changed.wait_for(lambda: not self._stops, EXIT_SECONDS)


_calls = _Calls()


def _forget() -> None:
    """A fork has none of the threads whose calls were under way."""
    global _calls  # its lock may be held by one of them
    _calls = _Calls()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
atexit.register(lambda: _calls.close())


def call_to_stop(call: Callable[[], Result], stop: Stop) -> Result:
    """What ``call`` returns, which ``stop`` ends early when the process ends.

    Raises what it raises, and Cancelled if the process is ending.
    """
    cause: Exception | None = None
    try:
        with _calls.under_way(stop):
            result = call()
    except Exception as error:
        cause = error
        if not _calls.closing:
            raise
    if _calls.closing:
        if threading.current_thread().daemon:
            # It will be ended wherever it is, and Python aborts if that is while it prints.
            time.sleep(HELD_SECONDS)
        raise Cancelled("the process is ending") from cause
    return result


def call_interruptibly(call: Callable[[], Result], stop: Stop) -> Result:
    """What ``call`` returns; an exception that a signal raises meanwhile, as Ctrl-C does, stops it.

    That exception is raised once the call has returned, so that nothing goes on behind it.
    """
    if threading.current_thread() is not threading.main_thread():
        return call()  # Python runs no handlers in this thread
    outcome: tuple[Result | None, BaseException | None] = (None, MemoryError("for a result"))
    begun, returned = threading.Lock(), threading.Lock()
    returned.acquire()

    def work() -> None:
        """In whichever thread comes first."""
        nonlocal outcome
        if begun.acquire(blocking=False):
            try:
                outcome = (call(), None)
            except BaseException as error:
                outcome = (None, error)
            finally:
                returned.release()

    try:
        with contextlib.suppress(RuntimeError):  # too many threads, or Python is finalizing
            _thread.start_new_thread(work, ())
        while not returned.acquire(timeout=HEARING_SECONDS):
            work()  # unless the thread has begun: it may have died for want of memory
    except BaseException:
        stop()
        if not begun.acquire(blocking=False):  # else it never will
            _wait_for(returned)
        raise
    result, error = outcome
    if error is None:
        return cast(Result, result)
    try:
        raise error
    finally:
        del outcome, error  # which would keep what the traceback names, a cache among it


def _wait_for(returned: threading.Lock) -> None:
    """For a call that was told to stop; a second Ctrl-C has nothing to add."""
    while True:
        with contextlib.suppress(KeyboardInterrupt):
            if returned.acquire(timeout=HEARING_SECONDS):
                return
