"""A checkpoint as published goes in; its config, lazily read tensors and tokenizer come out.

The file formats live in ``readers/``, one file each; ``open_checkpoint`` asks them in turn. Opening
reads headers only. A ``CheckpointTensor`` opens the file again and reads the rows it is asked for.
"""

from __future__ import annotations

import importlib
import math
import os
import pkgutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import readers
from .errors import CheckpointError, missing_extra
from .folder import MANIFEST
from .lora.folder import refuse_adapter_folder
from .manifest import AdapterEntry, Source
from .regular_file import RegularFile
from .strict_json import LARGEST_CONFIG, load_json_object, quoted
from .tokenizers import TokenizerSource, open_tokenizer
from .trainer_prefixes import without_prefixes

_CHUNK_BYTES = 2 << 20
READ_SCRATCH = 3 * _CHUNK_BYTES  # bytes held beside the rows while they are read and converted

# Stored dtype -> how numpy sees its bytes; numpy has no bfloat16, so its 16 bits come as they are.
READABLE_DTYPES = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2", "float64": "<f8"}


@dataclass(frozen=True)
class CheckpointTensor:
    """One tensor of a checkpoint, not yet read.

    ``rows(start, stop)`` reads that part of the first dimension (all of a scalar), ``read()`` all:
    now, from the file, into a new C-contiguous float32 array that the caller owns; any thread may.
    Both raise CheckpointError if a value is NaN, infinite or beyond float32, if the stored dtype is
    not one of ``READABLE_DTYPES``, or if the file has another size than when it was opened.
    """

    name: str  # as Hugging Face spells it: "transformer.h.0.attn.c_attn.weight"
    shape: tuple[int, ...]
    dtype: str  # as stored; those that are not READABLE_DTYPES can be listed, not read
    file: str  # base name, for messages
    num_bytes: int  # stored
    rows: Callable[[int, int], NDArray[np.float32]]
    whole: bool = False  # stored the other way around: a few rows cost as much as all
    scratch: int = READ_SCRATCH  # bytes held beside the rows while they are read
    true_rows: Callable[[int, int], NDArray[np.float32]] | None = None  # where ``rows`` makes up
    quantized: str | None = None  # the number format that the values are unpacked from, if any

    def read(self) -> NDArray[np.float32]:
        """All values."""
        return self.rows(0, self.shape[0] if self.shape else 1)

    def stored(self, start: int, stop: int) -> NDArray[np.float32]:
        """``rows`` as they are in the file, whatever these say."""
        return (self.true_rows or self.rows)(start, stop)


@dataclass(frozen=True)
class MergedAdapter:
    """An adapter whose changes are in the tensors of a checkpoint, see ``lora``."""

    name: str  # of its folder
    weight: float
    base_model: str | None  # what it says that it was trained on
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint: everything but the weights themselves is in memory."""

    path: Path
    config: dict[str, Any]  # config.json, unchecked; for llm.c the equivalent one
    tensors: dict[str, CheckpointTensor]  # in file order
    generation_config: dict[str, Any]  # {} if the checkpoint has none
    format: str = ""  # "safetensors", "llm.c" or "gguf"
    files: tuple[Path, ...] = ()  # weights, shard index and config.json, as far as there are any
    tokenizer: TokenizerSource | None = None  # from beside the weights, or another place
    origin: dict[str, str] = field(default_factory=dict)  # of a download: repository and commit
    adapters: tuple[MergedAdapter, ...] = ()

    @property
    def quantized(self) -> tuple[str, ...]:
        """The number formats that weights were quantized to before, that of most bytes first."""
        num_bytes: Counter[str] = Counter()
        for tensor in self.tensors.values():
            if tensor.quantized is not None:
                num_bytes[tensor.quantized] += tensor.num_bytes
        return tuple(name for name, _ in num_bytes.most_common())

    def source(self) -> Source:
        """Returns format, origin and each file's sha256 by base name; reads all of them now."""
        return Source(
            format=self.format,
            quantized=self.quantized or None,
            files={path.name: _sha256(path) for path in self.files},
            repository=self.origin.get("repository"),
            commit=self.origin.get("commit"),
            adapters=tuple(map(_entry, self.adapters)) or None,
        )


def _entry(adapter: MergedAdapter) -> AdapterEntry:
    return AdapterEntry(
        name=adapter.name,
        weight=adapter.weight,
        base_model=adapter.base_model,
        files={path.name: _sha256(path) for path in adapter.files},
    )


def open_checkpoint(path: str | Path, tokenizer: str | Path | None = None) -> Checkpoint:
    """Opens the checkpoint at ``path``: a folder of safetensors, an llm.c ``.bin`` or a GGUF file.

    ``tokenizer`` is a tokenizer file or a folder with one, in place of the checkpoint's own. A
    checkpoint without any is opened all the same, with ``tokenizer`` None. Raises CheckpointError
    if the path is no checkpoint, cannot be read, or is damaged.
    """
    path = Path(path).absolute()  # tensors are read later, perhaps from another directory
    refuse_other_folders(path)
    given = None if tokenizer is None else open_tokenizer(Path(tokenizer).absolute())
    for reader in _readers():
        if reader.matches(path):
            checkpoint: Checkpoint = reader.read(path, given)
            names = without_prefixes(checkpoint.tensors)
            tensors = {
                names[name]: tensor if names[name] == name else replace(tensor, name=names[name])
                for name, tensor in checkpoint.tensors.items()
            }
            return replace(checkpoint, tensors=tensors)
    raise _unknown(path, _list_folder(path))


def refuse_other_folders(path: Path) -> None:
    """Raises CheckpointError for what an export has already written, and for an adapter alone."""
    names = _list_folder(path) or []
    refuse_adapter_folder(path, names)
    if MANIFEST in names:
        raise CheckpointError(
            f"{quoted(str(path))} is a pocketlm model folder (it has a {MANIFEST}), expected a "
            "checkpoint; it is already exported: use it with `pocketlm run` or `pocketlm quantize`"
        )


def load_config(path: Path) -> dict[str, Any]:
    """Returns config.json or a file like it; raises CheckpointError if it is not a JSON object."""
    return load_json_object(path, LARGEST_CONFIG, CheckpointError)


# --- reading one tensor -----------------------------------------------------------------------


@dataclass(frozen=True)
class StoredTensor:
    """Where the bytes of one tensor are; what the readers give to ``lazy_tensor``."""

    name: str
    path: Path
    file_bytes: int  # size of the whole file when it was opened
    offset: int  # of the first byte, from the start of the file
    shape: tuple[int, ...]  # as stored, row-major
    dtype: str
    transposed: bool = False  # a stored (R, C) matrix is delivered as (C, R)


def lazy_tensor(stored: StoredTensor, num_bytes: int) -> CheckpointTensor:
    """Returns the tensor at ``stored``, which takes ``num_bytes`` bytes there."""
    return CheckpointTensor(
        name=stored.name,
        shape=stored.shape[::-1] if stored.transposed else stored.shape,
        dtype=stored.dtype,
        file=stored.path.name,
        num_bytes=num_bytes,
        rows=lambda start, stop: _read_rows(stored, start, stop),
        whole=stored.transposed,
    )


def _read_rows(stored: StoredTensor, start: int, stop: int) -> NDArray[np.float32]:
    """Rows ``start`` to ``stop`` as delivered: of a transposed tensor, columns as stored."""
    if stored.transposed:
        whole = _read_stored(stored, 0, stored.shape[0]).T[start:stop]
        return np.ascontiguousarray(whole)
    if not stored.shape:
        return _read_stored(replace(stored, shape=(1,)), 0, 1).reshape(())
    return _read_stored(stored, start, stop)


def _read_stored(stored: StoredTensor, start: int, stop: int) -> NDArray[np.float32]:
    """Reads and converts in chunks, so that the peak is the result and one chunk."""
    where = f"{stored.path.name}: tensor {quoted(stored.name)}"
    if stored.dtype not in READABLE_DTYPES:
        raise CheckpointError(
            f"{where} is stored as {stored.dtype}, expected {', '.join(READABLE_DTYPES)}; "
            "only these can be weights: convert the checkpoint to one of them"
        )
    with RegularFile(stored.path, CheckpointError) as file:
        size = file.num_bytes()
        if size != stored.file_bytes:
            raise CheckpointError(
                f"{stored.path.name} has {size:,} bytes now, expected {stored.file_bytes:,} as "
                "when it was opened; leave the checkpoint alone while it is read, then start again"
            )
        row_size = math.prod(stored.shape[1:])
        itemsize = np.dtype(READABLE_DTYPES[stored.dtype]).itemsize
        result = np.empty((stop - start, *stored.shape[1:]), np.float32)
        flat = result.reshape(-1)
        step = _CHUNK_BYTES // itemsize
        for first in range(0, len(flat), step):
            part = flat[first : first + step]
            raw = np.empty(part.shape, READABLE_DTYPES[stored.dtype])
            offset = stored.offset + (start * row_size + first) * itemsize
            filled = file.read_into(offset, raw.data.cast("B"))
            if filled != raw.nbytes:
                raise CheckpointError(
                    f"{where} has {filled:,} bytes at byte {offset:,}, expected {raw.nbytes:,}; "
                    "the file shrank while it was read: get it again from its source"
                )
            values = _to_float32(raw, stored.dtype)
            if not np.isfinite(values).all():
                bad = values[~np.isfinite(values)][0]
                raise CheckpointError(
                    f"{where} holds {bad}, expected finite numbers; "
                    "the weights are damaged: get the file again from its source"
                )
            part[...] = values
    return result


def _to_float32(raw: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    if dtype == "bfloat16":  # the upper half of a float32
        bits = raw.astype(np.uint32)
        bits <<= 16
        return bits.view(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):  # reported by the caller
        return raw.astype(np.float32, copy=False)


def _sha256(path: Path) -> str:
    with RegularFile(path, CheckpointError) as file:
        return file.sha256()


# --- finding the reader -----------------------------------------------------------------------


def _readers() -> list[ModuleType]:
    modules = []
    for _, name, _ in pkgutil.iter_modules(readers.__path__):
        try:
            modules.append(importlib.import_module(f"{readers.__name__}.{name}"))
        except ModuleNotFoundError as cause:
            if (cause.name or "").split(".")[0] == readers.__name__.split(".")[0]:
                raise
            raise missing_extra("export", f"reading {name} checkpoints", cause) from cause
    return modules


def _list_folder(path: Path) -> list[str] | None:
    """Returns the sorted names in the folder ``path``, or None if it is not a folder."""
    try:
        return sorted(os.listdir(path))
    except NotADirectoryError:
        return None
    except FileNotFoundError as cause:
        raise CheckpointError(
            f"{quoted(str(path))} does not exist, expected {_EXPECTED}; check the path"
        ) from cause
    except (OSError, ValueError) as cause:
        reason = getattr(cause, "strerror", None) or cause
        raise CheckpointError(
            f"{quoted(str(path))} cannot be read ({reason}), expected {_EXPECTED}; "
            "check the path and its permissions"
        ) from cause


# --- saying what is there instead -------------------------------------------------------------

_EXPECTED = "a folder with config.json and *.safetensors, a .gguf file, or an llm.c .bin file"
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_PICKLE_ADVICE = (
    "pickle files can run code when loaded, so pocketlm never loads them; a folder of them can go "
    "through Optimum, which reads weights only, in a process of its own: pocketlm export FOLDER "
    "OUT --via optimum; or convert once where you trust the file, with transformers: "
    "AutoModelForCausalLM.from_pretrained(folder)"
    ".save_pretrained(new_folder, safe_serialization=True)"
)


def _unknown(path: Path, names: list[str] | None) -> CheckpointError:
    where = quoted(str(path))
    if names is None:
        found, advice = _describe_file(path)
    elif not names:
        found, advice = "is an empty folder", "check the path, or download the checkpoint into it"
    else:
        found, advice = _describe_folder(names)
    return CheckpointError(f"{where} {found}, expected {_EXPECTED}; {advice}")


def _describe_folder(names: list[str]) -> tuple[str, str]:
    listed = ", ".join(quoted(name, 60) for name in names[:8])
    if len(names) > 8:
        listed += f" and {len(names) - 8} more"
    pickles = [name for name in names if name.endswith(_PICKLE_SUFFIXES)]
    if pickles:
        advice = f"if {quoted(pickles[0], 60)} is an llm.c file, name it itself; {_PICKLE_ADVICE}"
        if pickles[0].startswith("pytorch_model"):
            advice = _PICKLE_ADVICE
        return f"is a folder with {listed}", advice
    if files := [name for name in names if name.endswith(".gguf")]:
        return f"is a folder with {listed}", f"name the file itself: {quoted(files[0], 60)} in it"
    return f"is a folder with {listed}", "download the checkpoint's *.safetensors files as well"


def _describe_file(path: Path) -> tuple[str, str]:
    with RegularFile(path, CheckpointError) as file:
        start = file.read(0, 8)
    found = f"is a file starting with bytes {start.hex(' ')}" if start else "is an empty file"
    if path.name.endswith((".safetensors", ".json")):
        return found, f"name the folder that holds it: {quoted(str(path.parent))}"
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return f"{found} (a zip archive or a pickle)", _PICKLE_ADVICE
    return found, "check the path"
