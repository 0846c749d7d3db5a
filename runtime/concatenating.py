"""The KV cache of a graph that makes it anew every step: what a traced graph needs.

It is also what the tests compare the cache in place with. Letters: K key/value heads, E head size,
T tokens held.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..export.folder import DecoderShape, cache_names
from .arena import FIRST_CAPACITY, check_length, growing
from .engine import onnxruntime


class ConcatenatingCache:
    """Keys and values as a growing graph returns them: (1, K, T, E), one token longer every step.

    Two sets of flat buffers take turns as past and present, so that a step allocates nothing until
    the tokens outgrow them; then they double.
    """

    def __init__(self, shape: DecoderShape) -> None:
        self.shape = shape
        self.length = self.text_length = 0
        self._names = cache_names(shape.num_layers)
        self._capacity = 0  # tokens
        self._past: list[NDArray[np.float32]] = []
        self._present: list[NDArray[np.float32]] = []

    @property
    def num_bytes(self) -> int:
        return sum(buffer.nbytes for buffer in (*self._past, *self._present))

    def truncate(self, length: int) -> None:
        """Forgets every token from position ``length`` on; ValueError if it holds fewer."""
        check_length(length, self.length)
        if length < self.length:
            for buffer in self._past:
                kept = self._view(buffer, self.length)[:, :, :length].copy()
                buffer[: kept.size] = kept.reshape(-1)
        self.length = length

    def copy(self) -> ConcatenatingCache:
        """Another one that holds the same. Raises ResourceError where there is no memory for it."""
        made = ConcatenatingCache(self.shape)
        if self.length:
            made.fill(self.values(), self.length)
        made.text_length = self.text_length
        return made

    def values(self) -> list[NDArray[np.float32]]:
        """(K, T, E) of every layer's keys, then its values: views, until the next step."""
        return [self._view(buffer, self.length)[0] for buffer in self._past]

    def fill(self, values: Sequence[NDArray[Any]], length: int) -> None:
        """Holds the first ``length`` tokens of ``values`` and nothing else; see ``Cache``."""
        self.length = 0
        self._reserve(length)
        for buffer, value in zip(self._past, values, strict=True):
            self._view(buffer, length)[0] = value[:, :length]
        self.length = length

    def bind(self, binding: onnxruntime.IOBinding, new_tokens: int, bound: object) -> object:
        """Binds one set as past, and the other, with room for the step, as present; every time."""
        total = self.length + new_tokens
        self._reserve(total)
        names = zip(self._names, self._past, self._present, strict=True)
        for (past, present), old, new in names:
            size = self._size(self.length)
            binding.bind_input(past, "cpu", 0, np.float32, size, old.ctypes.data)
            size = self._size(total)
            binding.bind_output(present, "cpu", 0, np.float32, size, new.ctypes.data)
        return None

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
        with growing(2 * capacity, self.shape, np.float32):
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
