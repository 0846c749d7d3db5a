"""A Llama checkpoint with its weights rotated: the same function, off the grid they were stored in.

    python -m pocketlm.benchmarks.rotated CHECKPOINT OUT

A model that comes from a 4-bit file lies on that file's grid, which the same format of another
runtime finds again. Rotated it lies on none, so that all are compared fairly, and any runtime can
read it: norms are folded into what reads them, embedding and head are no longer one matrix.

    embedding E      E·R                 what writes to the stream (o, down)     Rᵀ·W
    what reads a norm with gain g (q, k, v, gate, up, head)                      W·diag(g)·R
    values and o of a head                                                       Qᵀ·W and W·Q

R (D, D) is a random orthogonal matrix, Q (E, E) one for each key/value head; nothing is done at
run time. Sources: QuaRot, arXiv 2404.00456, section 4; the product's own is in ``quantize``.
Letters: D width, E head size, H heads.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..export.checkpoint import open_checkpoint
from ..export.errors import CheckpointError, RequestError
from ..export.publishing import folder_beside
from .programs import errors_in_a_line, given_path
from .real_weights import write_checkpoint

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

EMBEDDING, HEAD, LAST_NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
# What reads the stream behind each norm of a layer.
READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
WRITERS = ("self_attn.o_proj", "mlp.down_proj")


def orthogonal(size: int, seed: int) -> Doubles:
    """A random orthogonal (size, size)."""
    matrix, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))
    return np.asarray(matrix)


def rotated(weights: Mapping[str, Floats], config: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    """The weights of a Llama, by their Hugging Face names, in rotated form; with a head of its own.

    Raises CheckpointError for one with biases or norms that are not Llama's.
    """
    stream = orthogonal(config["hidden_size"], seed)
    head = weights.get(HEAD, weights[EMBEDDING])
    found: dict[str, Any] = {
        EMBEDDING: weights[EMBEDDING] @ stream,
        HEAD: (head * weights[LAST_NORM]) @ stream,
        LAST_NORM: np.ones_like(weights[LAST_NORM]),
    }
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        for norm, readers in READERS.items():
            gain = weights[f"{layer}{norm}.weight"]
            found[f"{layer}{norm}.weight"] = np.ones_like(gain)
            for name in readers:
                weight = weights[f"{layer}{name}.weight"]
                found[f"{layer}{name}.weight"] = (weight * gain) @ stream
        for name in WRITERS:
            found[f"{layer}{name}.weight"] = stream.T @ weights[f"{layer}{name}.weight"]
        _rotate_values(found, layer, config, seed + 1 + i)
    if unknown := sorted(weights.keys() - found.keys()):
        raise CheckpointError(
            f"found the tensor {unknown[0]}, expected those of a Llama without biases; this cannot "
            "be rotated here"
        )
    return {name: values.astype(np.float32) for name, values in found.items()}


def _rotate_values(found: dict[str, Any], layer: str, config: dict[str, Any], seed: int) -> None:
    """Every key/value head's values, and the columns of o of the heads that read them."""
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    values, out = f"{layer}self_attn.v_proj.weight", f"{layer}self_attn.o_proj.weight"
    size = found[values].shape[0] // kv_heads
    for head in range(kv_heads):
        turn = orthogonal(size, seed * kv_heads + head)
        rows = slice(head * size, (head + 1) * size)
        found[values][rows] = turn.T @ found[values][rows]
        for reader in range(head * heads // kv_heads, (head + 1) * heads // kv_heads):
            columns = slice(reader * size, (reader + 1) * size)
            found[out][:, columns] = found[out][:, columns] @ turn


def write_rotated(checkpoint: Path, out: Path, seed: int = 0) -> None:
    """Fills the folder ``out``: weights in float32, the other files as they are."""
    source = open_checkpoint(checkpoint)
    if (kind := source.config.get("model_type")) != "llama":
        raise CheckpointError(
            f"{checkpoint}: found model_type {kind!r}, expected 'llama'; give another checkpoint"
        )
    weights = {name: tensor.read() for name, tensor in source.tensors.items()}
    config = source.config | {"tie_word_embeddings": False, "torch_dtype": "float32"}
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    write_checkpoint(out, rotated(weights, config, seed), config, {})
    for file in checkpoint.iterdir():
        if not file.name.endswith(".safetensors") and not (out / file.name).exists():
            if file.is_file() and not file.name.endswith(".index.json"):
                shutil.copyfile(file, out / file.name)


def main() -> None:
    """Writes one checkpoint."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=given_path, help="a folder of safetensors")
    parser.add_argument("out", type=given_path, help="a new folder")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with errors_in_a_line("rotated"):
        if given.out.exists():
            raise RequestError(f"{given.out}: found something, expected nothing; name a new folder")
        with folder_beside(given.out) as partial:
            write_rotated(given.checkpoint, partial, given.seed)
            partial.rename(given.out)


if __name__ == "__main__":
    main()
