"""A head that is stored although config.json ties it to the embedding: which of the two counts.

An equal copy says nothing new. One that differs, as is left by merging a LoRA with a trained head,
is the head, as in transformers 5 (4 discards it).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from .checkpoint import READABLE_DTYPES, Checkpoint, CheckpointTensor
from .decoder import Architecture

ROWS = 1024  # compared at a time


def with_stored_head(
    architecture: Architecture[Any], checkpoint: Checkpoint
) -> tuple[Checkpoint, tuple[str, ...]]:
    """``checkpoint``, its config untied if its head differs, and a line that says so."""
    found = {architecture.bare(name): tensor for name, tensor in checkpoint.tensors.items()}
    head, table = found.get("lm_head.weight"), found.get(f"{architecture.table}.weight")
    if head is None or table is None:
        return checkpoint, ()
    if not architecture.is_tied(checkpoint.config) or _are_equal(head, table):
        return checkpoint, ()
    return replace(checkpoint, config=architecture.untied(checkpoint.config)), (
        f"{head.file}: tensor {head.name!r} differs from the embedding that config.json ties it to "
        "(tie_word_embeddings): it is used, as by transformers 5",
    )


def _are_equal(one: CheckpointTensor, other: CheckpointTensor) -> bool:
    if one.shape != other.shape or not {one.dtype, other.dtype} <= READABLE_DTYPES.keys():
        return False  # refused when the graph asks for it
    return all(
        np.array_equal(one.stored(start, stop), other.stored(start, stop))
        for start in range(0, one.shape[0], ROWS)
        for stop in [min(start + ROWS, one.shape[0])]
    )
