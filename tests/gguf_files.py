"""Writes tiny GGUF files as llama.cpp's converter does; shares no code with the reader under test.

Names come from the package ``gguf``, whose converter they are; the layout is spelled out again.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

gguf: Any = pytest.importorskip("gguf")  # the extra of the same name
Tensors = Mapping[str, NDArray[np.float32]]
F32, F16, BF16 = 0, 1, 30
ALIGNMENT = 32
# Ours -> llama.cpp's.
ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "phi3": "phi3",
    "olmo2": "olmo2",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "smollm3": "smollm3",
    "granite": "granite",
    "starcoder2": "starcoder2",
    "stablelm": "stablelm",
    "phi": "phi2",
    "gpt_neox": "gptneox",
    "gpt2": "gpt2",
}
IN_PAIRS = ("llama", "smollm3", "granite")
OTHERS = {
    "gemma2": {
        "attn_logit_softcapping": "attn_logit_softcapping",
        "final_logit_softcapping": "final_logit_softcapping",
    },
    "granite": {
        "attention.scale": "attention_multiplier",
        "embedding_scale": "embedding_multiplier",
        "residual_scale": "residual_multiplier",
        "logit_scale": "logits_scaling",
    },
    "stablelm": {"use_parallel_residual": "use_parallel_residual"},
    "gpt_neox": {"use_parallel_residual": "use_parallel_residual"},
}
EPSILONS = {"rms_norm_eps": "rms_", "layer_norm_eps": "", "norm_epsilon": ""}


class Raw(bytes):
    """A value with its type, spelled out."""


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def value(given: Any) -> bytes:
    """A value with its type: whole numbers are u32, others f32, text, and lists of these."""
    if isinstance(given, Raw):
        return bytes(given)
    kinds: dict[type, tuple[int, str]] = {bool: (7, "?"), int: (4, "I"), float: (6, "f")}
    several = given if isinstance(given, list) else [given]
    kind, layout = (8, "") if isinstance(several[0], str) else kinds[type(several[0])]
    packed = b"".join(
        text(one) if isinstance(one, str) else struct.pack(f"<{layout}", one) for one in several
    )
    array = struct.pack("<IIQ", 9, kind, len(several)) if isinstance(given, list) else b""
    return (array or struct.pack("<I", kind)) + packed


def info(name: str | bytes, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    """A tensor as the header lists it."""
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
    return text(name) + dimensions + struct.pack("<IQ", kind, offset)


def header(
    entries: Mapping[str, Any] | bytes,
    infos: bytes = b"",
    *,
    num_tensors: int = 0,
    num_entries: int | None = None,
    magic: bytes = b"GGUF",
    version: int = 3,
) -> bytes:
    """A header, right or wrong, padded to the alignment."""
    if isinstance(entries, bytes):
        packed, count = entries, 1
    else:
        packed = b"".join(text(key) + value(given) for key, given in entries.items())
        count = len(entries)
    counts = struct.pack("<QQ", num_tensors, count if num_entries is None else num_entries)
    data = magic + struct.pack("<I", version) + counts + packed + infos
    return data + bytes(-len(data) % ALIGNMENT)


def gguf_bytes(
    entries: Mapping[str, Any], tensors: Mapping[str, tuple[tuple[int, ...], int, bytes]]
) -> bytes:
    """A file; tensors are (shape, type, bytes)."""
    infos, data = b"", b""
    for name, (shape, kind, stored) in tensors.items():
        infos += info(name, shape, kind, len(data))
        data += stored + bytes(-len(stored) % ALIGNMENT)
    return header(entries, infos, num_tensors=len(tensors)) + data


def stored(values: NDArray[np.float32], kind: int = F32) -> tuple[tuple[int, ...], int, bytes]:
    """A tensor as a file has it; vectors stay in float32, as llama.cpp has them."""
    kind = kind if values.ndim > 1 else F32
    packed = gguf.quants.quantize(np.ascontiguousarray(values), gguf.GGMLQuantizationType(kind))
    return values.shape, kind, packed.tobytes()


def arranged(config: Mapping[str, Any], tensors: Tensors) -> dict[str, NDArray[np.float32]]:
    """Weights under llama.cpp's names, in its order."""
    architecture = ARCHITECTURES[config["model_type"]]
    layers = config.get("num_hidden_layers") or config["n_layer"]
    kind = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, layers)
    result = {}
    for name, values in tensors.items():
        if name.endswith((".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq")):
            continue
        whole = ("model.", "lm_head", "transformer.", "gpt_neox.", "embed_out")
        prefix = "" if name.startswith(whole) else "model."
        known = names.get_name(prefix + name, try_suffixes=(".weight", ".bias"))
        assert known is not None, name
        result[known] = _as_llama_cpp(architecture, name, values, config)
    return result


def _as_llama_cpp(
    architecture: str, name: str, values: NDArray[np.float32], config: Mapping[str, Any]
) -> NDArray[np.float32]:
    if architecture in IN_PAIRS and name.rpartition(".")[0].endswith(("q_proj", "k_proj")):
        heads = config["num_attention_heads"]
        if "k_proj" in name:
            heads = config["num_key_value_heads"] or heads
        halves = values.reshape(heads, 2, -1, *values.shape[1:])
        return halves.swapaxes(1, 2).reshape(values.shape)
    if architecture == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        return values.T
    if architecture in ("gemma2", "gemma3") and name.endswith("norm.weight"):
        return values + np.float32(1)
    if architecture == "gptneox" and ".query_key_value." in name:
        by_head = values.reshape(config["num_attention_heads"], 3, -1, *values.shape[1:])
        return by_head.swapaxes(0, 1).reshape(values.shape)
    return values


def described(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a network, as the converter writes them."""
    architecture = ARCHITECTURES[config["model_type"]]
    if architecture == "gpt2":
        about: dict[str, Any] = {
            "context_length": config["n_positions"],
            "embedding_length": config["n_embd"],
            "feed_forward_length": config["n_inner"] or 4 * config["n_embd"],
            "block_count": config["n_layer"],
            "attention.head_count": config["n_head"],
            "attention.layer_norm_epsilon": config["layer_norm_epsilon"],
        }
    else:
        about = _described_llama(config)
    return {"general.architecture": architecture, "general.type": "model"} | {
        f"{architecture}.{key}": given for key, given in about.items()
    }


def _described_llama(config: Mapping[str, Any]) -> dict[str, Any]:
    heads, kind = config["num_attention_heads"], config["model_type"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    share = config.get("partial_rotary_factor", config.get("rotary_pct", 1.0))
    theta = config.get("rope_theta") or config.get("rotary_emb_base")
    epsilon = next(
        name
        for name in EPSILONS
        if name in config
        and (name[:3] != "rms" or kind not in ("starcoder2", "stablelm", "phi", "gpt_neox"))
    )
    about: dict[str, Any] = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "block_count": config["num_hidden_layers"],
        "attention.head_count": heads,
        "attention.head_count_kv": config["num_key_value_heads"] or heads,
        "attention.key_length": size,
        "attention.value_length": size,
        f"attention.layer_norm_{EPSILONS[epsilon]}epsilon": config[epsilon],
        "rope.dimension_count": int(size * share),
        "rope.freq_base": float(theta or 0),
        "vocab_size": config["vocab_size"],
    }
    if kind in ("mistral", "phi3", "gemma2", "gemma3_text") and config["sliding_window"]:
        about["attention.sliding_window"] = config["sliding_window"]
    if kind == "gemma3_text":
        about["attention.sliding_window_pattern"] = config["sliding_window_pattern"]
        about["rope.freq_base_swa"] = config["rope_local_base_freq"]
    for theirs, ours in OTHERS.get(kind, {}).items():
        about[theirs] = config.get(ours, True)
    if scaling := config.get("rope_scaling"):
        about["rope.scaling.type"] = scaling.get("rope_type", scaling.get("type"))
        about["rope.scaling.factor"] = scaling["factor"]
    return about


def tokenizer_entries(content: Mapping[str, Any], pre: str) -> dict[str, Any]:
    """The entries of a byte-level tokenizer.json, as the converter writes them."""
    vocab = dict(content["model"]["vocab"])
    special = {token["content"]: token["special"] for token in content["added_tokens"]}
    vocab |= {token["content"]: token["id"] for token in content["added_tokens"]}
    tokens = sorted(vocab, key=vocab.__getitem__)
    ggml = {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_type": [{True: 3, False: 4, None: 1}[special.get(token)] for token in tokens],
        "merges": [
            merge if isinstance(merge, str) else " ".join(merge)
            for merge in content["model"]["merges"]
        ],
    }
    return {f"tokenizer.ggml.{name}": given for name, given in ggml.items()}


def write_gguf(
    file: Path,
    config: Mapping[str, Any],
    tensors: Tensors,
    tokenizer: Path | None = None,
    kind: int = F32,
    entries: Mapping[str, Any] | None = None,
) -> Path:
    """A whole model; ``tokenizer`` is a byte-level tokenizer.json cut into GPT-2's words."""
    named = described(config)
    if tokenizer is not None:
        content = json.loads(tokenizer.read_text(encoding="utf-8"))
        named |= tokenizer_entries(content, "gpt-2")
        for name in ("bos", "eos"):
            named[f"tokenizer.ggml.{name}_token_id"] = config[f"{name}_token_id"]
    weights = {name: stored(values, kind) for name, values in arranged(config, tensors).items()}
    file.write_bytes(gguf_bytes(named | dict(entries or {}), weights))
    return file
