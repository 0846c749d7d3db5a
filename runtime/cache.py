"""The KV cache: keys and values of the tokens a session has seen, for one sequence.

``KVCache`` is one buffer per layer and kind, bound as both past and present, so that the attention
kernel appends in place; ``DeviceCache`` is the same in a device's memory. ``ConcatenatingCache``
lets the graph copy past and new rows into other arrays every step: what a traced graph needs, and
what the tests compare with. Letters: K key/value heads, E head size, C capacity in tokens, T tokens
held.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..export.errors import ResourceError
from ..export.folder import DecoderShape, cache_names
from ..export.memory import SMALLER, memory_errors
from .engine import onnxruntime

# Tokens of a cache's first allocation; a power of two keeps the doubling at round sizes.
FIRST_CAPACITY = 128


SHORTER = f"shorten the text, {SMALLER}"


class Cache(Protocol):
    """The rows of one sequence, as a session fills them and a caller takes them back."""

    length: int
    """T: the tokens held."""

    @property
    def num_bytes(self) -> int:
        """Bytes allocated."""

    def truncate(self, length: int) -> None:
        """Forgets every token from position ``length`` on; ValueError if it holds fewer."""

    def reset(self) -> None:
        """Forgets all tokens and keeps the memory."""

    def bind(self, binding: onnxruntime.IOBinding, new_tokens: int) -> None:
        """Binds every past and present for a step of ``new_tokens``.

        Raises ResourceError where there is no memory for them; what is held stays as it is.
        """

    def unbind(self) -> None:
        """Tells the cache that the binding now belongs to another cache."""

    def advance(self, new_tokens: int) -> None:
        """The step succeeded: the new rows count from now on."""


class KVCache:
    """Keys and values in place: (1, K, C, E) of ``dtype`` per layer and kind, C doubling as needed.

    The dtype is the one of the graph's own past: float32 or int8. Rows at or beyond ``length`` are
    garbage, so ``truncate`` only lowers the length.
    """

    def __init__(
        self,
        shape: DecoderShape,
        capacity: int = FIRST_CAPACITY,
        dtype: type[np.number[Any]] = np.float32,
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self.length = 0
        self._names = cache_names(shape.num_layers)
        self._buffers: list[Any] = [None] * len(self._names)
        self._capacity = 0
        self._bound: onnxruntime.IOBinding | None = None
        self.reserve(min(capacity, shape.context_length))

    @property
    def capacity(self) -> int:
        """C: tokens that fit without growing."""
        return self._capacity

    @property
    def num_bytes(self) -> int:
        return sum(buffer.nbytes for buffer in self._buffers)

    def rows(self) -> list[NDArray[Any]]:
        """(K, T, E) of every layer's keys, then its values: views, until the next step."""
        return [buffer[0, :, : self.length] for buffer in self._buffers]

    def reserve(self, tokens: int) -> None:
        """Makes room for ``tokens`` in all; grows at least twofold, so that copies are amortized.

        The context length is the caller's to check: a larger number is an error of ours.
        """
        if tokens <= self.capacity:
            return
        assert tokens <= self.shape.context_length
        capacity = min(max(tokens, 2 * self.capacity), self.shape.context_length)
        size = (1, self.shape.kv_heads, capacity, self.shape.head_size)
        self._bound = None  # first: growing may fail half way, with some buffers replaced
        with _growing(capacity, self.shape, self.dtype):
            # One layer at a time: the peak is one layer above the sum. Keys and values together,
            # since the kernel wants them alike.
            for i in range(0, len(self._buffers), 2):
                layer = [self._grown(buffer, size) for buffer in self._buffers[i : i + 2]]
                self._buffers[i : i + 2] = layer
        self._capacity = capacity

    def truncate(self, length: int) -> None:
        """Forgets every token from position ``length`` on; ValueError if it holds fewer."""
        if not 0 <= length <= self.length:
            raise ValueError(f"length is {length}, expected 0 to {self.length}")
        self.length = length

    def reset(self) -> None:
        """Forgets all tokens and keeps the memory."""
        self.length = 0

    def bind(self, binding: onnxruntime.IOBinding, new_tokens: int) -> None:
        """Binds each buffer as past and as present; does nothing while the binding still holds."""
        self.reserve(self.length + new_tokens)
        if self._bound is binding:
            return
        for (past, present), buffer in zip(self._names, self._buffers, strict=True):
            self._bind_buffer(binding, past, present, buffer)
        self._bound = binding

    def unbind(self) -> None:
        """Tells the cache that the binding now belongs to another cache."""
        self._bound = None

    def advance(self, new_tokens: int) -> None:
        """Counts the rows the kernel has just written."""
        self.length += new_tokens

    def _grown(self, buffer: Any, size: tuple[int, ...]) -> Any:
        """A buffer of ``size`` with the rows that ``buffer`` (None: no rows) holds."""
        grown = np.empty(size, self.dtype)
        if buffer is not None:
            grown[:, :, : self.length] = buffer[:, :, : self.length]
        return grown

    def _bind_buffer(
        self, binding: onnxruntime.IOBinding, past: str, present: str, buffer: Any
    ) -> None:
        place = (buffer.shape, buffer.ctypes.data)
        binding.bind_input(past, "cpu", 0, self.dtype, *place)
        binding.bind_output(present, "cpu", 0, self.dtype, *place)


class DeviceCache(KVCache):
    """``KVCache`` in the memory of a device, as OrtValues of the type its attention kernel takes.

    Growing takes the rows through the host. As the capacity doubles, all the copies of a cache's
    life together are less than three times its final size: nothing beside the steps that fill it.
    """

    def __init__(
        self,
        shape: DecoderShape,
        memory: str,
        dtype: type[np.floating[Any]],
        capacity: int = FIRST_CAPACITY,
    ) -> None:
        self._memory = memory
        super().__init__(shape, capacity, dtype)

    @property
    def num_bytes(self) -> int:
        return sum(buffer.tensor_size_in_bytes() for buffer in self._buffers)

    def _grown(self, buffer: Any, size: tuple[int, ...]) -> Any:
        # Zeros, since what a device's memory holds may be NaN, or another program's.
        rows = np.zeros(size, self.dtype)
        if buffer is not None and self.length:
            rows[:, :, : self.length] = buffer.numpy()[:, :, : self.length]
        try:
            return onnxruntime.OrtValue.ortvalue_from_numpy(rows, self._memory, 0)
        except Exception as error:
            raise ResourceError(
                f"provider is {self._memory!r}: found no memory for a KV cache of {size[2]} tokens "
                f"({str(error).splitlines()[0]:.300}), expected {rows.nbytes} bytes for each of "
                f"{len(self._names)} buffers; shorten the text, or use the provider cpu"
            ) from error

    def _bind_buffer(
        self, binding: onnxruntime.IOBinding, past: str, present: str, buffer: Any
    ) -> None:
        binding.bind_ortvalue_input(past, buffer)
        binding.bind_ortvalue_output(present, buffer)


class ConcatenatingCache:
    """Keys and values as a growing graph returns them: (1, K, T, E), one token longer every step.

    Two sets of flat buffers take turns as past and present, so that a step allocates nothing until
    the tokens outgrow them; then they double.
    """

    def __init__(self, shape: DecoderShape) -> None:
        self.shape = shape
        self.length = 0
        self._names = cache_names(shape.num_layers)
        self._capacity = 0  # tokens
        self._past: list[NDArray[np.float32]] = []
        self._present: list[NDArray[np.float32]] = []

    @property
    def num_bytes(self) -> int:
        return sum(buffer.nbytes for buffer in (*self._past, *self._present))

    def truncate(self, length: int) -> None:
        """Forgets every token from position ``length`` on; ValueError if it holds fewer."""
        if not 0 <= length <= self.length:
            raise ValueError(f"length is {length}, expected 0 to {self.length}")
        for buffer in self._past:
            kept = self._view(buffer, self.length)[:, :, :length].copy()
            buffer[: kept.size] = kept.reshape(-1)
        self.length = length

    def reset(self) -> None:
        """Forgets all tokens and keeps the memory."""
        self.length = 0

    def bind(self, binding: onnxruntime.IOBinding, new_tokens: int) -> None:
        """Binds one set as past, and the other, with room for the step, as present."""
        total = self.length + new_tokens
        self._reserve(total)
        names = zip(self._names, self._past, self._present, strict=True)
        for (past, present), old, new in names:
            size = self._size(self.length)
            binding.bind_input(past, "cpu", 0, np.float32, size, old.ctypes.data)
            size = self._size(total)
            binding.bind_output(present, "cpu", 0, np.float32, size, new.ctypes.data)

    def unbind(self) -> None:
        """Nothing to forget: every step binds anew."""

    def advance(self, new_tokens: int) -> None:
        """The buffers the kernel has filled become the past."""
        self._past, self._present = self._present, self._past
        self.length += new_tokens

    def _reserve(self, tokens: int) -> None:
        if tokens <= self._capacity:
            return
        limit = max(tokens, self.shape.context_length)
        capacity = min(max(tokens, 2 * self._capacity, FIRST_CAPACITY), limit)
        room = math.prod(self._size(capacity))
        held = math.prod(self._size(self.length))
        self._present, self._capacity = [], 0  # growing may fail half way, and is then done again
        with _growing(2 * capacity, self.shape, np.float32):
            for i in range(len(self._names)):
                grown = np.empty(room, np.float32)
                if i < len(self._past):
                    grown[:held] = self._past[i][:held]
                    self._past[i] = grown
                else:
                    self._past.append(grown)
            self._present = [np.empty(room, np.float32) for _ in self._names]
        self._capacity = capacity

    def _size(self, tokens: int) -> tuple[int, int, int, int]:
        return 1, self.shape.kv_heads, tokens, self.shape.head_size

    def _view(self, buffer: NDArray[np.float32], tokens: int) -> NDArray[np.float32]:
        size = self._size(tokens)
        return buffer[: math.prod(size)].reshape(size)


def _growing(
    tokens: int, shape: DecoderShape, dtype: type[np.number[Any]]
) -> AbstractContextManager[None]:
    """Raises ResourceError where there is no memory for the rows of ``tokens``."""
    what = f"a KV cache for {tokens:,} tokens"
    num_bytes = tokens * shape.kv_numbers_per_token * np.dtype(dtype).itemsize
    return memory_errors(what, num_bytes, SHORTER)
