"""What quantization did to each tensor: format, bits per weight, error, bytes before and after."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .weights import LinearWeight, Packed


@dataclass(frozen=True)
class TensorReport:
    """One weight, quantized. The error is that of the rounded weights alone."""

    name: str
    shape: tuple[int, ...]
    format: str
    bits_per_weight: float  # all stored bits, scales included, over the number of weights
    relative_error: float  # ||W - Q||_F / ||W||_F; 0 for a tensor of zeros
    maximum_error: float  # max |W - Q|, in the unit of the weights
    bytes_before: int
    bytes_after: int


@dataclass
class Report:
    """Filled while the weights are written; ``skipped`` while the graph is rewritten."""

    tensors: dict[str, TensorReport] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)  # name -> why it was left in float32
    num_weights: int = 0  # of the whole graph

    def add(self, report: TensorReport) -> None:
        """Keeps one report per tensor; a tied weight is reported once."""
        self.tensors[report.name] = report

    def describe(self) -> dict[str, Any]:
        """The manifest's entry, ordered as the graph is."""
        quantized = sum(int(np.prod(tensor.shape)) for tensor in self.tensors.values())
        return {
            "share_quantized": round(quantized / max(1, self.num_weights), 6),
            "bytes_before": 4 * self.num_weights,
            "bytes_after": 4 * (self.num_weights - quantized)
            + sum(tensor.bytes_after for tensor in self.tensors.values()),
            "tensors": [
                asdict(tensor) | {"shape": list(tensor.shape)} for tensor in self.tensors.values()
            ],
            "skipped": [{"name": name, "reason": why} for name, why in self.skipped.items()],
        }


def measured(weight: LinearWeight, format_name: str, packed: Packed) -> TensorReport:
    """The report of a weight that has just been packed; reads ``packed.restored`` to its end."""
    relative, largest = errors(packed.original, packed.restored)
    size = sum(part.nbytes for part in packed.parts.values())
    return TensorReport(
        name=weight.name,
        shape=tuple(int(number) for number in weight.weight.shape.numpy()),
        format=format_name,
        bits_per_weight=8 * size / packed.original.size,
        relative_error=relative,
        maximum_error=largest,
        bytes_before=packed.original.nbytes,
        bytes_after=size,
    )


def errors(
    original: NDArray[np.float32], restored: Iterator[NDArray[np.float32]]
) -> tuple[float, float]:
    """(relative Frobenius error, largest absolute error); ``restored`` comes in runs of rows."""
    row, squares, norm, largest = 0, 0.0, 0.0, 0.0
    for part in restored:
        source = original[row : row + len(part)]
        difference = source - part
        squares += float(np.square(difference).sum(dtype=np.float64))
        norm += float(np.square(source).sum(dtype=np.float64))
        largest = max(largest, float(np.abs(difference).max(initial=0)))
        row += len(part)
    return (float(f"{(squares / norm) ** 0.5:.4g}") if norm else 0.0), float(f"{largest:.4g}")
