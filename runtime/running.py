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
from collections.abc import Callable
from typing import Generic, TypeVar, cast

from .cancellation import Cancelled

EXIT_SECONDS = 10.0  # most that exit waits: a call ends with its graph node, which takes less
HELD_SECONDS = 2.0  # that exit takes at most once no call is under way
HEARING_SECONDS = 0.1  # of a wait, after which it begins anew

Result = TypeVar("Result")
Stop = Callable[[], object]


class _Calls:
    """The calls of this process that are under way, each by what stops it.

    Without a lock: an exception of a signal may come between any two instructions, and would leave
    it locked. A call is entered before it asks whether the end has come, and the end is told before
    the calls are looked at.
    """

    def __init__(self) -> None:
        self.closing = False
        self.stops: dict[object, Stop] = {}

    def close(self) -> None:
        """Stops all calls, waits until they have returned, and lets no other begin."""
        self.closing = True
        deadline = time.monotonic() + EXIT_SECONDS
        while self.stops and time.monotonic() < deadline:
            for stop in list(self.stops.values()):
                stop()
            time.sleep(0.001)


_calls = _Calls()


def _forget() -> None:
    """A fork has none of the threads whose calls were under way."""
    _calls.stops.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
atexit.register(lambda: _calls.close())


def call_to_stop(call: Callable[[], Result], stop: Stop) -> Result:
    """What ``call`` returns, which ``stop`` ends early when the process ends.

    Raises what it raises, and Cancelled if the process is ending.
    """
    entry, cause = object(), None
    try:
        _calls.stops[entry] = stop
        if not _calls.closing:
            result = call()
    except Exception as error:
        if not _calls.closing:
            raise
        cause = error  # not before: its traceback has this frame, and keeps what that names
    finally:
        _calls.stops.pop(entry, None)
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
    if threading.get_ident() != threading.main_thread().ident:
        return call()  # Python runs no handlers in this thread
    work = _Work(call)
    here = False
    try:
        with contextlib.suppress(RuntimeError):  # too many threads, or Python is finalizing
            _thread.start_new_thread(work.do, ())
        while not work.done:
            work.wait()
            here = not work.begun
            if here and work.claim():  # the thread may have died for want of memory
                return call()
    except BaseException:
        stop()
        while not (here or work.done or work.claim()):
            with contextlib.suppress(KeyboardInterrupt):  # which has nothing to add
                work.wait()
        raise
    return work.result()


class _Work(Generic[Result]):
    """A call that is made once, by the thread that claims it first, and awaited by another."""

    def __init__(self, call: Callable[[], Result]) -> None:
        self.begun = self.done = False
        self._call = call
        self._claimed, self._bell = threading.Lock(), threading.Lock()
        self._bell.acquire()
        self._outcome: tuple[Result | None, BaseException | None]
        self._outcome = (None, MemoryError("for a result"))

    def claim(self) -> bool:
        """Whether it was for the taking; from then on it is not."""
        return self._claimed.acquire(blocking=False)

    def do(self) -> None:
        """Makes the call, unless another thread has claimed it."""
        if self.claim():
            self.begun = True
            try:
                self._outcome = (self._call(), None)
            except BaseException as error:
                self._outcome = (None, error)
            finally:
                self.done = True
                self._bell.release()

    def wait(self) -> None:
        """Returns when it is done, or after a moment: where a wait hears no signal (Windows)."""
        self._bell.acquire(timeout=HEARING_SECONDS)

    def result(self) -> Result:
        """What the call returned, or raises what it raised; once."""
        result, error = self._outcome
        del self._outcome  # whose traceback would keep what it names: a cache, say
        if error is None:
            return cast(Result, result)
        try:
            raise error
        finally:
            del error
