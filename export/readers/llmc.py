"""Reads a GPT-2 checkpoint of llm.c: one ``.bin`` file, version 3 (float32) or 5 (bfloat16).

Layout, little-endian: 256 int32 words of header, then 16 arrays without padding between them, each
complete for all layers before the next begins. Words: 0 magic 20240326, 1 version, 2 context
length, 3 vocabulary V, 4 layers L, 5 heads, 6 width D, 7 vocabulary padded to at least V rows.
There is no checksum, so the exact file size is the only proof that a file is whole.

The tensors come out as the Hugging Face checkpoint has them: one per layer, matrices turned to
Conv1D's (in, out), the token embedding cut to V rows. Format: karpathy/llm.c, ``write_model`` in
train_gpt2.py and ``gpt2_build_from_checkpoint`` in train_gpt2.c.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint, CheckpointTensor, StoredTensor, lazy_tensor
from ..errors import CheckpointError
from ..regular_file import RegularFile
from ..tokenizers import TokenizerSource, find_tokenizer
from ..tokenizers.added_tokens import named_token
from ..tokenizers.opening import open_source

HEADER_BYTES = 1024
END_OF_TEXT = "<|endoftext|>"  # begins and ends every text of GPT-2
MODEL_MAGIC = 20240326
VERSIONS = {3: "float32", 5: "bfloat16"}
ITEM_BYTES = {"float32": 4, "bfloat16": 2}

# What else llm.c writes, by its first word.
OTHER_MAGICS = {
    20240327: "a debug state (inputs, logits, loss and gradients)",
    20240328: "a tokenizer that can only decode",
    20240520: "token data with GPT-2 ids",
    20240522: "multiple-choice evaluation data",
    20240527: "the optimizer state of a training run",
    20240801: "token data with Llama 3 ids",
    20240803: "a Llama 3 checkpoint or debug state",
}

# Far above any GPT-2, far below what would exhaust memory before the first tensor is read.
LIMITS = {
    "context length": 1 << 20,
    "vocabulary": 1 << 20,
    "layers": 1024,
    "heads": 1024,
    "width": 1 << 16,
    "padded vocabulary": 1 << 20,
}


def matches(path: Path) -> bool:
    """Tells whether ``path`` is a file that begins with one of llm.c's magic numbers."""
    if not path.is_file():
        return False
    with RegularFile(path, CheckpointError) as file:
        start = file.read(0, 4)
    magic = int.from_bytes(start, "little")
    return len(start) == 4 and (magic == MODEL_MAGIC or magic in OTHER_MAGICS)


def read(path: Path, tokenizer: TokenizerSource | None = None) -> Checkpoint:
    """Opens the checkpoint in the file ``path``; reads its header, no tensor.

    ``tokenizer``, or the one beside the file where none is given, says by which tokens a text
    begins and ends, which the file does not.
    """
    with RegularFile(path, CheckpointError) as file:
        size = file.num_bytes()
        data = file.read(0, HEADER_BYTES)
    header = _parse_header(data, path.name)
    _check_dimensions(header, path.name)
    dtype = _check_size(header, size, path.name)
    tokenizer = tokenizer or find_tokenizer(path.parent)
    return Checkpoint(
        path=path,
        config=_config(header) | _ends(header.vocab_size, tokenizer),
        tensors=_tensors(header, dtype, path, size),
        generation_config={},
        format="llm.c",
        files=(path,),
        tokenizer=tokenizer,
    )


# --- header -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Header:
    """Words 1 to 7 of the file."""

    version: int
    context_length: int
    vocab_size: int
    num_layers: int
    num_heads: int
    width: int
    padded_vocab_size: int


def _parse_header(data: bytes, file: str) -> Header:
    magic = int.from_bytes(data[:4], "little")
    if magic in OTHER_MAGICS:
        raise CheckpointError(
            f"{file} is {OTHER_MAGICS[magic]} of llm.c (magic {magic}), expected a GPT-2 "
            f"checkpoint (magic {MODEL_MAGIC}); name the model file, such as gpt2_124M.bin"
        )
    if magic != MODEL_MAGIC:
        raise CheckpointError(
            f"{file} begins with the number {magic}, expected {MODEL_MAGIC}; "
            "this is not an llm.c checkpoint: check the path"
        )
    if len(data) < HEADER_BYTES:
        raise CheckpointError(
            f"{file} has {len(data):,} bytes, expected a header of {HEADER_BYTES:,}; "
            "the file is cut off: get it again from its source"
        )
    header = Header(*struct.unpack_from("<7i", data, 4))
    if header.version not in VERSIONS:
        raise CheckpointError(
            f"{file} has llm.c version {header.version}, expected 3 (float32) or 5 (bfloat16), "
            "both with padded vocabulary; other versions are earlier layouts: write the file again "
            "with a current train_gpt2.py"
        )
    return header


def _check_dimensions(header: Header, file: str) -> None:
    values = (
        header.context_length,
        header.vocab_size,
        header.num_layers,
        header.num_heads,
        header.width,
        header.padded_vocab_size,
    )
    advice = "the header is damaged: get the file again from its source"
    for (name, limit), value in zip(LIMITS.items(), values, strict=True):
        # Zero stands for "not padded" in the earliest files; _check_size tells them apart.
        if not (0 if name == "padded vocabulary" else 1) <= value <= limit:
            raise CheckpointError(
                f"{file}: {name} in the header is {value:,}, expected 1 to {limit:,}; {advice}"
            )
    if 0 < header.padded_vocab_size < header.vocab_size:
        raise CheckpointError(
            f"{file}: padded vocabulary in the header is {header.padded_vocab_size:,}, expected at "
            f"least the vocabulary of {header.vocab_size:,}; {advice}"
        )
    if header.width % header.num_heads:
        raise CheckpointError(
            f"{file}: width in the header is {header.width:,}, expected a multiple of its "
            f"{header.num_heads:,} heads; {advice}"
        )


def _check_size(header: Header, size: int, file: str) -> str:
    """Returns the dtype after comparing ``size`` with every (dtype, padding) reading of the header.

    Version 3 once meant bfloat16 without padding (llm.c commit 00627070), so the version alone does
    not say how to read a file: exactly one reading must give its size, and it must be the current
    meaning of the version.
    """
    expected = (VERSIONS[header.version], header.padded_vocab_size)
    expected_bytes = _file_bytes(header, *expected)
    row_counts = {header.padded_vocab_size or header.vocab_size, header.vocab_size}
    fitting = [
        (dtype, rows)
        for dtype in ITEM_BYTES
        for rows in sorted(row_counts)
        if _file_bytes(header, dtype, rows) == size
    ]
    if fitting == [expected]:
        return expected[0]
    layouts = " and of ".join(f"{dtype} with {rows:,} vocabulary rows" for dtype, rows in fitting)
    meaning = f"{expected_bytes:,} bytes = {expected[0]} with {expected[1]:,} vocabulary rows"
    if header.padded_vocab_size == 0:
        meaning = f"{expected[0]} with padded vocabulary, given in the header"
    meaning += f" by version {header.version}"
    if len(fitting) > 1:
        raise CheckpointError(
            f"{file} has {size:,} bytes, the size of {layouts}, expected a file that can be read "
            "in one way only; write it again with the vocabulary padded to a multiple of 128"
        )
    if fitting:
        raise CheckpointError(
            f"{file} has {size:,} bytes, the size of {layouts}, expected {meaning}; "
            "this is an early layout: write the file again with a current train_gpt2.py"
        )
    if header.padded_vocab_size == 0:
        raise CheckpointError(
            f"{file}: padded vocabulary in the header is 0, expected at least the vocabulary of "
            f"{header.vocab_size:,}; write the file again with a current train_gpt2.py"
        )
    problem = "is cut off" if size < expected_bytes else "has bytes after its end"
    raise CheckpointError(
        f"{file} has {size:,} bytes, expected {meaning}; "
        f"the file {problem}: get it again from its source"
    )


def _file_bytes(header: Header, dtype: str, vocab_rows: int) -> int:
    elements = sum(math.prod(array.shape) for array in _arrays(header, vocab_rows))
    return HEADER_BYTES + elements * ITEM_BYTES[dtype]


# --- arrays -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Array:
    """One stored array; ``name`` is Hugging Face's, with {i} for the layer in the first axis."""

    name: str
    shape: tuple[int, ...]
    transposed: bool = False  # stored (out, in), delivered (in, out)


def _arrays(header: Header, vocab_rows: int) -> list[Array]:
    """Returns the 16 arrays in file order."""
    L, D = header.num_layers, header.width
    return [
        Array("transformer.wte.weight", (vocab_rows, D)),
        Array("transformer.wpe.weight", (header.context_length, D)),
        Array("transformer.h.{i}.ln_1.weight", (L, D)),
        Array("transformer.h.{i}.ln_1.bias", (L, D)),
        Array("transformer.h.{i}.attn.c_attn.weight", (L, 3 * D, D), transposed=True),
        Array("transformer.h.{i}.attn.c_attn.bias", (L, 3 * D)),
        Array("transformer.h.{i}.attn.c_proj.weight", (L, D, D), transposed=True),
        Array("transformer.h.{i}.attn.c_proj.bias", (L, D)),
        Array("transformer.h.{i}.ln_2.weight", (L, D)),
        Array("transformer.h.{i}.ln_2.bias", (L, D)),
        Array("transformer.h.{i}.mlp.c_fc.weight", (L, 4 * D, D), transposed=True),
        Array("transformer.h.{i}.mlp.c_fc.bias", (L, 4 * D)),
        Array("transformer.h.{i}.mlp.c_proj.weight", (L, D, 4 * D), transposed=True),
        Array("transformer.h.{i}.mlp.c_proj.bias", (L, D)),
        Array("transformer.ln_f.weight", (D,)),
        Array("transformer.ln_f.bias", (D,)),
    ]


def _tensors(header: Header, dtype: str, path: Path, size: int) -> dict[str, CheckpointTensor]:
    item_bytes = ITEM_BYTES[dtype]
    offset = HEADER_BYTES
    tensors: dict[str, CheckpointTensor] = {}

    def add(name: str, shape: tuple[int, ...], start: int, transposed: bool = False) -> None:
        stored = StoredTensor(name, path, size, start, shape, dtype, transposed)
        tensors[name] = lazy_tensor(stored, math.prod(shape) * item_bytes)

    for array in _arrays(header, header.padded_vocab_size):
        num_bytes = math.prod(array.shape) * item_bytes
        if "{i}" in array.name:
            layer_bytes = num_bytes // header.num_layers
            for i in range(header.num_layers):
                name = array.name.replace("{i}", str(i))
                add(name, array.shape[1:], offset + i * layer_bytes, array.transposed)
        elif array.name == "transformer.wte.weight":  # the rows after V are padding
            add(array.name, (header.vocab_size, header.width), offset)
        else:
            add(array.name, array.shape, offset)
        offset += num_bytes
    return tensors


def _config(header: Header) -> dict[str, Any]:
    """Returns the config.json of the same model; what is not stored, llm.c's code fixes."""
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": header.vocab_size,
        "n_positions": header.context_length,
        "n_ctx": header.context_length,
        "n_embd": header.width,
        "n_layer": header.num_layers,
        "n_head": header.num_heads,
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
    }


def _ends(vocab_size: int, tokenizer: TokenizerSource | None) -> dict[str, int | None]:
    """Ids of the tokens that begin and end a text, as config.json spells them."""
    last = vocab_size - 1  # where GPT-2 has its end of text
    if tokenizer is None:
        return {"bos_token_id": last, "eos_token_id": last}
    library = open_source(tokenizer)

    def named(name: str) -> int | None:
        spelled = named_token(tokenizer.config, name)
        token_id = None if spelled is None else library.token_to_id(spelled)
        # One that was not there until now has no row.
        return token_id if token_id is not None and token_id < vocab_size else None

    def first(*ids: int | None) -> int | None:
        return next((token_id for token_id in ids if token_id is not None), None)

    # A last row with a word of the vocabulary in it ends nothing.
    added = library.get_added_tokens_decoder().get(last)
    is_word = library.id_to_token(last) is not None and not (added and added.special)
    end_of_text = library.token_to_id(END_OF_TEXT)
    eos = first(named("eos_token"), end_of_text, None if is_word else last)
    return {"bos_token_id": first(named("bos_token"), end_of_text, eos), "eos_token_id": eos}
