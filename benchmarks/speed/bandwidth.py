"""How many bytes a second this machine reads from memory, with a number of threads.

A roof for decoding, which reads every weight once a token. The reduction is the maximum of int32:
on one core with AVX-512 NumPy does it at 59 GB/s in the cache and 12 GB/s in memory, so that memory
is what it waits for (the sum of float32, at 18 in the cache, would be bound by arithmetic). The
array is several times as large as the last cache, and the best of several passes counts: a roof is
what the machine can do, not what it was left to do.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

PASSES = 7
CACHES = 4  # array over last-level cache
SMALLEST, LARGEST = 256 << 20, 2 << 30  # bytes of the array
SHARE_OF_MEMORY = 8  # of what is free, one part in so many
CPU_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def read_bandwidth(threads: int, size: int | None = None) -> float:
    """Bytes per second of the fastest of ``PASSES`` readings of ``size`` bytes by ``threads``."""
    if size is None:
        from ..machine import available_bytes  # not above: it needs an extra

        size = array_bytes(last_level_cache(), available_bytes())
    array = np.ones(size // 4, np.int32)  # written: unwritten pages are one page
    parts = np.array_split(array, threads)
    seconds = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(PASSES):
            started = time.perf_counter()
            list(pool.map(np.max, parts))  # a reduction lets go of the interpreter's lock
            seconds.append(time.perf_counter() - started)
    return array.nbytes / min(seconds)


def array_bytes(cache: int, free: int) -> int:
    """Large beside the last-level cache, and small beside the memory that is free, in bytes."""
    return min(max(SMALLEST, min(CACHES * cache, LARGEST)), free // SHARE_OF_MEMORY)


def last_level_cache(caches: Path = CPU_CACHES) -> int:
    """Bytes of the largest cache that the kernel names; 0 where it names none."""
    sizes = [0]
    for file in caches.glob("index*/size"):
        text = file.read_text().strip()  # "2048K"
        sizes.append(int(text.rstrip("KMG")) * UNITS.get(text[-1:], 1))
    return max(sizes)
