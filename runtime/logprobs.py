"""Natural logs of probabilities, and the likeliest tokens, of rows of logits.

    log P(token) = logit - largest - log(sum(exp(logits - largest)))

Letters: S rows, V vocabulary, N tokens looked at in each row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from ..export.errors import NumericsError

# Rows of logits that are turned into probabilities at once: the copies they need stay small.
BLOCK_ROWS = 16


class TopLogprobs(Sequence[tuple[int, float]]):
    """(token, logprob) of the likeliest tokens in one place, as they were given.

    In twelve bytes each, where two numbers of Python take a hundred: a text has as many of these as
    tokens, and is kept until it has ended or was read.
    """

    __slots__ = ("_ids", "_logprobs")

    def __init__(self, ids: NDArray[np.int64], logprobs: NDArray[np.float64]) -> None:
        """Of the tokens ``ids`` (N,), below 2^31, and their natural logs (N,)."""
        self._ids = ids.astype(np.int32)
        self._logprobs = logprobs.astype(np.float64)  # a copy: those of others are not kept

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[tuple[int, float]]:
        return zip(self._ids.tolist(), self._logprobs.tolist(), strict=True)

    @overload
    def __getitem__(self, place: int) -> tuple[int, float]: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[tuple[int, float], ...]: ...
    def __getitem__(self, place: int | slice) -> tuple[int, float] | tuple[tuple[int, float], ...]:
        return tuple(self)[place]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))


def logprobs(logits: NDArray[np.float32], ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of the tokens ``ids`` (S, N) under softmax of each row of ``logits`` (S, V): (S, N).

    Raises NumericsError for logits that are not finite.
    """
    largest = logits.max(axis=-1, keepdims=True)
    if not np.isfinite(largest).all():
        raise NumericsError(
            "the model's logits are not finite, expected numbers; export the checkpoint again, in "
            "another precision if it is quantized"
        )
    totals = np.empty((len(logits), 1))
    for start in range(0, len(logits), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        # Summed in float64: the float32 terms are good to 1e-7, and so is then their sum.
        powers = np.exp(logits[rows] - largest[rows])
        totals[rows] = powers.sum(axis=-1, dtype=np.float64, keepdims=True)
    found = np.take_along_axis(logits, ids, axis=-1).astype(np.float64)
    logs: NDArray[np.float64] = found - largest - np.log(totals)
    return logs


def likeliest(row: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Ids of the ``count`` largest logits of a row (V,), the largest first, then by id."""
    count = min(count, row.size)
    if count == 0:
        return np.zeros(0, np.int64)
    threshold = np.partition(row, row.size - count)[row.size - count]
    candidates = np.flatnonzero(row >= threshold)
    return candidates[np.argsort(-row[candidates], kind="stable")[:count]]
