"""What rounding changed in each layer of a quantized folder, from the report in its manifest.

A layer is all tensors that share the part of their name up to its number: ``h.3.mlp.c_fc.weight``
belongs to ``h.3``, ``model.layers.3.mlp.up_proj.weight`` to ``layers.3``. A tensor without one is
the ``embedding`` before the first layer and the ``head`` after the last (a tied head is the
embedding); anywhere else it stands under its own name. The order is that of the graph.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from ..export.folder import ModelFolder
from ..export.manifest import TensorReport

# transformer.h.3.attn…, model.layers.3.…, layers.3.…; an expert's number comes after the layer's.
LAYER = re.compile(r"(?:^|\.)([^.]+\.\d+)\.")


def weight_errors(folder: ModelFolder) -> list[dict[str, Any]]:
    """``{"layer", "relative_error", "bits_per_weight"}`` per layer; empty where nothing is rounded.

    The manifest has ||W - Q|| / ||W|| of each tensor, and not the norms. A layer's error is the
    root mean square of its tensors', weighted by their numbers of weights: exactly
    sqrt(Σ ||W - Q||² / Σ ||W||²) if the weights of a layer are equally large on average, and
    otherwise a mean that does not let the tensor with the largest weights speak for the rest.
    Tensors left in float32 are not counted.
    """
    report = folder.manifest.precision.report
    tensors = report.tensors if report else ()
    layers: dict[str, list[TensorReport]] = {}
    for name, tensor in zip(_layers([t.name for t in tensors]), tensors, strict=True):
        layers.setdefault(name, []).append(tensor)
    return [
        {
            "layer": name,
            "relative_error": math.sqrt(_mean(members, lambda t: t.relative_error**2)),
            "bits_per_weight": _mean(members, lambda t: t.bits_per_weight),
        }
        for name, members in layers.items()
    ]


def _layers(names: list[str]) -> list[str]:
    """The layer of each tensor, from their names in the order of the graph."""
    found = [LAYER.search(name) for name in names]
    numbered = [place for place, match in enumerate(found) if match]
    first, last = (numbered[0], numbered[-1]) if numbered else (0, len(names))
    layers = []
    for place, (name, match) in enumerate(zip(names, found, strict=True)):
        if match:
            layers.append(match[1])
        else:
            layers.append("embedding" if place < first else "head" if place > last else name)
    return layers


def _mean(tensors: list[TensorReport], figure: Callable[[TensorReport], float]) -> float:
    """The mean of a figure over all weights of the tensors."""
    sizes = [math.prod(tensor.shape) for tensor in tensors]
    total = sum(size * figure(tensor) for size, tensor in zip(sizes, tensors, strict=True))
    return float(total / sum(sizes))
