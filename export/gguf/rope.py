"""The rotation that a GGUF file asks for, as config.json spells it.

Metadata names the kind ("rope.scaling.type": linear, yarn, longrope) and its numbers. Two kinds are
in tensors, a factor for each frequency by which it is divided:

    rope_freqs                  Llama 3's, whose four numbers are found again from the factors
    rope_factors_long, _short   longrope's

Sources: llama.cpp ``llama-model.cpp`` (``rope_scaling_type``, ``get_rope_factors``) and
``convert_hf_to_gguf.py`` (``generate_extra_tensors``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from .header import AGAIN
from .metadata import Metadata
from .tensors import StoredBlocks

Stored = dict[str, StoredBlocks]
LOW, HIGH, ORIGINAL = 1.0, 4.0, 8192  # of every model with Llama 3's kind
SMALLEST, LARGEST = 1e-3, 1e5  # factors


def rope_scaling(about: Metadata, stored: Stored) -> dict[str, Any] | None:
    """The field ``rope_scaling``; CheckpointError for a kind that is not known."""
    listed = _listed(about, stored)
    if (factors := stored.get("rope_freqs.weight")) is not None:
        if listed is not None:
            raise about.wrong(
                "rope.scaling.type", f"none beside the tensor {factors.name!r}", AGAIN
            )
        return _by_frequency(about, _read(factors))
    return listed


def _listed(about: Metadata, stored: Stored) -> dict[str, Any] | None:
    linear = about.says("rope.scale_linear")
    factor = about.number("rope.scaling.factor") if about.says("rope.scaling.factor") else None
    # A factor without a kind is linear; files from before there were kinds have it elsewhere.
    factor = factor or (about.number("rope.scale_linear") if linear else None)
    long = stored.get("rope_factors_long.weight")
    kind = about.text("rope.scaling.type") or (
        "longrope" if long else "linear" if factor else "none"
    )
    if kind == "none" or (kind == "linear" and factor in (None, 1.0)):
        return None
    original = {}
    if about.says("rope.scaling.original_context_length"):
        count = about.count("rope.scaling.original_context_length")
        original = {"original_max_position_embeddings": count}
    if kind == "linear":
        return {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        named = {"factor": factor or about.number("rope.scaling.factor"), **original}
        for name in ("beta_fast", "beta_slow"):
            if about.says(f"rope.scaling.yarn_{name}"):
                named[name] = about.number(f"rope.scaling.yarn_{name}")
        return {"rope_type": kind, **named}
    if kind == "longrope":
        return {"rope_type": kind, **original, **_longrope(about, stored)}
    raise about.wrong(
        "rope.scaling.type", "one of none, linear, yarn, longrope", "take another file"
    )


def _longrope(about: Metadata, stored: Stored) -> dict[str, Any]:
    factors = {}
    for kind in ("short", "long"):
        tensor = stored.get(f"rope_factors_{kind}.weight")
        if tensor is None:
            raise CheckpointError(
                f"{about.file}: found no tensor 'rope_factors_{kind}.weight', expected one beside "
                f"the scaling longrope; {AGAIN}"
            )
        factors[f"{kind}_factor"] = [_decimal(value) for value in _read(tensor)]
    attention = {}
    if about.says("rope.scaling.attn_factor"):
        attention = {"attention_factor": about.number("rope.scaling.attn_factor")}
    return {**factors, **attention}


def _by_frequency(about: Metadata, factors: NDArray[np.float32]) -> dict[str, Any] | None:
    """Llama 3's numbers if the factors are theirs, else the factors themselves."""
    if (factors == 1).all():
        return None
    largest = _decimal(factors.max())
    expected = _llama3(about.number("rope.freq_base", 10000.0), len(factors), largest)
    if np.allclose(factors, expected, rtol=1e-5):
        return {
            "rope_type": "llama3",
            "factor": largest,
            "low_freq_factor": LOW,
            "high_freq_factor": HIGH,
            "original_max_position_embeddings": ORIGINAL,
        }
    both = [_decimal(value) for value in factors]
    return {
        "rope_type": "longrope",
        "short_factor": both,
        "long_factor": both,
        "attention_factor": 1.0,
        "original_max_position_embeddings": about.count("context_length"),
    }


def _llama3(theta: float, pairs: int, factor: float) -> NDArray[np.float64]:
    """By what each frequency is divided: nothing of the fast ones, the factor of the slow ones."""
    wavelength = 2 * np.pi * theta ** (np.arange(pairs) / pairs)
    share = np.clip((ORIGINAL / wavelength - LOW) / (HIGH - LOW), 0, 1)
    return 1 / ((1 - share) / factor + share)


def _read(tensor: StoredBlocks) -> NDArray[np.float32]:
    """A tensor's factors, one for each pair of a head's numbers."""
    where = f"{tensor.path.name}: tensor {tensor.name!r}"
    if len(tensor.shape) != 1 or tensor.shape[0] > 4096:
        raise CheckpointError(
            f"{where} has the shape {tensor.shape}, expected a factor for each pair of a head's "
            f"numbers; {AGAIN}"
        )
    factors = tensor.tensor(tensor.name).read()
    if not ((factors >= SMALLEST) & (factors <= LARGEST)).all():
        raise CheckpointError(
            f"{where} holds {factors.min():g} to {factors.max():g}, expected factors from "
            f"{SMALLEST:g} to {LARGEST:g}; {AGAIN}"
        )
    return factors


def _decimal(value: Any) -> float:
    """A float32 as it is written in decimals."""
    return float(str(np.float32(value)))
