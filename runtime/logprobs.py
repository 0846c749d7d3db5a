"""Natural logs of probabilities, and the likeliest tokens, of rows of logits.

    log P(token) = logit - largest - log(sum(exp(logits - largest)))

Letters: S rows, V vocabulary, N tokens looked at in each row.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..export.errors import NumericsError

# Rows of logits that are turned into probabilities at once: the copies they need stay small.
BLOCK_ROWS = 16


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
