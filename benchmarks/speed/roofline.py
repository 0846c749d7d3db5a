"""Bytes that one decoded token reads from memory: the weights once, and the keys and values.

Of a table from which a token takes one row (token and position embeddings, the angles of rotary
positions) one row is read, unless the same bytes are also a matrix, as those of a tied head are.
"""

from __future__ import annotations

from ...export.folder import ModelFolder
from ...export.graph import Blob, Weight
from ...export.writing import open_decoder
from ...runtime.kv import FP32, INT8

# Inputs of which a node reads one row per token: operator -> their numbers.
ROW_INPUTS = {
    "Gather": {0},
    "GatherBlockQuantized": {0, 2, 3},  # data, scales, zero points
    "GroupQueryAttention": {7, 8},  # cosines and sines
    "RotaryEmbedding": {2, 3},
}


def weight_bytes_per_token(folder: ModelFolder) -> int:
    """Bytes of weights that a step of one token reads, by the folder's graph."""
    read: dict[Blob, int] = {}
    for value in open_decoder(folder).model.graph.initializers.values():
        weight = value.const_value
        if isinstance(weight, Weight):
            rows = all(use.idx in ROW_INPUTS.get(use.node.op_type, ()) for use in value.uses())
            size = weight.nbytes // weight.shape.numpy()[0] if rows else weight.nbytes
            read[weight.blob] = max(size, read.get(weight.blob, 0))
    return sum(read.values())


def kv_bytes_per_token(folder: ModelFolder, depth: int, generation: int, kv: str = FP32) -> float:
    """Bytes of keys and values that a token reads on average over ``generation`` after ``depth``.

    The i-th of them, from 1, attends to depth + i tokens.
    """
    shape = folder.shape
    row = shape.kv_numbers_per_token if kv == INT8 else shape.kv_bytes_per_token
    return row * (depth + (generation + 1) / 2)
