"""A checkpoint's tensors under an architecture's own names, checked against expected shapes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .checkpoint import READ_SCRATCH, Checkpoint, CheckpointTensor
from .errors import CheckpointError
from .graph import WHOLE, Blob, Graph

Floats = NDArray[np.float32]
Change = Callable[[Floats], Floats]
FLOAT_DTYPES = ("float32", "float16", "bfloat16")


class WeightSource:
    """Hands weights to a graph by name, lazily; every tensor must be used exactly as expected.

    ``rename`` maps a checkpoint's name to the architecture's, or to None for a tensor to leave out.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        rename: Callable[[str], str | None],
        expected: dict[str, tuple[int, ...]],
    ) -> None:
        self._expected = dict(expected)
        self._optional: set[str] = set()
        self._tensors: dict[str, CheckpointTensor] = {}
        for tensor in checkpoint.tensors.values():
            name = rename(tensor.name)
            if name is None:
                continue
            if name in self._tensors:
                raise CheckpointError(
                    f"{tensor.file}: tensors {self._tensors[name].name!r} and {tensor.name!r} are "
                    f"both {name!r}, expected one; the file mixes two checkpoints"
                )
            self._tensors[name] = tensor

    def allow(self, name: str, shape: tuple[int, ...]) -> None:
        """A tensor that may be there."""
        self._expected[name] = shape
        self._optional.add(name)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def check(self) -> None:
        """Raises CheckpointError for a missing, extra, misshaped or non-float tensor, by name."""
        missing = [n for n in self._expected if n not in self._tensors and n not in self._optional]
        extra = [n for n in self._tensors if n not in self._expected]
        if missing:
            raise CheckpointError(
                f"tensor {missing[0]!r} is missing{_and_more(missing)}, expected "
                f"{len(self._expected) - len(self._optional)} tensors; the weights do not match "
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
        for name, shape in self._expected.items():
            if name in self._tensors:
                self._check_tensor(self._tensors[name], shape)

    @staticmethod
    def _check_tensor(tensor: CheckpointTensor, shape: tuple[int, ...]) -> None:
        if tensor.shape != shape:
            raise CheckpointError(
                f"{tensor.file}: tensor {tensor.name!r} has shape {tensor.shape}, "
                f"expected {shape}; the weights do not match config.json - "
                "take both from the same revision"
            )
        if tensor.dtype not in FLOAT_DTYPES:
            raise CheckpointError(
                f"{tensor.file}: tensor {tensor.name!r} is {tensor.dtype}, expected one of "
                f"{', '.join(FLOAT_DTYPES)}; quantized checkpoints cannot be exported"
            )

    def weight(self, g: Graph, name: str, change: Change | None = None) -> ir.Value:
        """The float32 initializer ``name`` of ``g``; declared on first use, read when written.

        ``change`` is applied to every run of rows that is read.
        """
        if name in g.ir.initializers:
            return g.ir.initializers[name]
        tensor = self._tensors[name]

        def changed(start: int, stop: int) -> Floats:
            rows = tensor.rows(start, stop)
            return rows if change is None else change(rows)

        blob = Blob(changed, WHOLE if tensor.whole else None, scratch=READ_SCRATCH)
        return g.weight(name, tensor.shape, blob, np.float32)


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
