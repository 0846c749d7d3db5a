"""The read bandwidth: how large an array it takes, and that all of it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pocketlm.benchmarks.speed import bandwidth
from pocketlm.benchmarks.speed.bandwidth import LARGEST, SMALLEST, array_bytes, last_level_cache


def caches(folder: Path, *sizes: str) -> Path:
    for i, size in enumerate(sizes):
        (folder / f"index{i}").mkdir()
        (folder / f"index{i}" / "size").write_text(f"{size}\n")
    return folder


def test_the_last_cache_is_the_largest(tmp_path: Path) -> None:
    assert last_level_cache(caches(tmp_path, "48K", "32K", "2048K", "260M")) == 260 << 20
    assert last_level_cache(tmp_path / "missing") == 0


@pytest.mark.parametrize(
    ("cache", "available", "expected"),
    [
        (8 << 20, 100 << 30, SMALLEST),
        (100 << 20, 100 << 30, 400 << 20),
        (1 << 30, 100 << 30, LARGEST),
        (100 << 20, 1 << 30, 128 << 20),  # little memory decides
        (0, 100 << 30, SMALLEST),  # the system names no cache
    ],
)
def test_the_array_is_larger_than_the_cache_and_small_beside_the_memory(
    cache: int, available: int, expected: int
) -> None:
    assert array_bytes(cache, available) == expected


@pytest.mark.parametrize("threads", [1, 3])
def test_every_byte_is_read_in_every_pass(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    plain = np.max

    def counted(part: NDArray[np.int32]) -> Any:
        sizes.append(part.nbytes)
        return plain(part)

    monkeypatch.setattr(np, "max", counted)
    assert bandwidth.read_bandwidth(threads, 4000) > 0
    assert len(sizes) == threads * bandwidth.PASSES
    assert sum(sizes) == 4000 * bandwidth.PASSES
