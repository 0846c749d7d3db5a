"""A model folder opened on ONNX Runtime: token ids and a cache go in, logits come out.

One ``IOBinding`` lives as long as the session. Between two steps of decoding only the attention
mask is bound anew (its length is the only source of lengths in the graph); ids and positions are
written into arrays that stay bound. On a device they are bound anew as well: binding is what copies
them there. Letters: S new tokens, T total tokens, V vocabulary.
"""

from __future__ import annotations

import os
import re
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..export.errors import ModelFolderError, PocketLMError, ProviderError, RequestError
from ..export.folder import GROWING, DecoderShape, ModelFolder
from ..export.graph_check.graph import check_graph
from ..export.memory import is_exhaustion, memory_errors
from ..export.threads import check_threads
from ..export.utf8 import utf8
from ..export.whole_number import brief
from .cache import SHORTER, Cache, ConcatenatingCache, DeviceCache, KVCache
from .cancellation import Cancellation, Cancelled
from .engine import onnxruntime
from .int8_products import options_for
from .kv import FP32, GRAPHS, INT8, choose_kv
from .providers import CPU, Place, refused, start_obstacle
from .running import call_interruptibly, call_to_stop

# Tokens from which on a step is worth interrupting: fewer take little longer than one, of which the
# thread that makes it interruptible would take a share (0.1 ms).
LONG_STEP = 16
ERROR, FATAL = 3, 4  # severities of ONNX Runtime's log
MASK_GROWTH = 1024  # tokens the mask grows by
# Where a graph given as bytes has its weights.
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"

Logits = NDArray[np.float32]


class Session:
    """Runs the graph of a model folder for one sequence at a time; safe to share between threads.

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
        check_graph(folder, GRAPHS[self.kv])
        self.shape: DecoderShape = folder.shape
        self.place = place
        self.run_seconds = 0.0
        """Spent inside ONNX Runtime, by all steps so far."""
        with memory_errors(f"{folder.path}: opening it", folder.weights_bytes):
            self._session = _open(folder, GRAPHS[self.kv], self.threads, place, graph)
        self._inputs = {value.name for value in self._session.get_inputs()}
        optional = {value.name for value in self._session.get_overridable_initializers()}
        self._can_keep = "num_logits_to_keep" in optional
        self._growing = folder.graph().cache.layout == GROWING
        self._cache_dtype = np.float32 if graph is None else np.float16  # on a device
        self._lock = threading.Lock()
        self._process = os.getpid()
        # Weak, so that the memory of a finished generation is not kept until the next one.
        self._cache: weakref.ref[Cache] | None = None
        self._num_bound_ids = 0
        self._binding = self._session.io_binding()
        self._mask = np.ones((1, MASK_GROWTH), np.int64)
        self._token = np.zeros((1, 1), np.int64)
        self._position = np.zeros((1, 1), np.int64)
        self._last_row = np.empty((1, 1, self.shape.vocab_size), np.float32)
        self._keep = {n: np.array(n, np.int64) for n in (0, 1)}
        self._keeping = -1

    @property
    def engine(self) -> onnxruntime.InferenceSession:
        """The opened graph, for a loop of another shape than one sequence."""
        return self._session

    def new_cache(self) -> Cache:
        """An empty cache for one sequence, of the kind the graph was made for."""
        if self._growing:
            return ConcatenatingCache(self.shape)
        if self._on_device:
            return DeviceCache(self.shape, self.place.memory, self._cache_dtype)
        return KVCache(self.shape, dtype=np.int8 if self.kv == INT8 else np.float32)

    @property
    def _on_device(self) -> bool:
        return self.place is not CPU

    def step(
        self,
        token_ids: Sequence[int] | NDArray[np.int64],
        cache: Cache,
        cancellation: Cancellation | None = None,
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

        def last_row() -> Logits:
            logits = self._last_row
            if not self._can_keep and len(token_ids) > 1:
                logits = np.empty((1, len(token_ids), self.shape.vocab_size), np.float32)
            self._run(token_ids, cache, int(self._can_keep), logits, stopping)
            # A copy: the next step, perhaps another thread's, overwrites what stays bound.
            last: Logits = logits[0, -1].copy()
            return last

        stopping = cancellation or Cancellation()
        return self._in_turn(last_row, len(token_ids), stopping)

    def all_logits(
        self,
        token_ids: Sequence[int] | NDArray[np.int64],
        cache: Cache,
        out: Logits | None = None,
    ) -> Logits:
        """As ``step``, with the logits after every one of the S tokens: (S, V).

        They are written to ``out``, the first rows of a contiguous float32 array, or a new one.
        """

        def rows() -> Logits:
            shape = (1, len(token_ids), self.shape.vocab_size)
            logits = np.empty(shape, np.float32) if out is None else out[: shape[1]].reshape(shape)
            self._run(token_ids, cache, 0, logits, stopping)
            found: Logits = logits[0]
            return found

        stopping = Cancellation()
        return self._in_turn(rows, len(token_ids), stopping)

    def check_step(
        self,
        token_ids: Sequence[int] | NDArray[np.int64],
        cache: Cache,
    ) -> None:
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
        self._check_process()

        def turn() -> Logits:
            with self._lock, memory_errors(f"a step of {count} tokens", advice=SHORTER):
                return compute()

        return call_interruptibly(turn, stopping.cancel) if count >= LONG_STEP else turn()

    def _run(
        self,
        token_ids: Sequence[int] | NDArray[np.int64],
        cache: Cache,
        keep: int,
        logits: Logits,
        stopping: Cancellation,
    ) -> None:
        self.check_step(token_ids, cache)
        count = len(token_ids)
        self._bind_cache(cache, count)
        self._bind_ids(token_ids, count, cache.length)
        self._bind_logits(keep, logits)
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
            raise PocketLMError(
                f"ONNX Runtime failed on {count} tokens after {cache.length}: {error}"
            ) from error
        finally:
            self.run_seconds += time.perf_counter() - started
        cache.advance(count)

    def _run_bound(self, stopping: Cancellation) -> None:
        if self._on_device:
            self._binding.synchronize_inputs()
        self._session.run_with_iobinding(self._binding, stopping.run_options)
        if self._on_device:
            self._binding.synchronize_outputs()

    def _check_process(self) -> None:
        """Asked before the lock: in a fork a thread that is not there may hold it for ever."""
        if os.getpid() != self._process:
            raise PocketLMError(
                f"this model was loaded by process {self._process}, found a fork of it "
                f"({os.getpid()}); load the model in the process that uses it"
            )

    def _bind_cache(self, cache: Cache, count: int) -> None:
        bound = self._cache() if self._cache is not None else None
        if bound is not cache:
            if bound is not None:
                bound.unbind()
            cache.unbind()
            self._cache = weakref.ref(cache)
        cache.bind(self._binding, count)

    def _bind_ids(self, token_ids: Any, count: int, length: int) -> None:
        total = length + count
        if self._mask.shape[1] < total:
            self._mask = np.ones((1, total + MASK_GROWTH), np.int64)
        self._bind_int64("attention_mask", (1, total), self._mask)
        rebind = self._on_device or count != self._num_bound_ids
        if count != self._num_bound_ids:
            self._num_bound_ids = 0  # until they are bound
            self._token = np.empty((1, count), np.int64)
            self._position = np.empty((1, count), np.int64)
        self._token[0] = token_ids
        self._position[0] = range(length, total) if count > 1 else length
        if rebind:
            self._bind_int64("input_ids", (1, count), self._token)
            if "position_ids" in self._inputs:
                self._bind_int64("position_ids", (1, count), self._position)
            self._num_bound_ids = count

    def _bind_logits(self, keep: int, logits: Logits) -> None:
        if keep == self._keeping == 1:
            return
        if self._can_keep:
            self._bind_int64("num_logits_to_keep", (), self._keep[keep])
        self._binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        self._keeping = keep

    def _bind_int64(self, name: str, shape: tuple[int, ...], array: NDArray[np.int64]) -> None:
        self._binding.bind_input(name, "cpu", 0, np.int64, shape, array.ctypes.data)


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
