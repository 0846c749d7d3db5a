"""Writes tiny seeded checkpoints as the files a user would have; used by tests of every folder.

The writers share no code with the readers under test: the byte layouts are spelled out again here.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from pocketlm.export.checkpoint import Checkpoint
from pocketlm.export.regular_file import RegularFile

Array = NDArray[Any]
NUMPY_DTYPES: dict[str, Any] = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F64": np.float64,
}
LLMC_DTYPES = {3: "F32", 5: "BF16"}


def gpt2_config(**overrides: Any) -> dict[str, Any]:
    """Returns the config.json of a tiny GPT-2, some fields replaced by ``overrides``."""
    vocab_size = overrides.get("vocab_size", 97)
    n_positions = overrides.get("n_positions", 64)
    config: dict[str, Any] = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": vocab_size,
        "n_positions": n_positions,
        "n_ctx": n_positions,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "bos_token_id": vocab_size - 1,
        "eos_token_id": vocab_size - 1,
        "tie_word_embeddings": True,
    }
    return config | overrides


def gpt2_tensors(
    config: Mapping[str, Any], seed: int = 0, prefix: str = "transformer."
) -> dict[str, NDArray[np.float32]]:
    """Returns random weights under Hugging Face's names; Conv1D matrices are (in, out)."""
    random = np.random.default_rng(seed)
    D = config["n_embd"]
    F = config.get("n_inner") or 4 * D
    tensors: dict[str, NDArray[np.float32]] = {}

    def add(name: str, *shape: int, scale: float, center: float = 0.0) -> None:
        values = center + scale * random.standard_normal(shape)
        tensors[name] = values.astype(np.float32)

    def layer_norm(name: str) -> None:
        add(f"{name}.weight", D, scale=0.1, center=1.0)
        add(f"{name}.bias", D, scale=0.05)

    def linear(name: str, inputs: int, outputs: int) -> None:
        add(f"{name}.weight", inputs, outputs, scale=0.08)
        add(f"{name}.bias", outputs, scale=0.05)

    add(f"{prefix}wte.weight", config["vocab_size"], D, scale=0.08)
    add(f"{prefix}wpe.weight", config["n_positions"], D, scale=0.08)
    for i in range(config["n_layer"]):
        layer_norm(f"{prefix}h.{i}.ln_1")
        linear(f"{prefix}h.{i}.attn.c_attn", D, 3 * D)
        linear(f"{prefix}h.{i}.attn.c_proj", D, D)
        layer_norm(f"{prefix}h.{i}.ln_2")
        linear(f"{prefix}h.{i}.mlp.c_fc", D, F)
        linear(f"{prefix}h.{i}.mlp.c_proj", F, D)
    layer_norm(f"{prefix}ln_f")
    if not config.get("tie_word_embeddings", True):
        add("lm_head.weight", config["vocab_size"], D, scale=0.08)
    return tensors


def safetensors_bytes(tensors: Mapping[str, Array], dtype: str = "F32") -> bytes:
    """Returns a safetensors file; floats become ``dtype``, bool and uint8 arrays stay."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts: list[bytes] = []
    offset = 0
    for name, values in tensors.items():
        stored = {np.dtype(np.bool_): "BOOL", np.dtype(np.uint8): "U8"}.get(values.dtype, dtype)
        if stored in NUMPY_DTYPES:
            values = values.astype(NUMPY_DTYPES[stored])
        data = values.tobytes()
        header[name] = {
            "dtype": stored,
            "shape": list(values.shape),
            "data_offsets": [offset, offset + len(data)],
        }
        parts.append(data)
        offset += len(data)
    return raw_safetensors(header, b"".join(parts))


def raw_safetensors(header: Mapping[str, Any] | str | bytes, data: bytes = b"") -> bytes:
    """Returns a file with exactly this header, right or wrong, padded with spaces to 8 bytes."""
    if isinstance(header, Mapping):
        header = json.dumps(header, separators=(",", ":"))
    if isinstance(header, str):
        header = header.encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + data


def write_safetensors(
    folder: Path, tensors: Mapping[str, Array], dtype: str = "F32", shards: int = 1
) -> list[Path]:
    """Writes model.safetensors, or ``shards`` files and their index; returns the weight files."""
    folder.mkdir(parents=True, exist_ok=True)
    if shards == 1:
        path = folder / "model.safetensors"
        path.write_bytes(safetensors_bytes(tensors, dtype))
        return [path]
    names = list(tensors)
    weight_map: dict[str, str] = {}
    paths = []
    for shard in range(shards):
        path = folder / f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = names[len(names) * shard // shards : len(names) * (shard + 1) // shards]
        path.write_bytes(safetensors_bytes({name: tensors[name] for name in part}, dtype))
        weight_map |= dict.fromkeys(part, path.name)
        paths.append(path)
    total = sum(values.size * np.dtype(NUMPY_DTYPES[dtype]).itemsize for values in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return paths


def llmc_header(
    config: Mapping[str, Any], version: int = 3, padded_vocab_size: int | None = None
) -> bytes:
    """Returns the 1024 bytes of an llm.c checkpoint's header."""
    V = config["vocab_size"]
    words = [
        20240326,
        version,
        config["n_positions"],
        V,
        config["n_layer"],
        config["n_head"],
        config["n_embd"],
        -(-V // 128) * 128 if padded_vocab_size is None else padded_vocab_size,
    ]
    return struct.pack("<256i", *words, *[0] * (256 - len(words)))


LLMC_LAYER_TENSORS = (
    "ln_1.weight",
    "ln_1.bias",
    "attn.c_attn.weight",
    "attn.c_attn.bias",
    "attn.c_proj.weight",
    "attn.c_proj.bias",
    "ln_2.weight",
    "ln_2.bias",
    "mlp.c_fc.weight",
    "mlp.c_fc.bias",
    "mlp.c_proj.weight",
    "mlp.c_proj.bias",
)


def llmc_arrays(
    config: Mapping[str, Any],
    tensors: Mapping[str, Array],
    padded_vocab_size: int | None = None,
) -> list[Array]:
    """Returns llm.c's 16 arrays in file order; matrices are turned to (out, in)."""
    V = config["vocab_size"]
    padded = -(-V // 128) * 128 if padded_vocab_size is None else padded_vocab_size
    wte = tensors["transformer.wte.weight"]
    layers = range(config["n_layer"])
    arrays = [np.pad(wte, ((0, padded - V), (0, 0))), tensors["transformer.wpe.weight"]]
    for name in LLMC_LAYER_TENSORS:
        arrays.append(np.stack([tensors[f"transformer.h.{i}.{name}"].T for i in layers]))
    return [*arrays, tensors["transformer.ln_f.weight"], tensors["transformer.ln_f.bias"]]


def write_llmc(
    path: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Array],
    version: int = 3,
    padded_vocab_size: int | None = None,
) -> Path:
    """Writes llm.c's ``.bin``, float32 (3) or bfloat16 (5); pads V to a multiple of 128."""
    dtype = NUMPY_DTYPES[LLMC_DTYPES[version]]
    arrays = llmc_arrays(config, tensors, padded_vocab_size)
    payload = b"".join(array.astype(dtype).tobytes() for array in arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(llmc_header(config, version, padded_vocab_size) + payload)
    return path


def _byte_alphabet() -> list[str]:
    """Returns the 256 characters that stand for bytes in a byte-level BPE, in GPT-2's id order.

    Bytes that print stand for themselves; the other 68 take the characters from U+0100 on
    (``bytes_to_unicode`` in openai/gpt-2, encoder.py).
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def write_tokenizer(folder: Path, vocab_size: int) -> Path:
    """Writes a byte-level BPE tokenizer.json with ``vocab_size`` entries; returns its path.

    Ids run through single bytes, then merges; ``<|endoftext|>`` is special and last. Below 257
    entries only the first ``vocab_size`` - 1 bytes (mostly printable ASCII) have an id.
    """
    end_of_text = "<|endoftext|>"
    tokens = _byte_alphabet()[: vocab_size - 1]
    merges = []
    # Frequent pairs first, then pairs of whatever is there, until the vocabulary is full.
    ground = ["Ġ", *"etaoinshrdlucmfwypvbgkqjxz"]
    known = set(tokens)
    level = [token for token in ground if token in known]
    while len(tokens) < vocab_size - 1:
        made = []
        for left in level:
            for right in ground[1:]:
                if len(tokens) < vocab_size - 1 and left + right not in known:
                    known.add(left + right)
                    tokens.append(left + right)
                    made.append(left + right)
                    merges.append([left, right])
        level = made
    vocab = {token: i for i, token in enumerate([*tokens, end_of_text])}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": vocab_size - 1,
                "content": end_of_text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": True,
        },
        "post_processor": None,
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocab,
            "merges": merges,
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    return path


def write_checkpoint(
    folder: Path,
    config: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Array] | None = None,
    *,
    dtype: str = "F32",
    shards: int = 1,
    seed: int = 0,
    prefix: str = "transformer.",
    tokenizer: bool = True,
) -> Path:
    """Writes a whole GPT-2 checkpoint into ``folder`` and returns it; by default the tiny one."""
    config = gpt2_config() if config is None else config
    tensors = gpt2_tensors(config, seed, prefix) if tensors is None else tensors
    write_safetensors(folder, tensors, dtype, shards)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    if tokenizer:
        write_tokenizer(folder, config["vocab_size"])
    return folder


def count_bytes_read(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Watches the reading of checkpoints; the returned function tells how many bytes it was."""
    counts: list[int] = []
    original = RegularFile.read_into

    def counted(file: RegularFile, offset: int, buffer: memoryview) -> int:
        counts.append(original(file, offset, buffer))
        return counts[-1]

    monkeypatch.setattr(RegularFile, "read_into", counted)
    return lambda: sum(counts)


def tokenizer_file(checkpoint: Checkpoint) -> Path:
    """The file that the checkpoint's tokenizer is read from."""
    assert checkpoint.tokenizer is not None
    return checkpoint.tokenizer.files[0]
