"""Calls into ONNX Runtime end with Ctrl-C and with the process, and leave nothing half done.

The signal is sent once the call is under way, and the call ends when it is told to: no test
depends on how long anything takes.
"""

from __future__ import annotations

import _thread
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import pocketlm
from pocketlm.export.folder import ModelFolder
from pocketlm.export.interrupts import on_interrupt
from pocketlm.runtime import running
from pocketlm.runtime.bound_graph import BoundGraph
from pocketlm.runtime.cancellation import Cancellation, Cancelled
from pocketlm.runtime.running import call_interruptibly, call_to_stop
from pocketlm.runtime.session import LONG_STEP, Session

IDS = [int(number) for number in np.random.default_rng(5).integers(0, 300, 60)]
PATIENCE = 60.0  # of a test that fails


@pytest.fixture
def ctrl_c() -> Iterator[Callable[[], None]]:
    """Sends this process what Ctrl-C sends, whatever the tests were started with."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)


# Ctrl-C ------------------------------------------------------------------------------------------


def test_an_interrupt_stops_the_call_and_comes_when_it_has_returned(
    ctrl_c: Callable[[], None],
) -> None:
    stopped, events = threading.Event(), []

    def call() -> None:
        ctrl_c()
        assert stopped.wait(PATIENCE)
        events.append("returned")

    def stop() -> None:
        events.append("stopped")
        stopped.set()

    with pytest.raises(KeyboardInterrupt):
        call_interruptibly(call, stop)
    assert events == ["stopped", "returned"]


def test_a_call_gives_its_result_or_its_error() -> None:
    assert call_interruptibly(lambda: 5, lambda: None) == 5
    with pytest.raises(ZeroDivisionError):
        call_interruptibly(lambda: 1 // 0, lambda: None)


def test_only_the_main_thread_needs_another() -> None:
    found: list[int] = []

    def work() -> None:
        found.append(call_interruptibly(threading.get_ident, lambda: None))
        found.append(threading.get_ident())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[0] == found[1]
    assert call_interruptibly(threading.get_ident, lambda: None) != threading.get_ident()


def test_without_another_thread_the_call_is_made_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    def dies(*_: object) -> None:
        """For want of memory, before it has done anything."""

    for start in (refused, dies):
        monkeypatch.setattr(_thread, "start_new_thread", start)
        assert call_interruptibly(threading.get_ident, lambda: None) == threading.get_ident()


@pytest.fixture
def waiting_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Makes every run begin with a call, and wait until it is told to stop."""
    run = BoundGraph._run_bound

    def prepare(begin: Callable[[], None]) -> None:
        def wait(graph: BoundGraph, stopping: Cancellation) -> None:
            begin()
            deadline = time.monotonic() + PATIENCE
            while not stopping.cancelled and time.monotonic() < deadline:
                time.sleep(0.001)
            run(graph, stopping)

        monkeypatch.setattr(BoundGraph, "_run_bound", wait)

    return prepare


Waiting = Callable[[Callable[[], None]], None]


@pytest.mark.parametrize("method", ["step", "all_logits"])
def test_an_interrupted_step_leaves_session_and_cache_as_they_were(
    tiny_session: Session,
    ctrl_c: Callable[[], None],
    waiting_step: Waiting,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    cache, alone = tiny_session.new_cache(), tiny_session.new_cache()
    for held in (cache, alone):
        tiny_session.step(IDS[:10], held)
    with monkeypatch.context():
        waiting_step(ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            getattr(tiny_session, method)(IDS[10 : 10 + LONG_STEP], cache)
    monkeypatch.undo()
    assert cache.length == 10
    found = tiny_session.step(IDS[30:50], cache)
    np.testing.assert_array_equal(found, tiny_session.step(IDS[30:50], alone))


def test_an_interrupted_generation_may_be_started_again(
    tiny_model: pocketlm.Model,
    ctrl_c: Callable[[], None],
    waiting_step: Waiting,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache, stopping = tiny_model.new_cache(), Cancellation()
    waiting_step(ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        tiny_model.generate(IDS, cache=cache, cancellation=stopping)
    assert stopping.cancelled
    monkeypatch.undo()
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 8}
    found = tiny_model.generate(IDS, cache=cache, **options)
    assert found.token_ids == tiny_model.generate(IDS, **options).token_ids


def test_a_handler_that_cancels_ends_the_stream_and_not_the_program(
    tiny_model: pocketlm.Model, ctrl_c: Callable[[], None], waiting_step: Waiting
) -> None:
    """What ``pocketlm chat`` makes of Ctrl-C."""
    waiting_step(ctrl_c)
    stream = tiny_model.stream(IDS)
    with on_interrupt(lambda *_: stream.cancel()):
        assert list(stream) == []
    assert stream.finish_reason == "cancelled"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# The end of the process --------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> running._Calls:
    """As in a process of its own, that may end."""
    calls = running._Calls()
    monkeypatch.setattr(running, "_calls", calls)
    monkeypatch.setattr(running, "HELD_SECONDS", 0)
    return calls


def test_the_end_stops_what_runs_and_waits_for_it(
    tiny_session: Session, calls: running._Calls, waiting_step: Waiting
) -> None:
    """Whether or not the caller gave a ``Cancellation``."""
    ended: list[type[BaseException]] = []
    begun = threading.Semaphore(0)
    waiting_step(begun.release)

    def work(method: Any) -> None:
        cache = tiny_session.new_cache()
        try:
            method(IDS, cache)
        except BaseException as error:
            ended.append(type(error))

    threads = [
        threading.Thread(target=work, args=(method,), daemon=True)
        for method in (tiny_session.step, tiny_session.all_logits)
    ]
    for thread in threads:
        thread.start()
    assert begun.acquire(timeout=PATIENCE)  # the other one waits for its turn
    calls.close()
    assert calls.stops == {}
    for thread in threads:
        thread.join(PATIENCE)
    assert ended == [Cancelled, Cancelled]


def test_nothing_begins_after_the_end(tiny_model: pocketlm.Model, calls: running._Calls) -> None:
    calls.close()
    with pytest.raises(Cancelled, match="the process is ending"):
        call_to_stop(lambda: 1, lambda: None)
    with pytest.raises(Cancelled):
        Session(tiny_model.folder, threads=1)
    stream = tiny_model.stream("a")
    assert (list(stream), stream.finish_reason) == ([], "cancelled")


def test_what_an_ended_call_raised_is_the_cause(calls: running._Calls) -> None:
    def call() -> None:
        calls.closing = True
        raise RuntimeError("Exiting due to terminate flag being set to true.")

    with pytest.raises(Cancelled) as caught:
        call_to_stop(call, lambda: None)
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_waits_for_none_of_its_parents_calls() -> None:
    def call() -> int:
        child = os.fork()
        if child == 0:
            os._exit(len(running._calls.stops))
        return child

    child = call_to_stop(call, lambda: None)
    assert os.waitpid(child, 0)[1] == 0


# Threads of every kind that Python does not wait for: daemons that generate, score and load, and
# one that C has started.
LEFT_BEHIND = """
import ctypes, sys, threading
import pocketlm
path, kinds = sys.argv[1], 4
model = pocketlm.load(path, threads=1)
other = pocketlm.load(path, threads=2)
begun = threading.Semaphore(0)

def generate():
    for _ in model.stream("a", max_tokens=100, ignore_eos=True):
        begun.release()

def score():
    other.session.all_logits([5] * 160, other.session.new_cache())

def load():
    pocketlm.load(path, threads=1)

def repeat(work):
    while True:
        work()
        begun.release()

for work in (generate, score, load):
    threading.Thread(target=repeat, args=(work,), daemon=True).start()
if sys.platform == "linux":
    function = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(lambda _: repeat(generate))
    ctypes.CDLL(None).pthread_create(ctypes.byref(ctypes.c_ulong()), None, function, None)
for _ in range(40):
    begun.acquire()
print("the end")
"""
# Python waits for this one itself, before it ends.
WAITED_FOR = """
import sys, threading
import pocketlm
model = pocketlm.load(sys.argv[1], threads=1)

def work():
    result = model.generate("a", max_tokens=100, ignore_eos=True, temperature=0)
    print(len(result.token_ids), result.finish_reason)

threading.Thread(target=work).start()
"""


@pytest.mark.parametrize(
    ("program", "said"), [(LEFT_BEHIND, "the end\n"), (WAITED_FOR, "100 length\n")]
)
def test_the_process_ends_well_whatever_its_threads_are_at(
    tiny_folder: ModelFolder, program: str, said: str
) -> None:
    command = [sys.executable, "-c", program, str(tiny_folder.path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, said, "")


# What ends the process in the middle of a text, the exit code, and the last line that is said: all
# of it the program's own.
BEGUN = """
import asyncio, os, signal, sys, threading
import pocketlm
model = pocketlm.load(sys.argv[1], threads=2)
long = {"max_tokens": 150, "ignore_eos": True}

def repeat():
    while True:
        for _ in model.stream("a", **long):
            begun.release()

def wait():
    for _ in range(20):
        begun.acquire()

begun = threading.Semaphore(0)
signal.signal(signal.SIGINT, signal.default_int_handler)
"""
IN_THE_MIDDLE = {
    "sys.exit": ("next(model.stream('a', **long)); sys.exit(3)", 3, ""),
    "an error beside a daemon thread": (
        "threading.Thread(target=repeat, daemon=True).start(); wait(); 1 // 0",
        *(1, "ZeroDivisionError: "),
    ),
    "sys.exit in a thread": (
        "thread = threading.Thread(target=lambda: (next(model.stream('a', **long)), sys.exit(3)))\n"
        "thread.start(); thread.join()",
        *(0, ""),
    ),
    "Ctrl-C": (
        "interrupt = lambda: (wait(), os.kill(os.getpid(), signal.SIGINT))\n"
        "threading.Timer(0, interrupt).start(); repeat()",
        *(-signal.SIGINT, "KeyboardInterrupt"),
    ),
    "jobs": ("jobs = [model.submit('a', **long) for _ in range(3)]; next(iter(jobs[0]))", 0, ""),
    "a loop": (
        """
async def read():
    async for _ in model.astream("a", **long):
        begun.release()
async def main():
    tasks = [asyncio.create_task(read()) for _ in range(2)]
    await asyncio.to_thread(wait)
asyncio.run(main())
""",
        *(0, ""),
    ),
    "a model that is being closed": (
        "threading.Thread(target=repeat, daemon=True).start(); wait()\n"
        "threading.excepthook = lambda *_: None; model.close()",
        *(0, ""),
    ),
}


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
@pytest.mark.parametrize("name", IN_THE_MIDDLE)
def test_the_process_may_end_in_the_middle_of_a_text(tiny_folder: ModelFolder, name: str) -> None:
    program, code, said = IN_THE_MIDDLE[name]
    command = [sys.executable, "-c", BEGUN + program, str(tiny_folder.path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert (ended.returncode, ended.stdout) == (code, "")
    last = ended.stderr.splitlines()[-1:] or [""]
    assert last[0].startswith(said) and bool(said) == bool(ended.stderr), ended.stderr
    assert ended.stderr.count("Traceback") == bool(said)
