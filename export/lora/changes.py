"""What adapters do to one tensor of a checkpoint, a run of its rows at a time.

Every change adds ``weight`` times the difference that its adapter makes to the tensor:

    LowRank    weight · scale · left · right, left (rows, r) and right (r, columns)
    Added      weight · scale · values, of a bias
    Replaced   weight · (values - the base's); of weight 1 the values themselves
    Rows       the same, in some rows only

so that the order of adapters does not matter but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import CheckpointTensor

Floats = NDArray[np.float32]
Read = Callable[[CheckpointTensor], Floats]  # all values of a tensor, perhaps remembered

PRODUCT_BYTES = 1 << 20  # of a product that waits to be added
PIECE_BYTES = 4 << 20  # of values that take the place of others, as a ``Weight`` asks for them


class Change(Protocol):
    """One adapter's part in a tensor."""

    @property
    def adapter(self) -> str:
        """Where it is from, for messages."""

    @property
    def num_bytes(self) -> int:
        """Stored bytes that are read for all rows."""

    @property
    def scratch(self) -> int:
        """Bytes held while some rows are changed, about."""

    def apply(self, values: Floats, start: int, stop: int) -> None:
        """Changes ``values``, rows ``start`` to ``stop`` of the base's tensor, in place."""


@dataclass(frozen=True)
class LowRank:
    """The product of two thin matrices: A (r, in) and B (out, r) as peft stores them."""

    adapter: str
    a: CheckpointTensor
    b: CheckpointTensor
    scale: float
    inputs_first: bool  # the base's tensor is (in, out), as those of GPT-2 and embeddings are
    read: Read

    @property
    def num_bytes(self) -> int:
        """Of both."""
        return self.a.num_bytes + self.b.num_bytes

    @property
    def scratch(self) -> int:
        """Both in float32, and a part of their product."""
        size = sum(4 * tensor.shape[0] * tensor.shape[1] for tensor in (self.a, self.b))
        return size + PRODUCT_BYTES

    def apply(self, values: Floats, start: int, stop: int) -> None:
        """Adds the product's rows."""
        a, b = self.read(self.a), self.read(self.b)
        left, right = (a.T, b.T) if self.inputs_first else (b, a)
        left = np.float32(self.scale) * left[start:stop]
        step = max(1, PRODUCT_BYTES // (4 * values.shape[1]))
        for first in range(0, len(values), step):
            values[first : first + step] += left[first : first + step] @ right


@dataclass(frozen=True)
class Added:
    """A bias of B, which comes after it."""

    adapter: str
    bias: CheckpointTensor
    scale: float

    @property
    def num_bytes(self) -> int:
        """As stored."""
        return self.bias.num_bytes

    @property
    def scratch(self) -> int:
        """In float32."""
        return 4 * self.bias.shape[0]

    def apply(self, values: Floats, start: int, stop: int) -> None:
        """Adds it."""
        values += np.float32(self.scale) * self.bias.rows(start, stop)


@dataclass(frozen=True)
class Replaced:
    """A tensor that was trained whole; ``of_base``: the parameter itself, not a copy of it."""

    adapter: str
    tensor: CheckpointTensor
    weight: float
    of_base: bool

    @property
    def num_bytes(self) -> int:
        """As stored."""
        return self.tensor.num_bytes

    @property
    def scratch(self) -> int:
        """A piece in float32."""
        return PIECE_BYTES

    def apply(self, values: Floats, start: int, stop: int) -> None:
        """Puts its values in the place of the base's, or so far towards them."""
        _towards(values, self.tensor.rows(start, stop), self.weight)


@dataclass(frozen=True)
class Rows:
    """Rows of an embedding, of some tokens, that were trained whole."""

    adapter: str
    tensor: CheckpointTensor  # one row for each of ``tokens``
    tokens: tuple[int, ...]
    weight: float
    read: Read

    @property
    def num_bytes(self) -> int:
        """As stored."""
        return self.tensor.num_bytes

    @property
    def scratch(self) -> int:
        """In float32."""
        return 4 * self.tensor.shape[0] * self.tensor.shape[1]

    def apply(self, values: Floats, start: int, stop: int) -> None:
        """``Replaced``, in those rows."""
        rows = self.read(self.tensor)
        for row, token in zip(rows, self.tokens, strict=True):
            if start <= token < stop:
                _towards(values[token - start], row, self.weight)


def _towards(values: Floats, new: Floats, weight: float) -> None:
    if weight == 1:
        values[...] = new
    else:
        values += np.float32(weight) * (new - values)


def in_order(changes: Sequence[Change]) -> list[Change]:
    """What is measured from the base's values comes before what only adds to them."""
    return sorted(changes, key=lambda change: not isinstance(change, Replaced | Rows))
