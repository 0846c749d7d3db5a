"""The weight of a linear layer as a format sees it, and parts that are packed together.

Letters: K input features, N output features. A weight is stored (K, N), as MatMul takes it, or (N,
K), as a ``transB`` product does; a format asks for the orientation its kernel wants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..export.graph import Blob, Weight

Floats = NDArray[np.float32]

CHUNK = 1 << 20  # weights worked on at once: bounds the temporaries, fits in cache


@dataclass(frozen=True)
class LinearWeight:
    """A float32 matrix that is read when asked for."""

    weight: Weight
    transposed: bool  # stored (N, K)

    @property
    def name(self) -> str:
        """Dotted name of the checkpoint's tensor."""
        return str(self.weight.name)

    @property
    def in_features(self) -> int:
        """K."""
        return int(self.weight.shape.numpy()[1 if self.transposed else 0])

    @property
    def out_features(self) -> int:
        """N."""
        return int(self.weight.shape.numpy()[0 if self.transposed else 1])

    def in_out(self) -> Floats:
        """The values as (K, N); read now."""
        return self.weight.read().T if self.transposed else self.weight.read()

    def out_in(self) -> Floats:
        """The values as (N, K); read now."""
        return self.weight.read() if self.transposed else self.weight.read().T


@dataclass(frozen=True)
class Packed:
    """A weight that has just been packed."""

    original: Floats  # in the orientation the format wants
    parts: dict[str, NDArray[Any]]  # what is stored, by name
    restored: Iterator[Floats]  # ``original`` as the parts give it back, in runs of rows


class PackedParts:
    """Several blobs from one computation: done when the first is read, dropped with the last."""

    def __init__(self, compute: Callable[[], dict[str, NDArray[Any]]]) -> None:
        self._compute = compute
        self._waiting: dict[str, NDArray[Any]] = {}
        self._blobs: dict[str, Blob] = {}

    def blob(self, part: str) -> Blob:
        """The blob of one part; the same one every time, so that two weights can share it."""
        if part not in self._blobs:
            self._blobs[part] = Blob(lambda: self._take(part))
        return self._blobs[part]

    def _take(self, part: str) -> NDArray[Any]:
        if part not in self._waiting:
            computed = self._compute()
            self._waiting = {name: computed[name] for name in self._blobs}
        return self._waiting.pop(part)


def weight_of(value: ir.Value | None) -> Weight | None:
    """The lazy weight behind an initializer, or None."""
    tensor = value.const_value if value is not None else None
    return tensor if isinstance(tensor, Weight) else None
