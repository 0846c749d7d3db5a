"""What quantization did to each tensor: format, bits per weight, error, bytes before and after."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from ..export.manifest import QuantizationReport, TensorReport
from .feedback import Feedbacks, NotPositive
from .formats import Format
from .weights import Floats, LinearWeight, Parts

Sums = tuple[float, float, float]  # squared error, squared weights, largest error


class Loss:
    """What packing one weight loses, added up from runs of it that any thread may bring."""

    def __init__(
        self, weight: LinearWeight, number_format: Format, feedbacks: Feedbacks | None = None
    ) -> None:
        self._weight = weight
        self._format = number_format
        self._feedbacks = feedbacks
        self._runs: dict[int, list[Sums]] = {}
        self.reason: str | None = None  # why it is not as it was to be
        self._bytes: dict[int, int] = {}

    def pack(self, start: int, stop: int) -> Parts:
        """Packs output features ``start`` to ``stop``, and remembers their loss."""
        sums: list[Sums] = []
        feedback = self._feedbacks.of(self._weight.name) if self._feedbacks else None
        arguments = (
            self._weight,
            start,
            stop,
            lambda before, after: sums.append(loss(before, after)),
        )
        try:
            parts = self._format.packed(*arguments, feedback)
        except NotPositive as error:
            sums.clear()
            self.reason = f"rounded to the nearest: {error}"
            parts = self._format.packed(*arguments)
        self._runs[start] = sums
        self._bytes[start] = sum(part.nbytes for part in parts.values())
        return parts

    def report(self) -> TensorReport:
        """The sum, in the order of the runs, so that it does not depend on threads."""
        runs = [sums for _, part in sorted(self._runs.items()) for sums in part]
        squares, norm = sum(sums[0] for sums in runs), sum(sums[1] for sums in runs)
        shape = tuple(int(number) for number in self._weight.weight.shape.numpy())
        size = sum(self._bytes.values())
        return TensorReport(
            name=self._weight.name,
            shape=shape,
            format=self._format.name,
            bits_per_weight=8 * size / math.prod(shape),
            relative_error=float(f"{(squares / norm) ** 0.5:.4g}") if norm else 0.0,
            maximum_error=float(f"{max((sums[2] for sums in runs), default=0.0):.4g}"),
            bytes_before=4 * math.prod(shape),
            bytes_after=size,
        )


@dataclass
class Report:
    """Set up while the graph is rewritten; its numbers are there once the weights are written."""

    losses: dict[str, Loss] = field(default_factory=dict)  # by name; a tied weight stands once
    skipped: dict[str, str] = field(default_factory=dict)  # name -> why it was left in float32
    reasons: Mapping[str, str] = field(default_factory=dict)  # name -> why it has another format

    @property
    def tensors(self) -> dict[str, TensorReport]:
        """What each weight lost, by name."""
        return {name: loss.report() for name, loss in self.losses.items()}

    def rows(self) -> tuple[TensorReport, ...]:
        """What each weight lost, and why it has another format, ordered as the graph is."""
        return tuple(
            replace(tensor, reason=self.losses[name].reason or self.reasons.get(name))
            for name, tensor in self.tensors.items()
        )

    def describe(self, num_parameters: int) -> QuantizationReport:
        """The manifest's entry for a model of that many parameters, ordered as the graph is."""
        tensors = self.rows()
        quantized = sum(math.prod(tensor.shape) for tensor in tensors)
        return QuantizationReport(
            share_quantized=round(quantized / max(1, num_parameters), 6),
            bytes_before=4 * num_parameters,
            bytes_after=4 * (num_parameters - quantized)
            + sum(tensor.bytes_after for tensor in tensors),
            tensors=tensors,
            skipped=dict(self.skipped),
        )


def loss(before: Floats, after: Floats) -> Sums:
    """(Σ (before - after)², Σ before², max |before - after|) of one run."""
    difference = (before - after).reshape(-1)
    flat = before.reshape(-1)
    largest = max(float(difference.max(initial=0)), -float(difference.min(initial=0)))
    return float(np.dot(difference, difference)), float(np.dot(flat, flat)), largest
