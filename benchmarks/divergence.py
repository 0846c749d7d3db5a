"""Logits of two models at the same positions go in, how far they part goes out, row by row.

    loss          -log p(true token)
    KL(p ‖ q)   = Σ p (log p - log q), p the reference's
    top           the five likeliest tokens, of equal ones the smaller id

All in nats. With z the logits, m the largest and S = Σ exp(z - m), which float32 holds well,

    KL = Σ exp(z_p - m_p) ((z_p - m_p) - (z_q - m_q)) / S_p - (log S_p - log S_q)

so that equal logits give exactly 0; sums are float64, and the rest costs a few passes over memory
that stays in the processor's cache. Letters: R rows, V vocabulary, K = ``NUM_TOP`` tokens.

Source of the measures: llama.cpp's ``perplexity --kl-divergence``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUM_TOP = 5
BLOCK_VALUES = 1 << 17  # float32 values of one model worked on at once: three such fit in L2

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Rows:
    """What one model says at R positions; ``kl`` is 0 for the reference."""

    loss: Floats  # (R,)
    probability: Floats  # (R,) of the true token
    kl: Floats  # (R,)
    top: Integers  # (R, K) ids, the likeliest first
    top_probability: Floats  # (R, K)

    @staticmethod
    def joined(parts: Sequence[Rows]) -> Rows:
        """Rows after rows."""
        return Rows(*(np.concatenate([getattr(part, name) for part in parts]) for name in FIELDS))


FIELDS = tuple(Rows.__dataclass_fields__)


class _Softmax:
    """exp(z - m) and S of a block of rows, in arrays that are used again and again."""

    def __init__(self, rows: int, vocab_size: int) -> None:
        self._shifted = np.empty((rows, vocab_size), np.float32)
        self._exponents = np.empty((rows, vocab_size), np.float32)

    def read(self, logits: Logits, targets: Integers) -> None:
        """Takes the block's logits (R, V) and true tokens (R,)."""
        rows = np.arange(len(logits))
        self.shifted = self._shifted[: len(logits)]
        self.exponents = self._exponents[: len(logits)]
        largest = logits.max(axis=-1, keepdims=True)
        # A row of NaN or infinities says so in its loss; whoever sums them has to look.
        with np.errstate(invalid="ignore", over="ignore"):
            np.subtract(logits, largest, out=self.shifted)
            np.exp(self.shifted, out=self.exponents)
            self.log_sum = np.log(self.exponents.sum(axis=-1, dtype=np.float64))  # (R,)
            self.loss = self.log_sum - self.shifted[rows, targets]
        self.top, values = _top(self.shifted)
        self.top_probability = np.exp(values - self.log_sum[:, None])


def _top(values: Logits) -> tuple[Integers, Floats]:
    """Ids and values (R, K) of the largest, one pass each: the fastest way for a K of 5."""
    rows = np.arange(len(values))
    count = min(NUM_TOP, values.shape[1])
    ids = np.empty((len(values), count), np.int64)
    found = np.empty(ids.shape, np.float32)
    for i in range(count):
        ids[:, i] = values.argmax(axis=-1)
        found[:, i] = values[rows, ids[:, i]]
        values[rows, ids[:, i]] = -np.inf
    values[rows[:, None], ids] = found
    return ids, found.astype(np.float64)


class Comparison:
    """Compares the logits of a reference with those of others, at the same positions."""

    def __init__(self, vocab_size: int) -> None:
        self._block = max(1, BLOCK_VALUES // vocab_size)
        self._reference = _Softmax(self._block, vocab_size)
        self._other = _Softmax(self._block, vocab_size)

    def compare(self, logits: Sequence[Logits], targets: Integers) -> list[Rows]:
        """``Rows`` for each of ``logits`` (R, V), against the first of them."""
        parts: list[list[Rows]] = [[] for _ in logits]
        for first in range(0, len(targets), self._block):
            block = slice(first, first + self._block)
            self._reference.read(logits[0][block], targets[block])
            parts[0].append(_rows(self._reference, np.zeros(len(targets[block]))))
            for part, other in zip(parts[1:], logits[1:], strict=True):
                self._other.read(other[block], targets[block])
                part.append(_rows(self._other, self._divergence()))
        return [Rows.joined(part) for part in parts]

    def _divergence(self) -> Floats:
        """KL (R,) of the block; overwrites the other's values."""
        p, q = self._reference, self._other
        difference = np.subtract(p.shifted, q.shifted, out=q.shifted)
        weighted = np.multiply(difference, p.exponents, out=difference)
        kl: Any = weighted.sum(axis=-1, dtype=np.float64) / np.exp(p.log_sum)
        return np.asarray(kl - (p.log_sum - q.log_sum), np.float64)


def _rows(model: _Softmax, kl: Floats) -> Rows:
    return Rows(model.loss, np.exp(-model.loss), kl, model.top, model.top_probability)
