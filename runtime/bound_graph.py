"""One opened graph: token ids and caches go in, logits come out, nothing is checked.

One ``IOBinding`` lives as long as the graph. Between two steps of decoding only the attention mask
is bound anew (it is the only source of lengths in the graph); ids and positions are written into
arrays that stay bound, and logits to the array that they went to before, if it is given again. On a
device ids are bound anew as well: binding is what copies them there.

A run that has read all weights leaves nothing of Python's in the processor's caches, so that a call
takes ten times what it takes in a loop of its own: a step makes few.

Letters: B rows, S new tokens, T total tokens, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..export.errors import PocketLMError
from ..export.folder import NEW_ROWS, DecoderShape
from ..export.memory import is_exhaustion
from .arena import Cache, KVCache
from .cancellation import Cancellation, Cancelled
from .engine import onnxruntime
from .new_rows import NewRows
from .ones_mask import OnesMask
from .providers import CPU, Place
from .running import call_to_stop

ROTATED_ALIKE = "pocketlm.rotated_alike"  # in the metadata of a graph

Logits: TypeAlias = NDArray[np.float32]
TokenIds: TypeAlias = Sequence[int] | NDArray[np.int64]
Feed: TypeAlias = tuple[Cache, TokenIds]  # what is appended to what


class BoundGraph:
    """What an opened graph has bound, and its runs; one thread at a time may use it.

    engine          the session of ONNX Runtime
    rotated_alike   tokens up to which texts are rotated alike; None: all are
    seconds         spent inside ONNX Runtime, by all runs so far

    After an error a cache holds what it held. A graph that gives new rows back, instead of writing
    them into the cache, takes one sequence at a time.
    """

    def __init__(
        self, engine: onnxruntime.InferenceSession, shape: DecoderShape, place: Place = CPU
    ) -> None:
        self.engine = engine
        self.seconds = 0.0
        self._vocab_size = shape.vocab_size
        self._one_row = (1, 1, shape.vocab_size)
        self._on_device = place is not CPU
        self._asks_position = any(value.name == "position_ids" for value in engine.get_inputs())
        optional = {value.name for value in engine.get_overridable_initializers()}
        self._can_keep = "num_logits_to_keep" in optional
        self._asks_length = "text_length" in optional
        trained = engine.get_modelmeta().custom_metadata_map.get(ROTATED_ALIKE)
        self.rotated_alike = int(trained) if trained and self._asks_length else None
        gives_rows = any(value.name.startswith(NEW_ROWS) for value in engine.get_outputs())
        self._new_rows = NewRows(shape) if gives_rows else None
        self._binding = engine.io_binding()
        # What the binding has. None: to bind anew.
        self._bound_cache: object = None
        self._bound_ids: tuple[int, int] | None = None
        self._bound_logits: Logits | None = None  # where those after one token go
        self._bound_keep: int | None = None
        self._mask = OnesMask()
        self._ids_shape = (0, 0)
        self._set_ids(1, 1)
        self._text_length = np.zeros((), np.int64)
        self._keep = {n: np.array(n, np.int64) for n in (0, 1)}

    def step(self, cache: Cache, token_ids: TokenIds, out: Logits, stopping: Cancellation) -> None:
        """Appends to one sequence; the logits after its last token go to ``out`` (V,)."""
        count = len(token_ids)
        self._bind_one(cache, token_ids)
        if self._can_keep or count == 1:
            self._bind_logits(out, self._one_row, 1)
            self._run([cache], count, stopping)
        else:
            logits = np.empty((count, self._vocab_size), np.float32)
            self._bind_logits(logits, (1, *logits.shape), 0)
            self._run([cache], count, stopping)
            out[:] = logits[-1]

    def all_rows(
        self, cache: Cache, token_ids: TokenIds, out: Logits, stopping: Cancellation
    ) -> None:
        """As ``step``, with the logits after each of the S tokens: ``out`` is (S, V)."""
        self._bind_one(cache, token_ids)
        self._bind_logits(out, (1, *out.shape), 0)
        self._run([cache], len(token_ids), stopping)

    def step_rows(
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
        self._bind_int64("attention_mask", mask.shape, mask.ctypes.data)
        self._bind_ids()
        self._bind_text_length(1)  # each ends with its new token
        in_place = len(places) == len(out) and rows == list(range(len(out)))
        # A copy of many rows takes 3 % of a step.
        logits = out if in_place else np.empty((len(rows), self._vocab_size), np.float32)
        self._bind_logits(logits, (len(rows), 1, self._vocab_size), 1)
        self._run(caches, 1, stopping)
        if not in_place:
            out[places] = logits[rows[: len(feeds)]]

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
            self.seconds += time.perf_counter() - started
        for cache in caches:
            if self._new_rows is not None and isinstance(cache, KVCache):
                cache.append(self._new_rows.values())
            cache.advance(count)

    def _run_bound(self, stopping: Cancellation) -> None:
        if self._on_device:
            self._binding.synchronize_inputs()
        self.engine.run_with_iobinding(self._binding, stopping.run_options)
        if self._on_device:
            self._binding.synchronize_outputs()

    def _bind_one(self, cache: Cache, token_ids: TokenIds) -> None:
        count, length = len(token_ids), cache.length
        total = length + count
        self._bind_cache(cache, count)
        self._mask.bind(self._binding, total)
        self._set_ids(1, count)
        if count == 1:
            self._token[0, 0], self._position[0, 0] = token_ids[0], length
        else:
            self._token[0], self._position[0] = token_ids, range(length, total)
        self._bind_ids()
        self._bind_text_length(cache.text_length)

    def _bind_cache(self, cache: Cache, count: int) -> None:
        if self._new_rows is None:
            self._bound_cache = cache.bind(self._binding, count, self._bound_cache)
            return
        assert isinstance(cache, KVCache)  # the others are of float32
        self._bound_cache = cache.bind_past(self._binding, count, self._bound_cache)
        self._new_rows.bind(self._binding, count)

    def _set_ids(self, rows: int, count: int) -> None:
        """Has ids and positions be arrays of (rows, count)."""
        if self._ids_shape != (rows, count):
            self._ids_shape, self._bound_ids = (rows, count), None
            self._token = np.empty((rows, count), np.int64)
            self._position = np.empty((rows, count), np.int64)

    def _bind_ids(self) -> None:
        shape = self._ids_shape
        if self._on_device or self._bound_ids != shape:
            self._bind_int64("input_ids", shape, self._token.ctypes.data)
            if self._asks_position:
                self._bind_int64("position_ids", shape, self._position.ctypes.data)
            self._bound_ids = shape

    def _bind_text_length(self, length: int) -> None:
        """Has a graph that asks for it take the new tokens as of a text at least so long."""
        if self._asks_length:
            self._text_length[...] = length
            self._bind_int64("text_length", (), self._text_length.ctypes.data)

    def _bind_logits(self, logits: Logits, shape: tuple[int, ...], keep: int) -> None:
        """They go to ``logits`` as an array of ``shape``; ``keep`` 1: after the last token only."""
        if self._can_keep and self._bound_keep != keep:
            self._bind_int64("num_logits_to_keep", (), self._keep[keep].ctypes.data)
            self._bound_keep = keep
        if self._bound_logits is not logits or shape is not self._one_row:
            self._binding.bind_output("logits", "cpu", 0, np.float32, shape, logits.ctypes.data)
            # Not those of many tokens, whose memory this would hold.
            self._bound_logits = logits if shape is self._one_row else None

    def _bind_int64(self, name: str, shape: tuple[int, ...], address: int) -> None:
        self._binding.bind_input(name, "cpu", 0, np.int64, shape, address)
