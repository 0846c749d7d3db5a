"""How coarse an int8 KV cache may be: token windows go in, a scale for every channel comes out.

The windows run through the folder's float32 graph, and its cache is looked at: what is kept of a
key (rotated by its position) or a value is what is measured. A channel gets the scale that holds
its largest number and a little more; what other texts have beyond is cut off.

That alone would cost most at a single place. Decoders attend to the first token of a text all the
time, whatever it is ("attention sinks": Xiao et al., arXiv 2309.17453), so that the rounding of its
value stands in the output of every later token, where those of the others average out: on
SmolLM2-135M 86 % of what rounding the values costs is the first one's. It is the same for most
texts: in the deeper layers nothing is left of which token it was. So of the scales from the one
needed to half as much again that one is taken at which

    FIRST_WEIGHT · mean square error of the first tokens' numbers + scale² / 12

is least: mostly one of which these are multiples. Letters: K key/value heads, E head size, W
windows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..export.errors import NumericsError, RequestError
from ..runtime.arena import KVCache
from ..runtime.chunks import prefill
from ..runtime.session import Session
from .int8_cache import LIMIT, CacheScales

Channels = NDArray[np.float32]  # (K, E)

HEADROOM = 1.1
FIRST_WEIGHT = 8.0
FACTORS = np.linspace(1, 1.5, 51, dtype=np.float32)[:, None, None]
# Of a channel that is silent in all windows: this share of the loudest of its layer, and at least
# what float32 can square.
LEAST, SMALLEST = 1e-4, 1e-15


def cache_scales(session: Session, windows: NDArray[np.int64]) -> CacheScales:
    """The scales of every layer's keys and values, from ``windows`` (W, tokens), each a text anew.

    Raises RequestError for a session whose cache is not of float32 in place, for no windows and for
    tokens that it refuses, NumericsError for keys or values that are not finite.
    """
    cache = session.new_cache()
    if not isinstance(cache, KVCache) or cache.arena.dtype != np.float32:
        raise RequestError("found another KV cache, expected one of float32 in place to measure it")
    if not windows.size:
        raise RequestError("found no windows, expected at least one to find the scales of a cache")
    seen = [_Seen() for _ in cache.values()]
    for window in windows:
        cache.truncate(0)
        prefill(session, window.tolist(), cache)
        for found, rows in zip(seen, cache.values(), strict=True):
            found.add(rows)
    for number, found in enumerate(seen):
        if not np.isfinite(found.largest).all():
            kind = ("keys", "values")[number % 2]
            raise NumericsError(
                f"layer {number // 2}: found {kind} that are NaN or infinite, expected finite "
                "ones; the checkpoint is damaged"
            )
    fitted = [fitted_scales(found.largest, np.stack(found.first)) for found in seen]
    return {layer: (fitted[2 * layer], fitted[2 * layer + 1]) for layer in range(len(fitted) // 2)}


class _Seen:
    """Keys or values of one layer."""

    def __init__(self) -> None:
        self.largest: Channels = np.zeros((1, 1), np.float32)
        self.first: list[Channels] = []  # of each window

    def add(self, rows: NDArray[np.float32]) -> None:
        """Takes the rows (K, T, E) of a window."""
        self.largest = np.maximum(self.largest, np.abs(rows).max(axis=1))
        self.first.append(rows[:, 0].copy())


def fitted_scales(largest: Channels, first: NDArray[np.float32]) -> Channels:
    """Scales (K, E) for numbers up to ``largest``; ``first`` (W, K, E) are those of first tokens.

    All are positive.
    """
    loudest = max(largest.max(), SMALLEST / LEAST)
    needed = np.maximum(largest, LEAST * loudest) * (HEADROOM / LIMIT)
    candidates = needed * FACTORS  # (F, K, E)
    cost = candidates**2 / 12
    for numbers in first:
        error = numbers - np.rint(numbers / candidates) * candidates
        cost += FIRST_WEIGHT / len(first) * error**2
    best = cost.argmin(axis=0)[None]
    scales: Channels = np.take_along_axis(candidates, best, axis=0)[0]
    return scales
