"""An attention mask of ones, which says how many tokens a lone sequence has."""

from __future__ import annotations

import numpy as np

from .engine import onnxruntime

GROWTH = 1024  # tokens the ones grow by
AHEAD = 64  # values that are made at once


class OnesMask:
    """Binds a mask of any length.

    It is bound at every step: as a value that is there, since making one is four times as slow
    between two runs (see ``bound_graph``) as it is behind another one.
    """

    def __init__(self) -> None:
        self._ones = np.ones((1, GROWTH), np.int64)
        self._values: dict[int, onnxruntime.OrtValue] = {}  # by their length

    def bind(self, binding: onnxruntime.IOBinding, length: int) -> None:
        """As the input of ``length`` tokens."""
        value = self._values.get(length)
        if value is None:
            value = self._made(length)
        binding.bind_ortvalue_input("attention_mask", value)

    def _made(self, length: int) -> onnxruntime.OrtValue:
        """With those that the next steps will want."""
        longest = length + AHEAD
        if self._ones.shape[1] < longest:
            self._ones = np.ones((1, longest + GROWTH), np.int64)
        make = onnxruntime.OrtValue.ortvalue_from_numpy  # over these ones: it copies nothing
        self._values = {n: make(self._ones[:, :n]) for n in range(length, longest)}
        return self._values[length]
