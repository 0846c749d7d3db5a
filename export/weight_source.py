"""A checkpoint's tensors under an architecture's own names: every one is used, in its shape."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from .checkpoint import READABLE_DTYPES, CheckpointTensor
from .errors import CheckpointError
from .graph import WHOLE, Blob

Floats = NDArray[np.float32]
Change = Callable[[Floats], Floats]
Order = NDArray[np.int64]  # (rows,): where each row of a weight is stored


class WeightSource:
    """The source of a graph's parameters, which remembers what the graph asks for (``asked``).

    ``rename`` maps a checkpoint's name to the architecture's, or to None for a tensor to leave out;
    ``change`` maps the latter to what is done to every run of rows that is read, ``order`` to the
    rows' places in the file where they are others. A tensor that is missing is handed out all the
    same, for ``check`` to refuse once the graph is whole.
    """

    def __init__(
        self,
        tensors: Iterable[CheckpointTensor],
        rename: Callable[[str], str | None],
        change: Callable[[str], Change | None] = lambda name: None,
        order: Callable[[str], Order | None] = lambda name: None,
    ) -> None:
        self.asked: dict[str, tuple[int, ...]] = {}
        self._change = change
        self._order = order
        self._tensors: dict[str, CheckpointTensor] = {}
        for tensor in tensors:
            name = rename(tensor.name)
            if name is None:
                continue
            if name in self._tensors:
                raise CheckpointError(
                    f"{tensor.file}: tensors {self._tensors[name].name!r} and {tensor.name!r} are "
                    f"both {name!r}, expected one; the file mixes two checkpoints"
                )
            self._tensors[name] = tensor

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def blob(self, name: str, shape: tuple[int, ...]) -> Blob:
        """The values of the tensor ``name`` as float32, read when they are written."""
        self.asked[name] = shape
        tensor = self._tensors.get(name)
        if tensor is None:
            return Blob(lambda start, stop: np.empty(0, np.float32))
        change, order = self._change(name), self._order(name)

        def rows(start: int, stop: int) -> Floats:
            values = (
                tensor.rows(start, stop) if order is None else _ordered(tensor, order[start:stop])
            )
            return values if change is None else change(values)

        return Blob(rows, WHOLE if tensor.whole else None, scratch=tensor.scratch)

    def check(self) -> None:
        """Raises CheckpointError for a missing, extra, misshaped or non-float tensor, by name."""
        missing = [name for name in self.asked if name not in self._tensors]
        extra = [name for name in self._tensors if name not in self.asked]
        if missing:
            raise CheckpointError(
                f"tensor {missing[0]!r} is missing{_and_more(missing)}, expected "
                f"{len(self.asked)} tensors; the weights do not match "
                "config.json - take both from the same revision"
                + (f" (found instead: {extra[0]!r})" if extra else "")
            )
        if extra:
            tensor = self._tensors[extra[0]]
            raise CheckpointError(
                f"{tensor.file}: found a tensor {tensor.name!r}{_and_more(extra)} that config.json "
                "leaves no place for, expected none; leaving it out would change the results - "
                "take config.json and weights from the same revision"
            )
        for name, shape in self.asked.items():
            self._check_tensor(self._tensors[name], shape)

    @staticmethod
    def _check_tensor(tensor: CheckpointTensor, shape: tuple[int, ...]) -> None:
        if tensor.shape != shape:
            raise CheckpointError(
                f"{tensor.file}: tensor {tensor.name!r} has shape {tensor.shape}, "
                f"expected {shape}; the weights do not match config.json - "
                "take both from the same revision"
            )
        if tensor.dtype not in READABLE_DTYPES:
            raise CheckpointError(
                f"{tensor.file}: tensor {tensor.name!r} is {tensor.dtype}, expected one of "
                f"{', '.join(READABLE_DTYPES)}; quantized checkpoints cannot be exported"
            )


def _ordered(tensor: CheckpointTensor, order: Order) -> Floats:
    """Rows of ``tensor`` in that order, read in runs of neighbours."""
    ends = [*(np.flatnonzero(np.diff(order) != 1) + 1).tolist(), len(order)]
    runs = [order[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    return np.concatenate([tensor.rows(int(run[0]), int(run[-1]) + 1) for run in runs])


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
