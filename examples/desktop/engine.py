"""The process that holds a model: requests come in over a connection, news goes out.

A process, not a thread: Python's other threads stand still while a library loads or a tokenizer is
read (0.1 s and more), and a window must not. It also means that a model too large for the memory
takes this process with it and not the window.
"""

from __future__ import annotations

import math
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from messages import (
    FRAME_SECONDS,
    PRECISIONS,
    Asked,
    Choice,
    Failed,
    Finished,
    Generate,
    Load,
    Loaded,
    Loading,
    Notice,
    Part,
    Stop,
    Told,
    Written,
)

if TYPE_CHECKING:
    # Never run, but PyInstaller reads it: another precision is an export, a name is a download.
    import huggingface_hub  # noqa: F401
    import onnx_ir  # noqa: F401

    from pocketlm import Cancellation, Model, Piece, TextStream

NUM_ALTERNATIVES = 8
MEMORY_SECONDS = 0.5  # between two looks at the memory


def serve(connection: Connection) -> None:
    """Answers what the window asks until it ends the connection, or ends itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the window to hear
    engine = Engine(connection)
    worker = threading.Thread(target=engine.work)
    worker.start()
    engine.listen()
    worker.join()


class Engine:
    """A model, and who asks for what: one thread listens, the other does one thing at a time."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._jobs: queue.SimpleQueue[Load | Generate | None] = queue.SimpleQueue()
        self._stopping: dict[int, Cancellation] = {}
        self._model: Model | None = None
        self._memory = Memory()

    def listen(self) -> None:
        """Takes requests until there is a None or nobody; what is generated then ends, too."""
        with suppress(EOFError, OSError):
            while (asked := self._connection.recv()) is not None:
                self._hear(asked)
        for cancellation in list(self._stopping.values()):
            cancellation.cancel()
        self._jobs.put(None)

    def _hear(self, asked: Asked) -> None:
        if isinstance(asked, Stop):
            if (cancellation := self._stopping.get(asked.number)) is not None:
                cancellation.cancel()
            return
        if isinstance(asked, Generate) and self._model is not None:
            import pocketlm

            # Here, so that a Stop that follows at once finds what it stops.
            self._stopping[asked.number] = pocketlm.Cancellation()
        self._jobs.put(asked)

    def work(self) -> None:
        """Does what was asked, one after the other; what fails is told, and the next one comes."""
        with suppress(OSError):  # nobody listens any more
            while (asked := self._jobs.get()) is not None:
                number = asked.number if isinstance(asked, Generate) else None
                try:
                    if isinstance(asked, Load):
                        self._load(asked)
                    else:
                        self._generate(asked)
                except Exception as error:
                    self._tell(Failed(number, _sentence(error)))
                finally:
                    self._stopping.pop(number or 0, None)
        self._close()

    def _tell(self, told: Told) -> None:
        self._connection.send(told)

    def _load(self, asked: Load) -> None:
        import pocketlm

        self._tell(Loading("open"))
        started = time.perf_counter()
        observer = pocketlm.Observer(
            progress=Progress("export", self._tell),
            message=lambda text: self._tell(Notice(text)),
            note=lambda text: self._tell(Notice(text)),
            download=self._download,
        )
        model = pocketlm.load(asked.path, precision=asked.precision, kv=asked.kv, observer=observer)
        # Not before: what cannot be opened leaves what was.
        self._close()
        self._model = model
        folder = model.folder
        kvs = ("fp32", "int8") if "decoder-int8-kv" in folder.manifest.graphs else ("fp32",)
        precision = folder.manifest.precision.name
        made = asked.path is not None and (Path(asked.path) / "pocketlm.json").is_file()
        self._tell(
            Loaded(
                asked,
                name="demo" if asked.path is None else Path(asked.path).name or asked.path,
                precision=precision,
                precisions=(precision,) if made else PRECISIONS,
                kv=model.session.kv,
                kvs=kvs,
                temperature=float(model.sampling_defaults.get("temperature", 1.0)),
                seconds=time.perf_counter() - started,
                memory_bytes=self._memory.now(),
            )
        )

    def _download(self, repository: str, num_bytes: int) -> AbstractContextManager[Progress]:
        return nullcontext(Progress("download", self._tell))

    def _close(self) -> None:
        model, self._model = self._model, None
        if model is not None:
            model.close()

    def _generate(self, asked: Generate) -> None:
        if self._model is None:
            from pocketlm import RequestError

            raise RequestError("found no open model, expected one to generate with; open one first")
        stream = self._stream(self._model, asked)
        timings, told = stream.timings, -math.inf
        parts: list[Part] = []

        def tell_parts() -> None:
            rate, memory = timings.decode_rate, self._memory.lately()
            self._tell(Written(asked.number, tuple(parts), rate, memory))
            parts.clear()

        for piece in stream:
            parts.append(Part(piece.text, tuple(_choices(self._model, piece))))
            if time.monotonic() - told >= FRAME_SECONDS:
                tell_parts()
                told = time.monotonic()
        if parts:
            tell_parts()
        self._tell(
            Finished(
                asked.number,
                reason=str(stream.finish_reason),
                prompt_tokens=timings.prompt_tokens,
                new_tokens=timings.new_tokens,
                tokens_per_second=timings.decode_rate,
                memory_bytes=self._memory.now(),
            )
        )

    def _stream(self, model: Model, asked: Generate) -> TextStream:
        stream = partial(
            model.stream,
            temperature=asked.temperature,
            max_tokens=asked.max_tokens,
            seed=asked.seed,
            logprobs=NUM_ALTERNATIVES,
            cancellation=self._stopping.get(asked.number),
        )
        if isinstance(asked.prompt, str):
            return stream(asked.prompt)
        messages = [{"role": turn.role, "content": turn.content} for turn in asked.prompt]
        # A base model has no template; it reads the conversation as a script.
        return stream(model.chat_prompt(messages, transcript=model.chat_template is None))


class Progress:
    """Tells how far a stage is, at most 200 times; after its end comes the opening."""

    def __init__(self, stage: str, tell: Callable[[Told], None]) -> None:
        self._stage, self._tell = stage, tell
        self._last = -1

    def __call__(self, done: int, total: int) -> None:
        """So many bytes of so many."""
        step = 200 * done // total if total else 0
        if step != self._last:
            self._last = step
            self._tell(Loading(self._stage, done, total) if done < total else Loading("open"))


class Memory:
    """What this process holds, in bytes; 0 where nothing tells."""

    def __init__(self) -> None:
        self._looked = -math.inf
        self._bytes = 0

    def now(self) -> int:
        """Looked at now."""
        from pocketlm.export.memory import rss_bytes

        with suppress(ImportError):  # Windows
            self._bytes = rss_bytes()
        self._looked = time.monotonic()
        return self._bytes

    def lately(self) -> int:
        """Looked at a moment ago."""
        return self.now() if time.monotonic() - self._looked > MEMORY_SECONDS else self._bytes


def _choices(model: Model, piece: Piece) -> list[Choice]:
    def text(token: int) -> str:
        return model.tokenizer.token_bytes(token, skip_special_tokens=False).decode(
            errors="replace"
        )

    return [
        Choice(
            text(step.token),
            math.exp(step.logprob or 0.0),
            tuple((text(token), math.exp(logprob)) for token, logprob in step.top),
        )
        for step in piece.steps
    ]


def _sentence(error: Exception) -> str:
    """For the window; what is no error of pocketlm's is a fault, and its place goes to stderr."""
    import pocketlm

    if isinstance(error, pocketlm.PocketLMError):
        return str(error)
    traceback.print_exception(error)
    return f"{type(error).__name__}: {error}"
