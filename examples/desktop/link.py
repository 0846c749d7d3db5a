"""The window's end of an engine: starts its process, and turns what it tells into signals.

A thread starts the process and then waits for its news, so that the window does neither. What
arrives is handled in the window's thread.
"""

from __future__ import annotations

import atexit
import itertools
import multiprocessing
import queue
import threading
from contextlib import suppress
from enum import Enum
from multiprocessing.connection import Connection
from weakref import WeakSet

from engine import serve
from messages import (
    Asked,
    Failed,
    Finished,
    Generate,
    Load,
    Loaded,
    Loading,
    Notice,
    Stop,
    Turn,
    Written,
)
from PySide6.QtCore import QObject, Signal, SignalInstance

END_SECONDS = 2.0  # that an engine may take to end

_running: WeakSet[_Process] = WeakSet()


@atexit.register
def _end_all() -> None:
    """However the program ends: multiprocessing waits for its processes."""
    for process in list(_running):
        process.end(at_once=True)


class State(Enum):
    """What the engine is at."""

    EMPTY = "no model"
    LOADING = "loading"
    READY = "ready"
    GENERATING = "generating"
    STOPPING = "stopping"


class Link(QObject):
    """An engine, which holds one model at a time and generates one text at a time."""

    loading = Signal(object)  # Loading
    notice = Signal(str)
    loaded = Signal(object)  # Loaded
    written = Signal(object)  # Written
    finished = Signal(object)  # Finished
    failed = Signal(str)
    state_changed = Signal(object)  # State

    _arrived = Signal(object, object)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.state = State.EMPTY
        self.model: Loaded | None = None
        self._process: _Process | None = None
        self._ended: list[_Process] = []
        self._numbers = itertools.count(1)
        self._number = 0
        # To a method of this object, so that it runs in this object's thread.
        self._arrived.connect(self._handle)

    @property
    def busy(self) -> bool:
        """Whether a text is being generated."""
        return self.state in (State.GENERATING, State.STOPPING)

    def load(self, path: str | None, precision: str | None = None, kv: str = "auto") -> None:
        """Opens another model; what is under way ends, and what is open stays until then."""
        if self.state is State.LOADING:
            self._end(at_once=True)  # an export takes minutes, and cannot be told to stop
        self.stop()
        self._number = next(self._numbers)  # what is yet told of that text is not heard
        self._set(State.LOADING)
        self._ask(Load(path, precision, kv))

    def generate(
        self, prompt: str | tuple[Turn, ...], temperature: float, max_tokens: int, seed: int | None
    ) -> None:
        """Begins a text; only when ready."""
        assert self.state is State.READY, self.state
        self._number = next(self._numbers)
        self._set(State.GENERATING)
        self._ask(Generate(self._number, prompt, temperature, max_tokens, seed))

    def stop(self) -> None:
        """Ends the text that is generated, if one is."""
        if self.state is State.GENERATING:
            self._set(State.STOPPING)
            self._ask(Stop(self._number))

    def close(self) -> None:
        """Ends the engine, whatever it is at."""
        self._end(at_once=self.state is State.LOADING)
        self._set(State.EMPTY)

    def wait(self) -> None:
        """Returns when no process of this engine is left; for the end of the program."""
        while self._ended:
            self._ended.pop().wait()

    def process_id(self) -> int | None:
        """Of the engine, once it runs."""
        return None if self._process is None else self._process.pid

    def _ask(self, asked: Asked) -> None:
        if self._process is None:
            self._process = _Process(self._arrived)
        self._process.ask(asked)

    def _end(self, at_once: bool) -> None:
        process, self._process, self.model = self._process, None, None
        if process is not None:
            process.end(at_once)
            self._ended.append(process)

    def _set(self, state: State) -> None:
        if state is not self.state:
            self.state = state
            self.state_changed.emit(state)

    def _handle(self, process: _Process, told: object) -> None:
        if process is not self._process:
            return  # of one that was ended
        match told:
            case Loading():
                self.loading.emit(told)
            case Notice():
                self.notice.emit(told.text)
            case Loaded():
                self.model = told
                self._set(State.READY)
                self.loaded.emit(told)
            case Written() if told.number == self._number:
                self.written.emit(told)
            case Finished() if told.number == self._number:
                if self.busy:
                    self._set(State.READY)
                self.finished.emit(told)
            case Failed() if told.number in (None, self._number):
                self._fail(told)
            case _Ended():
                self._end(at_once=True)
                self._set(State.EMPTY)
                self.failed.emit(told.text)

    def _fail(self, failed: Failed) -> None:
        self._set(State.EMPTY if self.model is None else State.READY)
        self.failed.emit(failed.text)


class _Ended:
    """The process is gone although nobody ended it; ``by`` says how, where that is known."""

    def __init__(self, by: str) -> None:
        self.text = (
            f"the engine ended by itself{by}, maybe for want of memory; close other programs or "
            "take a smaller model or precision, then open the model again"
        )


class _Process:
    """The process of an engine, with a thread that starts it and asks, and one that listens."""

    def __init__(self, arrived: SignalInstance) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        # No daemon: a chat template runs in a process of the engine's own.
        self._process = context.Process(target=serve, args=(other,), name="engine")
        self._arrived = arrived
        self._ending = self._at_once = False
        self._to_ask: queue.SimpleQueue[Asked | None] = queue.SimpleQueue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        _running.add(self)
        self._talker = threading.Thread(target=self._talk, args=(other,), daemon=True)
        self._talker.start()

    @property
    def pid(self) -> int | None:
        """Of the process, once it runs."""
        return self._process.pid

    def ask(self, asked: Asked) -> None:
        """Sends it, however long it is, without waiting."""
        self._to_ask.put(asked)

    def end(self, at_once: bool) -> None:
        """Asks it to end, or ends it; ``wait`` sees to it."""
        self._ending, self._at_once = True, self._at_once or at_once
        self._to_ask.put(None)
        if at_once and self.pid is not None:
            self._process.terminate()

    def wait(self, seconds: float = END_SECONDS) -> None:
        """Returns when the process is gone, which it is after ``seconds`` in any case."""
        self._talker.join(seconds)
        if self._listener.ident is not None:
            self._listener.join(seconds)
            if self._listener.is_alive():
                self._process.kill()
                self._listener.join()

    def _talk(self, other: Connection) -> None:
        if self._ending:
            return
        try:
            self._process.start()
        except OSError as error:
            self._arrived.emit(self, _Ended(f" ({error})"))
            return
        other.close()  # so that its end is heard
        self._listener.start()
        if self._at_once:  # said while it was started
            self._process.terminate()
        with suppress(OSError):  # it is gone: the listener tells
            while (asked := self._to_ask.get()) is not None:
                self._connection.send(asked)
            self._connection.send(None)

    def _listen(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                self._arrived.emit(self, self._connection.recv())
        self._process.join()
        code = self._process.exitcode
        if not self._ending:
            by = f" (signal {-code})" if code and code < 0 else ""
            self._arrived.emit(self, _Ended(by))
