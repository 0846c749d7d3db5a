"""The KV cache in place: keys and values of several sequences, a row of one buffer each.

An ``Arena`` has one buffer per layer and kind, bound as both past and present, so that the
attention kernel appends in place; a ``KVCache`` is one sequence's row of each. A row is contiguous:
alone it is bound as a batch of one, neighbours as a batch of several. Letters: R rows, K key/value
heads, C capacity in tokens, E head size, T tokens held by a row.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..export.folder import DecoderShape, cache_names
from ..export.memory import SMALLER, memory_errors
from .engine import onnxruntime
from .spare_buffers import SpareBuffers

# Tokens of an arena's first allocation; a power of two keeps the doubling at round sizes.
FIRST_CAPACITY = 128
# Of one for a sequence that is alone: what it never writes takes no memory, growing takes a copy.
ALONE_CAPACITY = 512

SHORTER = f"shorten the text, {SMALLER}"


class Cache(Protocol):
    """What one sequence has computed, as a session fills it and a caller takes it back."""

    length: int
    """T: the tokens held."""
    text_length: int
    """Tokens of the text that is to be fed, those held included, as far as that is known; or 0.

    What is rotated by how long a text is needs it where a prompt is fed in parts.
    """

    @property
    def num_bytes(self) -> int:
        """Bytes allocated."""

    def truncate(self, length: int) -> None:
        """Forgets every token from position ``length`` on; ValueError if it holds fewer."""

    def copy(self) -> Cache:
        """Another one that holds the same. Raises ResourceError where there is no memory for it."""

    def values(self) -> list[NDArray[Any]]:
        """(K, T, E) of every layer's keys, then its values: views, until the next step."""

    def fill(self, values: Sequence[NDArray[Any]], length: int) -> None:
        """Holds the first ``length`` tokens of what ``values`` returned, and nothing else.

        Raises ResourceError where there is no memory for them.
        """

    def bind(self, binding: onnxruntime.IOBinding, new_tokens: int, bound: object) -> object:
        """Binds every past and present for a step of ``new_tokens``.

        Returns what says where they lie; nothing is done if that is ``bound``, what the binding
        has. Raises ResourceError where there is no memory; what is held stays as it is.
        """

    def advance(self, new_tokens: int) -> None:
        """The step succeeded: the new rows count from now on."""


class KVCache:
    """One sequence's row of an arena; it is free again when nothing refers to this any more.

    What lies at or beyond ``length`` is garbage, so ``truncate`` only lowers the length.
    """

    def __init__(self, arena: Arena, row: int) -> None:
        self.arena = arena
        self.row = row  # the arena moves rows
        self.length = self.text_length = 0

    @property
    def num_bytes(self) -> int:
        """Its share of the arena."""
        return self.arena.num_bytes // self.arena.num_rows

    def values(self) -> list[NDArray[Any]]:
        """(K, T, E) of every layer's keys, then its values: views, until the next step."""
        return self.arena.values(self.row, self.length)

    def fill(self, values: Sequence[NDArray[Any]], length: int) -> None:
        """Holds the first ``length`` tokens of ``values`` and nothing else; see ``Cache``."""
        self.length = 0
        # With room for more at once, or the next step would copy all of it.
        self.arena.reserve(min(length + FIRST_CAPACITY, self.arena.shape.context_length))
        self.arena.fill_row(self.row, values, length)
        self.length = length

    def truncate(self, length: int) -> None:
        """Forgets every token from position ``length`` on; ValueError if it holds fewer."""
        check_length(length, self.length)
        self.length = length

    def copy(self) -> KVCache:
        """Another row of the arena that holds the same; ResourceError without memory for it."""
        made = self.arena.new()
        self.arena.copy_row(self.row, made.row, self.length)
        made.length, made.text_length = self.length, self.text_length
        return made

    def bind(self, binding: onnxruntime.IOBinding, new_tokens: int, bound: object) -> object:
        """Binds its row alone, see ``Arena.bind``."""
        self._make_room(new_tokens)
        return self.arena.bind(binding, self.row, 1, bound)

    def bind_past(self, binding: onnxruntime.IOBinding, new_tokens: int, bound: object) -> object:
        """As ``bind`` for a graph that gives the new rows back: for ``append``."""
        self._make_room(new_tokens)
        return self.arena.bind_past(binding, self.row, bound)

    def _make_room(self, new_tokens: int) -> None:
        """For the whole text at once, as far as it is known, and what follows: growing copies."""
        whole = min(1 << self.text_length.bit_length(), self.arena.shape.context_length)
        self.arena.reserve(max(self.length + new_tokens, whole))

    def append(self, values: Sequence[NDArray[Any]]) -> None:
        """Takes new rows, (K, S, E) of every layer's keys, then its values; they have room."""
        self.arena.write(self.row, self.length, values)

    def advance(self, new_tokens: int) -> None:
        """Counts the tokens that were just written."""
        self.length += new_tokens


class Arena:
    """Rows of (K, C, E) numbers of ``dtype``, per layer and kind; R and C double as needed.

    The dtype is the one of the graph's own past: float32 or int8. One thread at a time may use it.
    """

    together = True
    """Whether neighbouring rows can be computed at once."""

    def __init__(
        self,
        shape: DecoderShape,
        capacity: int = FIRST_CAPACITY,
        dtype: type[np.number[Any]] = np.float32,
        spare: SpareBuffers | None = None,
    ) -> None:
        """``capacity`` is that of the first allocation, with the first row.

        It takes its buffers out of ``spare``, if there are any, and leaves them there: those of
        arenas of the same shape and dtype.
        """
        self.shape = shape
        self.dtype = dtype
        self.num_rows = 0
        """R: rows that fit without growing."""
        self.capacity = min(capacity, shape.context_length)
        """C: tokens that fit into a row without growing."""
        self._names = cache_names(shape.num_layers)
        self._buffers: list[Any] = [None] * len(self._names)
        if spare is not None:
            self._adopt(spare.take())
            weakref.finalize(self, spare.keep, self._buffers).atexit = False
        # Weak, so that a sequence that nobody follows any more frees its row.
        self._held: list[weakref.ref[KVCache]] = []
        self._place = object()  # another one whenever buffers were made anew

    @property
    def num_bytes(self) -> int:
        """Bytes allocated."""
        return sum(buffer.nbytes for buffer in self._buffers if buffer is not None)

    def new(self) -> KVCache:
        """An empty row. Raises ResourceError where there is no memory for it."""
        row = next((i for i in range(len(self._held)) if self._at(i) is None), len(self._held))
        self.reserve_rows(row + 1)
        cache = KVCache(self, row)
        self._held[row : row + 1] = [weakref.ref(cache)]
        return cache

    def reserve(self, tokens: int) -> None:
        """Makes room for ``tokens`` in every row; grows at least twofold: copies are amortized.

        The context length is the caller's to check: a larger number is an error of ours.
        """
        if tokens > self.capacity:
            assert tokens <= self.shape.context_length
            capacity = min(max(tokens, 2 * self.capacity), self.shape.context_length)
            self._resize(self.num_rows, capacity)

    def reserve_rows(self, count: int) -> None:
        """Makes room for ``count`` rows; grows at least twofold."""
        if count > self.num_rows:
            self._resize(max(count, 2 * self.num_rows), self._capacity_of_many())

    def _capacity_of_many(self) -> int:
        """Not what a row had that was alone: unused room of a large buffer takes memory, too."""
        if self.num_rows != 1:
            return self.capacity
        longest = max((max(c.length, c.text_length) for c in self._caches()), default=0)
        return min(self.capacity, max(FIRST_CAPACITY, 1 << longest.bit_length()))

    def gather(self, caches: Sequence[KVCache]) -> int:
        """Moves rows about until those of ``caches`` are neighbours: the number of the first."""
        rows = sorted(cache.row for cache in caches)
        if rows[-1] - rows[0] == len(rows) - 1:
            return rows[0]
        others = [row for row in range(len(rows)) if row not in rows]
        for other, row in zip(others, reversed(rows), strict=False):
            self._swap(other, row)
        return 0

    def bind(self, binding: onnxruntime.IOBinding, first: int, count: int, bound: object) -> object:
        """Binds ``count`` rows from ``first`` on as past and as present; not if ``bound`` says so.

        Returns what says so the next time.
        """
        place = (self._place, first, count)
        if place != bound:
            for (past, present), buffer in zip(self._names, self._buffers, strict=True):
                self._bind_buffer(binding, past, present, buffer, first, count)
        return place

    def bind_past(self, binding: onnxruntime.IOBinding, row: int, bound: object) -> object:
        """Binds a row as past alone; not if ``bound`` says so. Returns what says so next time."""
        place = (self._place, row, 1)
        if place != bound:
            for (past, _), buffer in zip(self._names, self._buffers, strict=True):
                held = buffer[row : row + 1]
                binding.bind_input(past, "cpu", 0, self.dtype, held.shape, held.ctypes.data)
        return place

    def values(self, row: int, length: int) -> list[NDArray[Any]]:
        """(K, T, E) of every layer's keys, then its values: views, until the next step."""
        return [buffer[row, :, :length] for buffer in self._buffers]

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copies the first ``length`` tokens of a row to another."""
        for buffer in self._buffers:
            buffer[target, :, :length] = buffer[source, :, :length]

    def write(self, row: int, start: int, values: Sequence[NDArray[Any]]) -> None:
        """Puts the tokens of ``values`` into a row, from ``start`` on."""
        for buffer, value in zip(self._buffers, values, strict=True):
            buffer[row, :, start : start + value.shape[1]] = value

    def fill_row(self, row: int, values: Sequence[NDArray[Any]], length: int) -> None:
        """Puts the first ``length`` tokens of ``values`` into a row."""
        for buffer, value in zip(self._buffers, values, strict=True):
            buffer[row, :, :length] = value[:, :length]

    def _adopt(self, buffers: list[Any]) -> None:
        """Has one row in ``buffers`` that another arena had, if there are any."""
        if buffers:
            self._buffers[:] = buffers
            self.num_rows, _, self.capacity, _ = buffers[0].shape

    def _at(self, row: int) -> KVCache | None:
        return self._held[row]() if row < len(self._held) else None

    def _swap(self, first: int, second: int) -> None:
        one, two = self._at(first), self._at(second)
        kept = [value.copy() for value in self.values(first, one.length)] if one else []
        if two is not None:
            self.copy_row(second, first, two.length)
            two.row = first
        if one is not None:
            for value, target in zip(kept, self.values(second, one.length), strict=True):
                target[:] = value
            one.row = second
        held = self._held
        held[first], held[second] = held[second], held[first]

    def _resize(self, rows: int, capacity: int) -> None:
        size = (rows, self.shape.kv_heads, capacity, self.shape.head_size)
        self._place = object()  # first: growing may fail half way, with some buffers replaced
        with growing(rows * capacity, self.shape, self.dtype):
            # One layer at a time: the peak is one layer above the sum. Keys and values together,
            # since the kernel wants them alike.
            for i in range(0, len(self._buffers), 2):
                layer = [self._grown(buffer, size) for buffer in self._buffers[i : i + 2]]
                self._buffers[i : i + 2] = layer
        self.num_rows, self.capacity = rows, capacity

    def _grown(self, buffer: Any, size: tuple[int, ...]) -> Any:
        """A buffer of ``size`` with what the rows of ``buffer`` (None: no rows) hold."""
        grown = np.empty(size, self.dtype)
        if buffer is not None:
            self._copy_held(buffer, grown)
        return grown

    def _caches(self) -> list[KVCache]:
        return [cache for held in self._held if (cache := held()) is not None]

    def _copy_held(self, rows: NDArray[Any], grown: NDArray[Any]) -> None:
        for cache in self._caches():
            grown[cache.row, :, : cache.length] = rows[cache.row, :, : cache.length]

    def _bind_buffer(
        self,
        binding: onnxruntime.IOBinding,
        past: str,
        present: str,
        buffer: Any,
        first: int,
        count: int,
    ) -> None:
        rows = buffer[first : first + count]
        binding.bind_input(past, "cpu", 0, self.dtype, rows.shape, rows.ctypes.data)
        binding.bind_output(present, "cpu", 0, self.dtype, rows.shape, rows.ctypes.data)


def check_length(length: int, held: int) -> None:
    """Raises ValueError unless ``length`` is between 0 and what is held."""
    if not 0 <= length <= held:
        raise ValueError(f"length is {length}, expected 0 to {held}")


def growing(
    tokens: int, shape: DecoderShape, dtype: type[np.number[Any]]
) -> AbstractContextManager[None]:
    """Raises ResourceError where there is no memory for the keys and values of ``tokens``."""
    what = f"a KV cache for {tokens:,} tokens"
    num_bytes = tokens * shape.kv_numbers_per_token * np.dtype(dtype).itemsize
    return memory_errors(what, num_bytes, SHORTER)
