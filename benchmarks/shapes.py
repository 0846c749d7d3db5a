"""Checkpoints of well-known shapes with random weights: for speed and memory, never for quality."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from ..export.architectures.gpt2 import Config, expected_shapes

SHAPES = {
    "gpt2-124m": Config(),
    "gpt2-355m": Config(n_embd=1024, n_layer=24, n_head=16),
    "gpt2-774m": Config(n_embd=1280, n_layer=36, n_head=20),
    "gpt2-1558m": Config(n_embd=1600, n_layer=48, n_head=25),
}


def write_checkpoint(folder: Path, name: str, seed: int = 0) -> Path:
    """Writes a float32 safetensors checkpoint of shape ``name`` with a tokenizer that fits it."""
    config = SHAPES[name]
    folder.mkdir(parents=True, exist_ok=True)
    shapes = expected_shapes(config)
    header, end = {}, 0
    for tensor, shape in shapes.items():
        size = 4 * math.prod(shape)
        header[tensor] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    encoded = json.dumps(header).encode()
    generator = np.random.default_rng(seed)
    with open(folder / "model.safetensors", "wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor, shape in shapes.items():
            # Norm weights around one, the rest small: activations keep a sane size.
            values = generator.standard_normal(shape, np.float32) * np.float32(0.02)
            if "ln_" in tensor and tensor.endswith("weight"):
                values += 1
            stream.write(values.data)
    names = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
    fields = {field: getattr(config, field) for field in names}
    end_of_text = {"bos_token_id": config.vocab_size - 1, "eos_token_id": config.vocab_size - 1}
    content = {"model_type": "gpt2", **fields, **end_of_text}
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer(config.vocab_size)))
    return folder


def _tokenizer(vocab_size: int) -> dict[str, object]:
    """A byte-level tokenizer of ``vocab_size`` entries; text becomes its bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = {byte: chr(byte) for byte in printable}
    alphabet |= {
        byte: chr(256 + i) for i, byte in enumerate(b for b in range(256) if b not in alphabet)
    }
    vocab = {alphabet[byte]: byte for byte in range(256)}
    vocab |= {f"<unused{i}>": i for i in range(256, vocab_size)}
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
