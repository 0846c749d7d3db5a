"""What llama.cpp stores in another way than Hugging Face, undone while it is read.

    llama    a head's rows of queries and keys in pairs, as its kernel rotates them; Hugging Face
             rotates rows i and i + E/2 of a head
    gemma    a norm's weight with 1 added, which the graph does
    gpt2     a linear weight as (out, in), which the graph takes as (in, out)
    gptneox  rows of all queries, then all keys, then all values; Hugging Face has the three of a
             head together

Each takes a tensor's name in the file and the config.json, and gives a ``Change`` or None. Source:
llama.cpp ``convert_hf_to_gguf.py``. Letters: H heads, E head size, D width, R rows, C columns.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import CheckpointTensor

Config = dict[str, Any]
Change = Callable[[CheckpointTensor], CheckpointTensor]
Floats = NDArray[np.float32]


def nothing(name: str, config: Config) -> Change | None:
    """Everything is stored as Hugging Face has it."""
    return None


def in_halves(name: str, config: Config) -> Change | None:
    """Undoes the pairs of Llama's queries and keys."""
    match = re.fullmatch(r"blk\.\d+\.attn_([qk])\.(weight|bias)", name)
    if match is None:
        return None
    heads = config["num_attention_heads" if match[1] == "q" else "num_key_value_heads"]
    return lambda tensor: _halves(tensor, heads)


def _halves(tensor: CheckpointTensor, heads: int) -> CheckpointTensor:
    """(H·E, …) with a head's rows in pairs -> one half after the other."""
    size = tensor.shape[0] // heads if tensor.shape else 0
    if not size or tensor.shape[0] % heads or size % 2:
        return tensor  # of another shape than the config says, which is refused by name

    def rows(start: int, stop: int) -> Floats:
        first = start // size * size  # whole heads
        pairs = tensor.rows(first, -(-stop // size) * size)
        by_pair = pairs.reshape(-1, size // 2, 2, *tensor.shape[1:])  # (heads, E/2, 2, …)
        whole = by_pair.swapaxes(1, 2).reshape(pairs.shape)
        return np.ascontiguousarray(whole[start - first : stop - first])

    return replace(tensor, rows=rows)


def less_one(name: str, config: Config) -> Change | None:
    """Takes from Gemma's norms what their graph adds."""
    if not name.endswith("norm.weight"):
        return None
    return lambda tensor: replace(
        tensor, rows=lambda start, stop: tensor.rows(start, stop) - np.float32(1)
    )


def turned(name: str, config: Config) -> Change | None:
    """Turns GPT-2's linear weights to (in, out)."""
    linear = re.fullmatch(r"blk\.\d+\.(attn_qkv|attn_output|ffn_up|ffn_down)\.weight", name)
    return _turned if linear else None


def _turned(tensor: CheckpointTensor) -> CheckpointTensor:
    """(R, C) -> (C, R); some of its rows cost as much as all."""

    def rows(start: int, stop: int) -> Floats:
        return np.ascontiguousarray(tensor.read().T[start:stop])

    return replace(tensor, shape=tensor.shape[::-1], rows=rows, whole=True)


def by_head(name: str, config: Config) -> Change | None:
    """Puts GPT-NeoX's queries, keys and values of a head together again."""
    if not re.fullmatch(r"blk\.\d+\.attn_qkv\.(weight|bias)", name):
        return None
    return lambda tensor: _by_head(tensor, config["num_attention_heads"])


def _by_head(tensor: CheckpointTensor, heads: int) -> CheckpointTensor:
    """(3·H·E, …), all queries first -> (H·3·E, …)."""
    size = tensor.shape[0] // (3 * heads) if tensor.shape else 0
    if not size or tensor.shape[0] % (3 * heads):
        return tensor  # refused by name

    def rows(start: int, stop: int) -> Floats:
        parts = []
        while start < stop:
            head, within = divmod(start, 3 * size)
            kind, row = divmod(within, size)
            end = min(stop, start + size - row)
            place = (kind * heads + head) * size + row
            parts.append(tensor.rows(place, place + end - start))
            start = end
        return np.concatenate(parts)

    return replace(tensor, rows=rows)
