"""Keys and values that a graph gives back, for whoever runs it to put into the cache.

Letters: K key/value heads, S new tokens, E head size.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..export.folder import NEW_ROWS, DecoderShape, cache_names
from .engine import onnxruntime


class NewRows:
    """Where the outputs ``new.{layer}.{key|value}`` of a graph go: (1, K, S, E) int8 each."""

    def __init__(self, shape: DecoderShape) -> None:
        self._shape = shape
        self._names = [output for _, output in cache_names(shape.num_layers, NEW_ROWS)]
        self._rows = np.empty((0, 0, 0, 0), np.int8)

    def bind(self, binding: onnxruntime.IOBinding, count: int) -> None:
        """For a run of S = ``count`` tokens."""
        size = (1, self._shape.kv_heads, count, self._shape.head_size)
        if self._rows.shape[2] != count:
            self._rows = np.empty((len(self._names), *size[1:]), np.int8)
            for name, row in zip(self._names, self._rows, strict=True):
                binding.bind_output(name, "cpu", 0, np.int8, size, row.ctypes.data)

    def values(self) -> list[NDArray[np.int8]]:
        """(K, S, E) of every layer's keys, then its values, of the last run: views."""
        return list(self._rows)
