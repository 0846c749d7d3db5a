"""A model folder opened on ONNX Runtime: token ids and caches go in, logits come out.

One ``IOBinding`` lives as long as the session. Between two steps of decoding only the attention
mask is bound anew (it is the only source of lengths in the graph); ids and positions are written
into arrays that stay bound. On a device they are bound anew as well: binding is what copies them
there. Several sequences take a step of one token each together, as rows of one batch; what is
longer is computed for one at a time. Letters: B rows, S new tokens, T total tokens, V vocabulary.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..export.errors import ModelFolderError, PocketLMError, ProviderError, RequestError
from ..export.folder import GROWING, DecoderShape, ModelFolder
from ..export.graph_check.once import check_graph_once
from ..export.memory import is_exhaustion, memory_errors
from ..export.threads import check_threads
from ..export.utf8 import utf8
from ..export.whole_number import brief
from .arena import ALONE_CAPACITY, SHORTER, Arena, Cache, KVCache
from .cancellation import Cancellation, Cancelled
from .concatenating import ConcatenatingCache
from .device_arena import DeviceArena
from .engine import onnxruntime
from .int8_products import options_for
from .kv import FP32, GRAPHS, INT8, choose_kv
from .process import check_process
from .providers import CPU, Place, refused, start_obstacle
from .running import call_interruptibly, call_to_stop
from .spare_buffers import SpareBuffers

# Tokens from which on a step is worth interrupting: fewer take little longer than one, of which the
# thread that makes it interruptible would take a share (0.1 ms).
LONG_STEP = 16
# That a thread waits for work, or for another's, before it sleeps. Long enough for the gaps between
# two nodes, as fast as no limit; where another process takes a core, a waiting thread would use up
# its share of it and then be late with its work: see benchmarks/NOTES.md.
SPIN_MICROSECONDS = "15"
ERROR, FATAL = 3, 4  # severities of ONNX Runtime's log
ROTATED_ALIKE = "pocketlm.rotated_alike"  # in the metadata of a graph
MASK_GROWTH = 1024  # tokens the mask grows by
# Where a graph given as bytes has its weights.
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"

Logits = NDArray[np.float32]
TokenIds = Sequence[int] | NDArray[np.int64]
Feed = tuple[Cache, TokenIds]  # what is appended to what


class Session:
    """Runs the graph of a model folder for one sequence or several; safe to share between threads.

    Steps of several threads take turns. A process forked after loading must load its own. Steps
    that are under way when the process ends are ended, and waited for; so is a long one of the main
    thread by Ctrl-C.
    """

    def __init__(
        self,
        folder: ModelFolder,
        threads: int | None = None,
        place: Place = CPU,
        graph: bytes | None = None,
        kv: str = FP32,
    ) -> None:
        """Opens the graph at ``place``; ``threads`` None means the cores this process may use.

        ``kv`` is "fp32", "int8" or "auto": which of the folder's graphs, see ``choose_kv``.
        ``graph`` is opened instead of the folder's, over the same weights; its cache may be of
        float16.

        Raises ModelFolderError when the graph is none that we can have written, or ONNX Runtime
        refuses it, ProviderError when ``place`` cannot be had, RequestError for a thread count out
        of bounds or a cache that the folder has no graph for, ResourceError when memory runs out.
        """
        self.threads = check_threads(threads)
        _check_version(folder)
        self.kv = choose_kv(folder, kv, place)
        """What the cache holds, "fp32" or "int8"; where attention is in float16, that is fp32."""
        check_graph_once(folder, GRAPHS[self.kv])
        self.shape: DecoderShape = folder.shape
        self.place = place
        self.run_seconds = 0.0
        """Spent inside ONNX Runtime, by all steps so far."""
        with memory_errors(f"{folder.path}: opening it", folder.weights_bytes):
            self._session = _open(folder, GRAPHS[self.kv], self.threads, place, graph)
        self._inputs = {value.name for value in self._session.get_inputs()}
        optional = {value.name for value in self._session.get_overridable_initializers()}
        self._can_keep = "num_logits_to_keep" in optional
        self._asks_length = "text_length" in optional
        trained = self._session.get_modelmeta().custom_metadata_map.get(ROTATED_ALIKE)
        self.rotated_alike = int(trained) if trained and self._asks_length else None
        """Tokens up to which texts are rotated alike; None: they are, whatever their length."""
        self._growing = folder.graph().cache.layout == GROWING
        self._cache_dtype = np.float32 if graph is None else np.float16  # on a device
        self._spare = SpareBuffers()
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._binding = self._session.io_binding()
        # What the binding has: where a cache lies, ids and positions, logits. None: to bind anew.
        self._bound_cache: object = None
        self._bound_ids: tuple[int, int] | None = None
        self._bound_rows = 0
        self._mask = np.ones((1, MASK_GROWTH), np.int64)
        self._token = np.zeros((1, 1), np.int64)
        self._position = np.zeros((1, 1), np.int64)
        self._text_length = np.zeros((), np.int64)
        self._last_rows = np.empty((1, 1, self.shape.vocab_size), np.float32)
        self._keep = {n: np.array(n, np.int64) for n in (0, 1)}

    @property
    def engine(self) -> onnxruntime.InferenceSession:
        """The opened graph, for a loop of another shape than one sequence."""
        return self._session

    def new_cache(self) -> Cache:
        """An empty cache for one sequence, of the kind the graph was made for."""
        if self._growing or self._on_device:
            return self.new_caches()()
        return Arena(self.shape, ALONE_CAPACITY, self._arena_dtype, self._spare).new()

    def new_caches(self) -> Callable[[], Cache]:
        """A function that makes such a cache at every call, so that they can be stepped together.

        Where the graph has its cache in place they are rows of one ``Arena``: what one thread uses.
        """
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
        self, token_ids: TokenIds, cache: Cache, cancellation: Cancellation | None = None
    ) -> Logits:
        """Appends S tokens to ``cache``; the logits after the last one: a new float32 (V,) array.

            cache = model.session.new_cache()
            logits = model.session.step(model.tokenizer.encode("Once upon a"), cache)
            likeliest = logits.argsort()[:-6:-1]      # ids of the five likeliest next tokens
            logits = model.session.step([likeliest[0]], cache)

        Raises RequestError for no tokens, an id outside the vocabulary, or a full context;
        ResourceError when memory runs out; Cancelled when ``cancellation`` was used, or the process
        ends. After an error ``cache`` holds what it held, and can be used on.
        """

        def row() -> Logits:
            self.check_step(token_ids, cache)
            logits = np.empty(self.shape.vocab_size, np.float32)
            self._run_one(cache, token_ids, logits, stopping)
            return logits

        stopping = cancellation or Cancellation()
        return self._in_turn(row, len(token_ids), stopping)

    def step_together(
        self,
        feeds: Sequence[Feed],
        cancellation: Cancellation | None = None,
        *,
        multiple: int = 1,
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
        of rows at a time: what is missing is made up. Longer feeds, and caches that cannot share a
        run, are computed one after another. The logits are written to the first rows of ``out``, a
        contiguous float32 array, or to a new one. Raises what ``step`` raises, before anything runs
        where a feed is wrong; after an error every cache holds what it held.
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
                    alone = len(some) == 1 and (multiple == 1 or not _shared_arena(*some[0]))
                    if alone:
                        self._run_one(*some[0], logits[places[0]], stopping)
                    else:
                        self._run_together(some, places, multiple, logits, stopping)
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
        """

        def rows() -> Logits:
            self.check_step(token_ids, cache)
            shape = (1, len(token_ids), self.shape.vocab_size)
            logits = np.empty(shape, np.float32) if out is None else out[: shape[1]].reshape(shape)
            self._bind_one(token_ids, cache)
            self._bind_logits(logits, 0)
            self._run([cache], shape[1], stopping)
            found: Logits = logits[0]
            return found

        stopping = cancellation or Cancellation()
        return self._in_turn(rows, len(token_ids), stopping)

    def check_step(self, token_ids: TokenIds, cache: Cache) -> None:
        """Raises the RequestError with which a step of ``token_ids`` would end."""
        count, length = len(token_ids), cache.length
        if count == 0:
            raise RequestError("found no token ids, expected at least one")
        if length + count > self.shape.context_length:
            raise RequestError(
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

    def _in_turn(self, compute: Callable[[], Logits], count: int, stopping: Cancellation) -> Logits:
        """What ``compute`` makes of a step of ``count`` tokens, once no other thread's is running.

        A long one is interruptible, and as a whole, so that an exception at whatever moment finds
        the session between two steps.
        """
        self.check_process()

        def turn() -> Logits:
            with self._lock, memory_errors(f"a step of {count} tokens", advice=SHORTER):
                return compute()

        return call_interruptibly(turn, stopping.cancel) if count >= LONG_STEP else turn()

    def _run_one(
        self, cache: Cache, token_ids: TokenIds, out: Logits, stopping: Cancellation
    ) -> None:
        """A step of one sequence; the logits after its last token go to ``out`` (V,)."""
        count = len(token_ids)
        self._bind_one(token_ids, cache)
        if self._can_keep or count == 1:
            self._bind_last_rows(1)
            logits = self._last_rows
        else:
            logits = np.empty((1, count, self.shape.vocab_size), np.float32)
            self._bind_logits(logits, 0)
        self._run([cache], count, stopping)
        out[:] = logits[0, -1]

    def _run_together(
        self,
        feeds: Sequence[Feed],
        places: Sequence[int],
        multiple: int,
        out: Logits,
        stopping: Cancellation,
    ) -> None:
        """A step of one token for each of several rows of an arena; logits to ``out[places]``.

        What is missing to a multiple is made up by rows that are free, and free again afterwards.
        """
        caches = [cache for cache, _ in feeds if isinstance(cache, KVCache)]
        arena = caches[0].arena
        caches += [arena.new() for _ in range(-len(caches) % multiple)]
        first = arena.gather(caches)
        rows = [cache.row - first for cache in caches]
        lengths = np.array([cache.length for cache in caches])
        total = int(lengths.max()) + 1
        arena.reserve(total)
        self._bound_cache = arena.bind(self._binding, first, len(rows), self._bound_cache)
        self._set_ids(len(rows), 1)
        self._token[:] = 0
        self._token[rows[: len(feeds)], 0] = [token_ids[0] for _, token_ids in feeds]
        self._position[rows, 0] = lengths
        mask = (np.arange(total) <= self._position).astype(np.int64)
        self._bind_int64("attention_mask", mask)
        self._bind_ids()
        self._bind_text_length(1)  # each ends with its new token
        in_place = len(places) == len(out) and rows == list(range(len(out)))
        if in_place:  # a copy of many rows takes 3 % of a step
            self._bind_logits(out[:, None], int(self._can_keep))
        else:
            self._bind_last_rows(len(rows))
        self._run(caches, 1, stopping)
        if not in_place:
            out[places] = self._last_rows[rows[: len(feeds)], 0]

    def _run(self, caches: Sequence[Cache], count: int, stopping: Cancellation) -> None:
        """Runs what is bound: ``count`` tokens for each of ``caches``."""
        started = time.perf_counter()
        try:
            call_to_stop(lambda: self._run_bound(stopping), stopping.cancel)
        except Cancelled:
            raise
        except Exception as error:
            if stopping.cancelled:
                raise Cancelled("the step was cancelled") from error
            if is_exhaustion(error):
                raise
            lengths = ", ".join(str(cache.length) for cache in caches)
            raise PocketLMError(
                f"ONNX Runtime failed on {count} tokens after {lengths}: {error}"
            ) from error
        finally:
            self.run_seconds += time.perf_counter() - started
        for cache in caches:
            cache.advance(count)

    def _run_bound(self, stopping: Cancellation) -> None:
        if self._on_device:
            self._binding.synchronize_inputs()
        self._session.run_with_iobinding(self._binding, stopping.run_options)
        if self._on_device:
            self._binding.synchronize_outputs()

    def check_process(self) -> None:
        """Raises PocketLMError in a fork of the process that opened it."""
        check_process(self._process)

    def _bind_one(self, token_ids: TokenIds, cache: Cache) -> None:
        count, length = len(token_ids), cache.length
        total = length + count
        self._bound_cache = cache.bind(self._binding, count, self._bound_cache)
        if self._mask.shape[1] < total:
            self._mask = np.ones((1, total + MASK_GROWTH), np.int64)
        self._bind_int64("attention_mask", self._mask, (1, total))
        self._set_ids(1, count)
        self._token[0] = token_ids
        self._position[0] = range(length, total) if count > 1 else length
        self._bind_ids()
        self._bind_text_length(cache.text_length)

    def _set_ids(self, rows: int, count: int) -> None:
        """Has ids and positions be arrays of (rows, count)."""
        if self._token.shape != (rows, count):
            self._bound_ids = None
            self._token = np.empty((rows, count), np.int64)
            self._position = np.empty((rows, count), np.int64)

    def _bind_ids(self) -> None:
        if self._on_device or self._bound_ids != self._token.shape:
            self._bind_int64("input_ids", self._token)
            if "position_ids" in self._inputs:
                self._bind_int64("position_ids", self._position)
            self._bound_ids = self._token.shape

    def _bind_text_length(self, length: int) -> None:
        """Has a graph that asks for it take the new tokens as of a text at least so long."""
        if self._asks_length:
            self._text_length[...] = length
            self._bind_int64("text_length", self._text_length)

    def _bind_last_rows(self, rows: int) -> None:
        """The logits after the last token of each row go to ``_last_rows``."""
        if self._bound_rows != rows:
            if len(self._last_rows) != rows:
                self._last_rows = np.empty((rows, 1, self.shape.vocab_size), np.float32)
            self._bind_logits(self._last_rows, int(self._can_keep))
            self._bound_rows = rows

    def _bind_logits(self, logits: Logits, keep: int) -> None:
        if self._can_keep:
            self._bind_int64("num_logits_to_keep", self._keep[keep])
        self._binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        self._bound_rows = 0

    def _bind_int64(
        self, name: str, array: NDArray[np.int64], shape: tuple[int, ...] | None = None
    ) -> None:
        size = array.shape if shape is None else shape
        self._binding.bind_input(name, "cpu", 0, np.int64, size, array.ctypes.data)


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


def _check_version(folder: ModelFolder) -> None:
    """Refuses a folder whose graph needs a newer ONNX Runtime than the one installed."""
    needed = folder.manifest.minimum_onnxruntime or "0"
    if _numbers(onnxruntime.__version__) < _numbers(needed):
        raise ModelFolderError(
            f"{folder.path}: found ONNX Runtime {onnxruntime.__version__}, expected {needed} or "
            f'newer; update it with: pip install "onnxruntime>={needed}"'
        )


def _numbers(version: str) -> tuple[int, ...]:
    """(1, 32) of "1.32.0rc1": major and minor decide."""
    return tuple(int(number) for number in re.findall(r"\d{1,9}", version)[:2])


def _open(
    folder: ModelFolder, name: str, threads: int, place: Place, graph: bytes | None
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.enable_mem_pattern = False  # shapes change every step
    # Errors are ours to tell, but why CUDA did not start is in the log alone. Warnings would be of
    # num_logits_to_keep, which has a default on purpose.
    options.log_severity_level = FATAL if place is CPU else ERROR
    # Workers may spin between the nodes of a run, but not between two runs: an idle model is idle.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.intra_op.spin_duration_us", SPIN_MICROSECONDS)
    for option, value in options_for(folder.formats).items():
        options.add_session_config_entry(option, value)
    if graph is not None:
        options.add_session_config_entry(WEIGHTS_FOLDER, utf8(str(folder.path)))
    # Not session.set_denormal_as_zero: it would also flush the numbers of the caller's own thread.
    source, places = graph or utf8(str(folder.graph_file(name))), list(place.providers)

    def stop() -> None:
        options.set_load_cancellation_flag(True)

    def open_it() -> onnxruntime.InferenceSession:
        return call_to_stop(
            lambda: onnxruntime.InferenceSession(
                source, options, providers=places, enable_fallback=0
            ),
            stop,
        )

    try:
        session = call_interruptibly(open_it, stop)
    except Cancelled:
        raise
    except Exception as error:
        if place is not CPU:
            raise ProviderError(
                f"provider is {place.name!r}: found {str(error).splitlines()[0]:.300}, expected a "
                "session; free memory on the device, or use the provider cpu"
            ) from error
        if is_exhaustion(error):
            raise
        raise ModelFolderError(
            f"{folder.graph_file(name)}: ONNX Runtime {onnxruntime.__version__} cannot open it "
            f"({str(error).splitlines()[0]:.300}); export the model again"
        ) from error
    if refused(session, place):
        raise start_obstacle().error()
    return session
