"""Checkpoints of well-known shapes: for speed and memory, never for quality.

    python -m pocketlm.benchmarks.shapes llama-8b out/ --shards 4

Random weights by default; with ``--sparse`` all of them zero in files with holes, which take no
disk: enough to plan and to measure memory.
"""

from __future__ import annotations

import argparse
import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..export.architectures import find_architecture
from .programs import given_path

ITEM_BYTES = {"F32": 4, "BF16": 2}
END_OF_TEXT = "<|endoftext|>"
TILE = 1 << 22  # random numbers drawn once and repeated: drawing 8 billion takes minutes


def _gpt2(n_embd: int, n_layer: int, n_head: int) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": n_embd,
        "n_layer": n_layer,
        "n_head": n_head,
    }


def _llama(
    hidden: int, intermediate: int, layers: int, heads: int, **others: Any
) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 128256,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        **others,
    }


# Sources: Radford et al. 2019, table 2; Grattafiori et al. 2024 (arXiv 2407.21783), table 3, and
# the model card of Llama 3.2.
SHAPES = {
    "gpt2-124m": _gpt2(768, 12, 12),
    "gpt2-355m": _gpt2(1024, 24, 16),
    "gpt2-774m": _gpt2(1280, 36, 20),
    "gpt2-1.5b": _gpt2(1600, 48, 25),
    "llama-1b": _llama(2048, 8192, 16, 32, tie_word_embeddings=True, head_dim=64),
    "llama-3b": _llama(3072, 8192, 28, 24, tie_word_embeddings=True, head_dim=128),
    "llama-8b": _llama(4096, 14336, 32, 32),
    "llama-70b": _llama(8192, 28672, 80, 64),
    "llama-405b": _llama(16384, 53248, 126, 128),
}


def write_checkpoint(
    folder: Path,
    name: str,
    seed: int = 0,
    *,
    dtype: str = "F32",
    shards: int = 1,
    sparse: bool = False,
) -> Path:
    """Writes a safetensors checkpoint of shape ``name`` with a tokenizer that fits it."""
    config = SHAPES[name]
    folder.mkdir(parents=True, exist_ok=True)
    shapes = find_architecture(config).tensor_shapes(config)
    tile = np.random.default_rng(seed).standard_normal(TILE, np.float32) * np.float32(0.02)
    weight_map: dict[str, str] = {}
    for i, part in enumerate(_parts(shapes, shards)):
        file = (
            "model.safetensors" if shards == 1 else f"model-{i + 1:05}-of-{shards:05}.safetensors"
        )
        _write_file(folder / file, part, dtype, None if sparse else tile)
        weight_map |= dict.fromkeys(part, file)
    if shards > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    end_of_text = {name: config["vocab_size"] - 1 for name in ("bos_token_id", "eos_token_id")}
    stored = {"F32": "float32", "BF16": "bfloat16"}[dtype]
    (folder / "config.json").write_text(json.dumps(config | end_of_text | {"torch_dtype": stored}))
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer(config["vocab_size"])))
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    loader = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(loader | special))
    return folder


def _parts(shapes: dict[str, tuple[int, ...]], shards: int) -> Iterator[dict[str, Any]]:
    """The tensors in ``shards`` runs of about the same size."""
    total = sum(math.prod(shape) for shape in shapes.values())
    part: dict[str, tuple[int, ...]] = {}
    written, done = 0, 0
    for tensor, shape in shapes.items():
        part[tensor] = shape
        written += math.prod(shape)
        if written * shards >= total * (done + 1):
            yield part
            part, done = {}, done + 1
    if part:
        yield part


def _write_file(path: Path, shapes: dict[str, Any], dtype: str, tile: Any) -> None:
    header, end = {}, 0
    for tensor, shape in shapes.items():
        size = ITEM_BYTES[dtype] * math.prod(shape)
        header[tensor] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    encoded = json.dumps(header).encode()
    with open(path, "wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        if tile is None:
            stream.truncate(8 + len(encoded) + end)
            return
        for tensor, shape in shapes.items():
            # Not one like another: a tracer would make one weight of equal ones.
            values = np.roll(tile, zlib.crc32(tensor.encode()) % TILE)
            # Norm weights around one, the rest small: activations keep a sane size.
            if len(shape) == 1 and tensor.endswith("weight"):
                values = values + 1
            if dtype == "BF16":  # the upper half of a float32
                values = (values.view(np.uint32) >> 16).astype(np.uint16)
            for start in range(0, math.prod(shape), TILE):
                stream.write(values[: min(TILE, math.prod(shape) - start)].data)


def _tokenizer(vocab_size: int) -> dict[str, object]:
    """A byte-level tokenizer of ``vocab_size`` entries; text becomes its bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = {byte: chr(byte) for byte in printable}
    alphabet |= {
        byte: chr(256 + i) for i, byte in enumerate(b for b in range(256) if b not in alphabet)
    }
    vocab = {alphabet[byte]: byte for byte in range(256)}
    vocab |= {f"<unused{i}>": i for i in range(256, vocab_size - 1)}
    vocab[END_OF_TEXT] = vocab_size - 1
    step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": step,
        "post_processor": None,
        "decoder": step,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    }


def main() -> None:
    """Writes one checkpoint."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=given_path)
    parser.add_argument("--dtype", choices=ITEM_BYTES, default="BF16")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--sparse", action="store_true", help="zeros that take no disk")
    options = parser.parse_args()
    write_checkpoint(
        options.folder,
        options.shape,
        dtype=options.dtype,
        shards=options.shards,
        sparse=options.sparse,
    )


if __name__ == "__main__":
    main()
