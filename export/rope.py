"""Rotary position embedding: which angles a config asks for, and their cosines and sines.

Pair j of a head's R rotated numbers turns by ``position * frequency[j]``, j < R / 2, where

    default   frequency[j] = theta ** (-2j / R)
    linear    the same, divided by ``factor``
    llama3    divided by ``factor`` where a full turn takes more than original / low_freq_factor
              positions, kept where it takes fewer than original / high_freq_factor, and blended
              linearly in original / wavelength between the two

The halves of a head are rotated against each other (number j with number j + R / 2), as Hugging
Face stores its weights. Sources: Su et al. 2021 (arXiv 2104.09864); ``modeling_rope_utils.py`` of
Hugging Face transformers and ``rope_scaling`` in Meta's llama-models for "llama3".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .config_fields import fits_float32
from .errors import CheckpointError
from .graph import Graph, Rows
from .strict_json import shown

Floats = NDArray[np.float32]

# Fields beside the type that each kind of scaling needs; all are positive numbers.
SCALINGS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
}


@dataclass(frozen=True)
class Rope:
    """The rotation of one kind of layer; ``size`` is R."""

    size: int
    theta: float
    scaling: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: float = 8192.0

    @classmethod
    def read(cls, config: dict[str, Any], size: int) -> Rope:
        """From ``rope_theta`` and ``rope_scaling``, or ``rope_parameters`` of newer configs.

        CheckpointError names a kind of scaling that is not built, or a number that is missing.
        """
        scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if not isinstance(scaling, dict):
            raise CheckpointError(
                f"config.json: rope_scaling is {shown(scaling)}, expected an object or null; "
                "the file is damaged or belongs to another model"
            )
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if not isinstance(kind, str) or kind not in SCALINGS:
            raise CheckpointError(
                f"config.json: rope_scaling is of type {shown(kind)}, expected one of "
                f"{', '.join(SCALINGS)}; the graph does not implement it, so this checkpoint "
                "cannot be exported"
            )
        theta = scaling.get("rope_theta", config.get("rope_theta"))
        if theta is None:
            theta = 10000.0
        numbers = {name: _positive(name, scaling.get(name)) for name in SCALINGS[kind]}
        low, high = numbers.get("low_freq_factor", 0), numbers.get("high_freq_factor", math.inf)
        if low >= high:
            raise CheckpointError(
                f"config.json: low_freq_factor of the rotary embedding is {low:g}, expected less "
                f"than high_freq_factor {high:g}; the file is damaged or belongs to another model"
            )
        if size <= 0 or size % 2:
            raise CheckpointError(
                f"config.json: {size} numbers of a head are rotated, expected a positive even "
                "number; the file is damaged or belongs to another model"
            )
        return cls(size, _positive("rope_theta", theta), kind, **numbers)

    def frequencies(self) -> Floats:
        """(R / 2,) radians per position."""
        exponents = np.arange(0, self.size, 2, dtype=np.float32) / np.float32(self.size)
        plain: Floats = np.float32(1) / np.float32(self.theta) ** exponents
        if self.scaling == "default":
            return plain
        slow: Floats = plain / np.float32(self.factor)
        if self.scaling == "linear":
            return slow
        wavelength = 2 * math.pi / plain
        share = self.original_max_position_embeddings / wavelength - self.low_freq_factor
        share = np.clip(share / (self.high_freq_factor - self.low_freq_factor), 0, 1)
        blended: Floats = ((1 - share) * slow + share * plain).astype(np.float32)
        return blended

    def rotary(self, g: Graph, name: str, context_length: int) -> Rotary:
        """The rotation of the first ``context_length`` positions, computed when written."""
        shape = (context_length, self.size // 2)
        cosines = g.table(f"{name}.cos", shape, self._rows(np.cos))
        sines = g.table(f"{name}.sin", shape, self._rows(np.sin))
        return Rotary(cosines, sines)

    def _rows(self, function: Callable[[Floats], Floats]) -> Rows:
        def rows(start: int, stop: int) -> Floats:
            # The product is rounded to float32 because the models were trained with it so.
            angles = np.arange(start, stop, dtype=np.float32)[:, None] * self.frequencies()
            return function(angles)

        return rows


@dataclass(frozen=True)
class Rotary:
    """Cosines and sines of rotary position embedding, (context length, R / 2) each."""

    cosines: ir.Value
    sines: ir.Value

    @property
    def fits_attention(self) -> bool:
        """Whether GroupQueryAttention can rotate by itself: its kernel wants R in sixteens."""
        assert self.cosines.shape is not None
        return int(self.cosines.shape.numpy()[1]) % 8 == 0

    def apply(
        self, g: Graph, x: ir.Value, position_ids: ir.Value, num_heads: int, name: str
    ) -> ir.Value:
        """Rotates (B, S, num_heads·E) by the positions (B, S), in a node of its own."""
        assert self.cosines.shape is not None
        size = 2 * int(self.cosines.shape.numpy()[1])
        return g.RotaryEmbedding(
            x,
            position_ids,
            self.cosines,
            self.sines,
            num_heads=num_heads,
            rotary_embedding_dim=size,
            name=name,
        )


def _positive(name: str, value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and fits_float32(value):
        return float(value)
    raise CheckpointError(
        f"config.json: {name} of the rotary embedding is {shown(value)}, expected a positive "
        "number; the file is damaged or belongs to another model"
    )
