"""A model folder opened on ONNX Runtime: token ids and caches go in, logits come out.

Several sequences take a step of one token each together, as rows of one batch; what is longer is
computed for one at a time. Letters: B rows, S new tokens, V vocabulary.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..export.errors import ClosedError, ContextLengthError, RequestError, ResourceError
from ..export.folder import GROWING, DecoderShape, ModelFolder
from ..export.memory import SMALLER, is_exhaustion, memory_errors
from ..export.threads import check_threads
from ..export.whole_number import brief
from .arena import ALONE_CAPACITY, SHORTER, Arena, Cache, KVCache
from .bound_graph import BoundGraph, Feed, TokenIds
from .bound_graph import Logits as Logits
from .cancellation import Cancellation, Cancelled
from .concatenating import ConcatenatingCache
from .device_arena import DeviceArena
from .engine import onnxruntime
from .kept_folder import KeptFolder
from .kv import FP32, GRAPHS, INT8, choose_kv
from .opening import check_version, open_graph
from .prefill_choice import GRAPHS as PREFILL_GRAPHS
from .prefill_choice import INT8 as INT8_PREFILL
from .prefill_choice import LEFT_OUT, NONE, PROMPT_TOKENS, choose_prefill
from .process import check_process
from .providers import CPU, Place
from .returned_memory import GivesBack, give_back
from .running import call_interruptibly
from .spare_buffers import SpareBuffers
from .standby import Standby

Found = TypeVar("Found")
CLOSING_SECONDS = 0.01  # of a wait for a step to end, after which it is told so anew

# Tokens from which on a step is worth interrupting: fewer take little longer than one, of which the
# thread that makes it interruptible would take a share (0.1 ms).
LONG_STEP = 16


class Session:
    """Runs a model folder's graphs for one sequence or several; safe to share between threads.

    Steps of several threads take turns. A process forked after loading must load its own. Steps
    that are under way when the process ends are ended, and waited for; so is a long one of the main
    thread by Ctrl-C. After ``close`` whatever it is asked for is a ClosedError.
    """

    def __init__(
        self,
        folder: ModelFolder,
        threads: int | None = None,
        place: Place = CPU,
        graph: bytes | None = None,
        kv: str = FP32,
        prefill: str = NONE,
    ) -> None:
        """Opens the graph at ``place``; ``threads`` None means the cores this process may use.

        ``kv`` is "fp32", "int8" or "auto": which of the folder's graphs, see ``choose_kv``;
        ``prefill`` is "none", "int8" or "auto": with which weights prompts are computed, see
        ``choose_prefill``. Another graph than the one that decodes is opened by the first step that
        takes it, and closed once none has for a minute; that step raises ModelFolderError where the
        files are others by then.
        ``graph`` is opened instead of the folder's, over the same weights; its cache may be of
        float16.

        Raises ModelFolderError when the graph is none that we can have written, or ONNX Runtime
        refuses it, ProviderError when ``place`` cannot be had, RequestError for a thread count out
        of bounds and what the folder has no graph for, ResourceError when memory runs out.
        """
        self.threads = check_threads(threads)
        check_version(folder)
        self.kv = choose_kv(folder, kv, place)
        """What the cache holds, "fp32" or "int8"; where attention is in float16, that is fp32."""
        self.shape: DecoderShape = folder.shape
        self.place = place
        with memory_errors(f"{folder.path}: opening it", folder.weights_bytes):
            engine = open_graph(folder, GRAPHS[self.kv], self.threads, place, graph)
        self._path = folder.path
        self._decoder: BoundGraph | None = BoundGraph(engine, self.shape, place)
        choice = choose_prefill(folder, prefill, place, self.kv)
        self.prefill = choice.name
        """What computes prompts: "int8", the second set of weights, or "none", that there is."""
        self.prefill_note = choice.note
        """Why the folder's second set of weights was left out although "auto" asked; else None."""
        self._prompts: Standby | None = None
        if choice.name == INT8_PREFILL:
            kept = KeptFolder(folder, PREFILL_GRAPHS[self.kv])
            # Not a method: the session would refer to itself, and outlive its last user.
            self._prompts = Standby(partial(_open_prefill, kept, self.kv, self.threads))
        self._growing = folder.graph().cache.layout == GROWING
        self._cache_dtype = np.float32 if graph is None else np.float16  # on a device
        self._spare = SpareBuffers()
        # Reentrant, so that the handler of a signal that comes in a step may close it.
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._closed = False
        self._running: Cancellation | None = None  # what ends the step under way
        self._memory = GivesBack()

    def close(self) -> None:
        """Frees all that was opened; a step that another thread has under way ends first.

        That one, and whatever is asked for later, raises ClosedError. To close it again does
        nothing. What caches hold is theirs, and goes with them.
        """
        self._closed = True
        if os.getpid() != self._process:
            return  # a fork has no thread that would end its step
        ended: list[Cancellation] = []
        while not self._lock.acquire(timeout=CLOSING_SECONDS):
            if (stopping := self._running) is not None:
                stopping.interrupt()
                ended.append(stopping)
        if self._decoder is not None:
            self._decoder = self._prompts = None
            self._spare.give_up()
            give_back()
        self._lock.release()
        for stopping in ended:
            stopping.go_on()

    @property
    def engine(self) -> onnxruntime.InferenceSession:
        """The opened graph, for a loop of another shape than one sequence."""
        return self._opened.engine

    @property
    def rotated_alike(self) -> int | None:
        """Tokens up to which texts are rotated alike; None: they are, whatever their length."""
        return self._opened.rotated_alike

    @property
    def _opened(self) -> BoundGraph:
        if (decoder := self._decoder) is None:
            raise closed_error(self._path)
        return decoder

    @property
    def run_seconds(self) -> float:
        """Spent inside ONNX Runtime, by all steps so far."""
        return self._opened.seconds + (0.0 if self._prompts is None else self._prompts.seconds)

    @property
    def prefills_rows(self) -> bool:
        """Whether the second set of weights can compute a token for each of several sequences.

        Over a cache of int8 it cannot: its graph makes float32 of what a sequence has, which is
        worth it for many tokens, while the decoder's kernel reads it as it is.
        """
        return self._prompts is not None and self.kv == FP32

    def new_cache(self) -> Cache:
        """An empty cache for one sequence, of the kind the graph was made for."""
        self.check_usable()
        if self._growing or self._on_device:
            return self.new_caches()()
        return Arena(self.shape, ALONE_CAPACITY, self._arena_dtype, self._spare).new()

    def new_caches(self) -> Callable[[], Cache]:
        """A function that makes such a cache at every call, so that they can be stepped together.

        Where the graph has its cache in place they are rows of one ``Arena``: what one thread uses.
        """
        self.check_usable()
        if self._growing:
            return lambda: ConcatenatingCache(self.shape)
        if self._on_device:
            return DeviceArena(self.shape, self.place.memory, self._cache_dtype).new
        return Arena(self.shape, dtype=self._arena_dtype).new

    @property
    def _arena_dtype(self) -> type[np.number[Any]]:
        return np.int8 if self.kv == INT8 else np.float32

    @property
    def cache_dtype(self) -> np.dtype[Any]:
        """Of a number in a cache."""
        return np.dtype(np.int8 if self.kv == INT8 else self._cache_dtype)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes that a token takes in a cache."""
        return self.shape.kv_numbers_per_token * self.cache_dtype.itemsize

    @property
    def _on_device(self) -> bool:
        return self.place is not CPU

    def step(
        self,
        token_ids: TokenIds,
        cache: Cache,
        cancellation: Cancellation | None = None,
        out: Logits | None = None,
    ) -> Logits:
        """Appends S tokens to ``cache``; the logits after the last one: a float32 (V,) array.

            cache = model.session.new_cache()
            logits = model.session.step(model.tokenizer.encode("Once upon a"), cache)
            likeliest = logits.argsort()[:-6:-1]      # ids of the five likeliest next tokens
            logits = model.session.step([likeliest[0]], cache)

        They are written to ``out``, or to a new array; the same again is the fastest. Raises
        RequestError for no tokens, an id outside the vocabulary, or a full context;
        ResourceError when memory runs out; Cancelled when ``cancellation`` was used, or the process
        ends. After an error ``cache`` holds what it held, and can be used on.
        """

        def row() -> Logits:
            self.check_step(token_ids, cache)
            logits = np.empty(self.shape.vocab_size, np.float32) if out is None else out
            self._graph(len(token_ids), stopping).step(cache, token_ids, logits, stopping)
            return logits

        stopping = cancellation or Cancellation()
        return self._in_turn(row, len(token_ids), stopping)

    def step_together(
        self,
        feeds: Sequence[Feed],
        cancellation: Cancellation | None = None,
        *,
        multiple: int = 1,
        prefill: bool = False,
        out: Logits | None = None,
    ) -> Logits:
        """As ``step``, for several caches: the logits after the last token of each, (B, V).

            new_cache = model.session.new_caches()
            caches = [new_cache() for _ in range(3)]
            for cache in caches:
                model.session.step(model.tokenizer.encode("Once upon a"), cache)
            feeds = [(cache, [token]) for token, cache in enumerate(caches)]
            logits = model.session.step_together(feeds)

        Caches that one function of ``new_caches`` made get a token each in one run, a ``multiple``
        of rows at a time: what is missing is made up. With ``prefill`` the weights for prompts
        compute them, if they can: see ``prefills_rows``. Longer feeds, and caches that cannot share
        a run, are computed one after another, as by ``step``. The logits are written to the first
        rows of ``out``, a contiguous float32 array, or to a new one. Raises what ``step`` raises,
        before anything runs where a feed is wrong; after an error every cache holds what it held.
        """

        def rows() -> Logits:
            for cache, token_ids in feeds:
                self.check_step(token_ids, cache)
            if len({id(cache) for cache, _ in feeds}) < len(feeds):
                raise RequestError(
                    "found one cache twice in a step, expected each once; give its tokens together"
                )
            held = [cache.length for cache, _ in feeds]
            shape = (len(feeds), self.shape.vocab_size)
            logits = np.empty(shape, np.float32) if out is None else out[: shape[0]]
            try:
                for places in _runs(feeds):
                    some = [feeds[place] for place in places]
                    if _shared_arena(*some[0]) is None:
                        graph = self._graph(len(some[0][1]), stopping)
                        graph.step(*some[0], logits[places[0]], stopping)
                        continue
                    graph = self._graph_of_rows(prefill, stopping)
                    if len(some) == multiple == 1:
                        graph.step(*some[0], logits[places[0]], stopping)
                    else:
                        graph.step_rows(some, places, multiple, logits, stopping)
            except BaseException:
                for (cache, _), length in zip(feeds, held, strict=True):
                    cache.truncate(length)
                raise
            return logits

        stopping = cancellation or Cancellation()
        longest = max((len(token_ids) for _, token_ids in feeds), default=0)
        return self._in_turn(rows, longest, stopping)

    def all_logits(
        self,
        token_ids: TokenIds,
        cache: Cache,
        out: Logits | None = None,
        cancellation: Cancellation | None = None,
    ) -> Logits:
        """As ``step``, with the logits after every one of the S tokens: (S, V).

        They are written to ``out``, the first rows of a contiguous float32 array, or a new one.
        The weights that decode compute them, however many there are: so that a score is what a
        token would have got that is generated there.
        """

        def rows() -> Logits:
            self.check_step(token_ids, cache)
            shape = (len(token_ids), self.shape.vocab_size)
            logits = np.empty(shape, np.float32) if out is None else out[: shape[0]]
            self._graph(1, stopping).all_rows(cache, token_ids, logits, stopping)
            return logits

        stopping = cancellation or Cancellation()
        return self._in_turn(rows, len(token_ids), stopping)

    def prepare(self, count: int) -> None:
        """Opens now what a step of ``count`` tokens would open; raises what that would raise."""
        stopping = Cancellation()
        self._in_turn(lambda: self._graph(count, stopping), count, stopping)

    def check_step(self, token_ids: TokenIds, cache: Cache) -> None:
        """Raises the RequestError with which a step of ``token_ids`` would end."""
        count, length = len(token_ids), cache.length
        if count == 0:
            raise RequestError("found no token ids, expected at least one")
        if length + count > self.shape.context_length:
            raise ContextLengthError(
                f"found {length} + {count} tokens, expected at most {self.shape.context_length} "
                "(the context length); shorten the prompt"
            )
        # The kernel turns an id outside the vocabulary into zeros or worse, so it ends here.
        smallest, largest = int(min(token_ids)), int(max(token_ids))
        if smallest < 0 or largest >= self.shape.vocab_size:
            wrong = smallest if smallest < 0 else largest
            raise RequestError(
                f"found token id {brief(wrong)}, expected 0 to {self.shape.vocab_size - 1}; "
                "use ids of this model's tokenizer"
            )

    def _in_turn(self, compute: Callable[[], Found], count: int, stopping: Cancellation) -> Found:
        """What ``compute`` makes of a step of ``count`` tokens, once no other thread's is running.

        A long one is interruptible, and as a whole, so that an exception at whatever moment finds
        the session between two steps.
        """
        self.check_usable()

        def turn() -> Found:
            with self._lock:
                if self._closed:
                    raise self._ended(stopping)
                if self._running is not None:
                    raise RequestError(
                        "found a step within a step, as of a signal's handler, expected one after "
                        "the other; have the handler tell the program what to compute"
                    )
                try:
                    self._running = stopping
                    return compute()
                except Exception as error:
                    if not self._closed:
                        if isinstance(error, ResourceError) or is_exhaustion(error):
                            self._spare.give_up()
                        with memory_errors(f"a step of {count} tokens", advice=SHORTER):
                            raise
                finally:
                    self._running = None
            # Out here, without the error as its context: that refers to the graph, and holds it.
            raise self._ended(stopping)

        return call_interruptibly(turn, stopping.cancel) if count >= LONG_STEP else turn()

    def _ended(self, stopping: Cancellation) -> Exception:
        """Of a step of a closed session; whoever had it cancelled knows how it ends."""
        if stopping.cancelled:
            return Cancelled("the step was cancelled")
        return closed_error(self._path)

    def _graph(self, count: int, stopping: Cancellation) -> BoundGraph:
        """What computes a step of ``count`` tokens of one sequence."""
        if self._prompts is None:
            return self._opened
        if count >= PROMPT_TOKENS:
            return self._prompts.graph(stopping)
        self._prompts.rest()
        return self._opened

    def _graph_of_rows(self, prefill: bool, stopping: Cancellation) -> BoundGraph:
        """What computes a token for each of several sequences."""
        if prefill and self._prompts is not None and self.prefills_rows:
            return self._prompts.graph(stopping)
        return self._graph(1, stopping)

    def check_usable(self) -> None:
        """Raises PocketLMError in a fork of the process that opened it, ClosedError when closed."""
        check_process(self._process)
        if self._closed:
            raise closed_error(self._path)


def closed_error(path: Path) -> ClosedError:
    """Of the model at ``path``, when something is asked of it after it was closed."""
    return ClosedError(
        f"{path}: this model was closed, expected an open one; load it again with pocketlm.load, "
        "or close it later"
    )


def _open_prefill(kept: KeptFolder, kv: str, threads: int, stopping: Cancellation) -> BoundGraph:
    folder, name = kept.folder, PREFILL_GRAPHS[kv]
    what = f"{folder.path}: opening the weights for prompts"
    with memory_errors(what, folder.prefill_memory_bytes, f"{SMALLER}, {LEFT_OUT}"):
        kept.check()
        return BoundGraph(open_graph(folder, name, threads, CPU, stopping=stopping), folder.shape)


def _shared_arena(cache: Cache, token_ids: TokenIds) -> Arena | None:
    """Whose rows can be computed at once with this feed; None: it is computed alone."""
    if isinstance(cache, KVCache) and cache.arena.together and len(token_ids) == 1:
        return cache.arena
    return None


def _runs(feeds: Sequence[Feed]) -> list[list[int]]:
    """The places in ``feeds`` that are computed at once, in the order of the first of them."""
    runs: dict[object, list[int]] = {}
    for place, feed in enumerate(feeds):
        runs.setdefault(_shared_arena(*feed) or place, []).append(place)
    return list(runs.values())
