"""Reads a folder of safetensors files with its config.json: one file, or shards under an index.

Layout of a file, little-endian: 8 bytes with the header's length N, N bytes of JSON (padding spaces
allowed at either end), then the byte buffer. The header maps each name to ``dtype``, ``shape`` and
``data_offsets`` [begin, end) in the buffer, and ``__metadata__`` to strings. The tensors must cover
the buffer without holes or overlaps. Everything is checked here before a tensor byte is read.

Stricter than the reference reader, which keeps the last of two equal keys and ignores unknown
fields. Format: https://github.com/huggingface/safetensors (README, "Format"). The index file is
that of transformers: ``weight_map`` names the shard of each tensor.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint, CheckpointTensor, StoredTensor, lazy_tensor, load_config
from ..errors import CheckpointError
from ..regular_file import RegularFile
from ..strict_json import LARGEST_INDEX, load_json_object, parse_json_object, quoted, shown
from ..tokenizers import TokenizerSource, find_tokenizer

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
MAX_HEADER_BYTES = LARGEST_INDEX  # the reference reader takes 100 million
MAX_RANK = 32  # of numpy before 2.0
MAX_SIZE = 2**63 - 1  # bytes; what numpy and every operating system can count

# Header name -> (our name, bytes per element). Masks and counters occur beside the weights, so the
# integers are known as well; only the float types of checkpoint.READABLE_DTYPES can be read.
DTYPES = {
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F64": ("float64", 8),
    "F8_E4M3": ("float8_e4m3", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U64": ("uint64", 8),
    "U32": ("uint32", 4),
    "U16": ("uint16", 2),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}

_AGAIN = "get the file again from its source"


def matches(path: Path) -> bool:
    """Tells whether ``path`` is a folder with a safetensors file or a shard index."""
    return path.is_dir() and any(
        entry.name.endswith(".safetensors") or entry.name == INDEX_NAME for entry in path.iterdir()
    )


def read(path: Path, tokenizer: TokenizerSource | None = None) -> Checkpoint:
    """Opens the checkpoint in the folder ``path``; reads the headers, no tensor or tokenizer.

    ``tokenizer`` stands in for the folder's own.
    """
    config_path = path / "config.json"
    names = sorted(entry.name for entry in path.iterdir())
    if config_path.name not in names:
        raise CheckpointError(
            f"{quoted(str(path))} has safetensors files but no config.json, expected both; "
            "download config.json from the same revision of the model"
        )
    config = load_config(config_path)
    tensors, files = _read_weights(path, names)
    if not tensors:
        raise CheckpointError(
            f"{files[-1].name} holds no tensor, expected the weights of a model; {_AGAIN}"
        )
    generation_path = path / "generation_config.json"
    has_generation = generation_path.name in names
    return Checkpoint(
        path=path,
        config=config,
        tensors=tensors,
        generation_config=load_config(generation_path) if has_generation else {},
        format="safetensors",
        files=(config_path, *files),
        tokenizer=tokenizer or find_tokenizer(path),
    )


def _read_weights(
    folder: Path, names: list[str]
) -> tuple[dict[str, CheckpointTensor], tuple[Path, ...]]:
    if SINGLE_NAME not in names and INDEX_NAME in names:
        return _read_shards(folder, names)
    found = [name for name in names if name.endswith(".safetensors")]
    if SINGLE_NAME in found:
        found = [SINGLE_NAME]
    if len(found) != 1:
        listed = ", ".join(quoted(name, 60) for name in found[:8])
        raise CheckpointError(
            f"{quoted(str(folder))} has {len(found)} safetensors files ({listed}), expected one, "
            f"or shards with a {INDEX_NAME}; download the index, or keep only the right file"
        )
    file = folder / found[0]
    return read_file(file), (file,)


# --- shards -----------------------------------------------------------------------------------


def _read_shards(
    folder: Path, names: list[str]
) -> tuple[dict[str, CheckpointTensor], tuple[Path, ...]]:
    weight_map = _read_weight_map(folder / INDEX_NAME)
    shards = sorted(set(weight_map.values()))
    missing = [shard for shard in shards if shard not in names]
    if missing:
        raise CheckpointError(
            f"{INDEX_NAME} names the shard {quoted(missing[0])}, which is not in the folder "
            f"({len(missing)} of {len(shards)} are missing), expected all of them; "
            "download the missing files"
        )
    tensors: dict[str, CheckpointTensor] = {}
    for shard in shards:
        for name, tensor in read_file(folder / shard).items():
            if name in tensors:
                raise _index_error(
                    f"tensor {quoted(name)} is in the shards {quoted(tensors[name].file)} and "
                    f"{quoted(shard)}, expected it in one"
                )
            if name not in weight_map:
                raise _index_error(
                    f"tensor {quoted(name)} of the shard {quoted(shard)} is not in {INDEX_NAME}, "
                    "expected every tensor to be named there"
                )
            tensors[name] = tensor
    for name, shard in weight_map.items():
        if name not in tensors or tensors[name].file != shard:
            elsewhere = f" (it is in {quoted(tensors[name].file)})" if name in tensors else ""
            raise _index_error(
                f"tensor {quoted(name)} is not in the shard {quoted(shard)}{elsewhere}, "
                f"expected it there by {INDEX_NAME}"
            )
    return tensors, (folder / INDEX_NAME, *(folder / shard for shard in shards))


def _read_weight_map(path: Path) -> dict[str, str]:
    weight_map = load_json_object(path, LARGEST_INDEX, CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{path.name} has no weight_map, expected an object from tensor to shard; {_AGAIN}"
        )
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_plain_name(shard):
            raise CheckpointError(
                f"{path.name} puts tensor {quoted(name)} into {shown(shard)}, expected the "
                f"plain name of a file in the same folder; {_AGAIN}"
            )
    return weight_map


def _is_plain_name(name: str) -> bool:
    return name not in ("", ".", "..") and not any(c in name for c in "/\\:\0")


def _index_error(problem: str) -> CheckpointError:
    return CheckpointError(f"{problem}; download index and shards again from one revision")


# --- one file ---------------------------------------------------------------------------------


def read_file(path: Path) -> dict[str, CheckpointTensor]:
    """Returns the tensors of one safetensors file in the order of their bytes; checks them all."""
    with RegularFile(path, CheckpointError) as file:
        size = file.num_bytes()
        header_bytes = _header_length(file.read(0, 8), size, path.name)
        data = file.read(8, header_bytes)
    header = parse_json_object(data, f"{path.name}: the header", CheckpointError)
    _check_metadata(header.pop("__metadata__", {}), path.name)
    start = 8 + header_bytes
    buffer_bytes = size - start
    spans = [(*_check_entry(path.name, name, entry), name) for name, entry in header.items()]
    spans.sort(key=lambda span: span[:2])
    _check_cover(spans, buffer_bytes, path.name)
    return {
        name: lazy_tensor(
            StoredTensor(
                name=name,
                path=path,
                file_bytes=size,
                offset=start + begin,
                shape=tuple(header[name]["shape"]),
                dtype=DTYPES[header[name]["dtype"]][0],
            ),
            num_bytes=end - begin,
        )
        for begin, end, name in spans
    }


def _header_length(prefix: bytes, size: int, file: str) -> int:
    if len(prefix) < 8:
        raise CheckpointError(
            f"{file} has {size:,} bytes, expected at least 8 with the header's length; {_AGAIN}"
        )
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{file} announces a header of {length:,} bytes, expected at most "
            f"{MAX_HEADER_BYTES:,}; this is not a safetensors file: {_AGAIN}"
        )
    if length > size - 8:
        raise CheckpointError(
            f"{file} announces a header of {length:,} bytes, expected at most {size - 8:,} "
            f"in a file of {size:,} bytes; the file is cut off: {_AGAIN}"
        )
    return length


def _check_metadata(metadata: Any, file: str) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(
            f"{file}: __metadata__ in the header is {shown(metadata)}, expected an "
            f"object from string to string; {_AGAIN}"
        )


def _check_entry(file: str, name: str, entry: Any) -> tuple[int, int]:
    """Returns (begin, end) of one header entry after checking everything it says by itself."""

    def refuse(found: str, expected: str) -> CheckpointError:
        return CheckpointError(
            f"{file}: tensor {quoted(name)} has {found}, expected {expected}; {_AGAIN}"
        )

    fields = {"dtype", "shape", "data_offsets"}
    if not isinstance(entry, dict):
        raise refuse(f"the entry {shown(entry)}", "an object of dtype, shape, data_offsets")
    if set(entry) != fields:
        found = ", ".join(quoted(key, 30) for key in list(entry)[:6]) or "none"
        raise refuse(f"the fields {found}", "the fields dtype, shape, data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise refuse(f"the dtype {shown(dtype)}", f"one of {', '.join(DTYPES)}")
    if not _are_sizes(shape) or len(shape) > MAX_RANK:
        raise refuse(
            f"the shape {shown(shape)}",
            f"a list of at most {MAX_RANK} integers from 0 to {MAX_SIZE}",
        )
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise refuse(f"data_offsets {shown(offsets)}", "[begin, end] with begin <= end")
    # A zero among the dimensions does not excuse the others: numpy cannot hold (0, 2**62, 2**62).
    if math.prod(max(size, 1) for size in shape) * DTYPES[dtype][1] > MAX_SIZE:
        raise refuse(f"the shape {shown(shape)}", f"at most {MAX_SIZE} bytes in all")
    begin, end = offsets
    num_bytes = math.prod(shape) * DTYPES[dtype][1]
    if end - begin != num_bytes:
        raise refuse(
            f"{end - begin:,} bytes of data ({begin:,} to {end:,})",
            f"{num_bytes:,} bytes = {dtype} of shape {shown(shape)}",
        )
    return begin, end


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value <= MAX_SIZE for value in values
    )


def _check_cover(spans: list[tuple[int, int, str]], buffer_bytes: int, file: str) -> None:
    """Refuses holes, overlaps, bytes beyond the last tensor and tensors beyond the last byte."""
    reached = 0
    for begin, end, name in spans:
        if begin != reached:
            problem = "overlaps the tensor before it" if begin < reached else "leaves a hole"
            raise CheckpointError(
                f"{file}: tensor {quoted(name)} begins at byte {begin:,} of the data and "
                f"{problem}, expected it at {reached:,}; {_AGAIN}"
            )
        reached = end
    if reached != buffer_bytes:
        problem = "is cut off" if reached > buffer_bytes else "has bytes that belong to no tensor"
        raise CheckpointError(
            f"{file} has {buffer_bytes:,} bytes of data, expected {reached:,} by its header; "
            f"the file {problem}: {_AGAIN}"
        )
