"""The types of tensors in a GGUF file, and their values as float32, some rows at a time.

A row is the innermost dimension: values, or blocks of 32 to 256 values with scales of their own. A
block is unpacked by ``gguf.quants.dequantize`` of the package ``gguf``; what is no block is read as
in every other checkpoint, and needs no package.

Source of numbers and sizes: ``ggml.h``; ``gguf/constants.py`` (``GGML_QUANT_SIZES``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import CheckpointTensor, StoredTensor, lazy_tensor
from ..errors import CheckpointError
from ..importing import importing
from ..regular_file import RegularFile
from ..strict_json import quoted

Floats = NDArray[np.float32]
Rows = Callable[[int, int], Floats]

# Values unpacked at once: with what the package makes on the way, at most READ_SCRATCH bytes.
STEP = 1 << 17
COMPARED = 1 << 20  # bytes at once


@dataclass(frozen=True)
class TensorType:
    """How values are stored."""

    name: str  # as ggml calls it: "Q4_1"
    block: int  # values that are stored together
    block_bytes: int
    dtype: str | None = None  # of what is no block: as ``CheckpointTensor`` calls it
    unpack: Callable[[NDArray[np.uint8]], Floats] | None = None  # (bytes of blocks) -> (values)


PLAIN = {
    0: TensorType("F32", 1, 4, "float32"),
    1: TensorType("F16", 1, 2, "float16"),
    24: TensorType("I8", 1, 1, "int8"),
    25: TensorType("I16", 1, 2, "int16"),
    26: TensorType("I32", 1, 4, "int32"),
    27: TensorType("I64", 1, 8, "int64"),
    28: TensorType("F64", 1, 8, "float64"),
    30: TensorType("BF16", 1, 2, "bfloat16"),
}


@dataclass(frozen=True)
class StoredBlocks:
    """Where a tensor is in a file."""

    name: str
    path: Path
    file_bytes: int  # size of the whole file when it was opened
    offset: int  # of the first byte, from the start of the file
    shape: tuple[int, ...]
    kind: TensorType

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) // self.kind.block * self.kind.block_bytes

    def equals(self, other: StoredBlocks) -> bool:
        """Whether ``other`` has the same values, stored alike; reads until they differ."""
        if (self.shape, self.kind) != (other.shape, other.kind):
            return False
        with (
            RegularFile(self.path, CheckpointError) as file,
            RegularFile(other.path, CheckpointError) as other_file,
        ):
            return all(
                file.read(self.offset + begin, COMPARED)[: self.num_bytes - begin]
                == other_file.read(other.offset + begin, COMPARED)[: self.num_bytes - begin]
                for begin in range(0, self.num_bytes, COMPARED)
            )

    def tensor(self, name: str) -> CheckpointTensor:
        """The tensor under another name, its values to be read; see ``CheckpointTensor``."""
        if self.kind.dtype is not None:
            stored = StoredTensor(
                name, self.path, self.file_bytes, self.offset, self.shape, self.kind.dtype
            )
            return lazy_tensor(stored, self.num_bytes)
        return CheckpointTensor(
            name=name,
            shape=self.shape,
            dtype="float32",
            file=self.path.name,
            num_bytes=self.num_bytes,
            rows=self._rows,
            quantized=self.kind.name,
        )

    def _rows(self, start: int, stop: int) -> Floats:
        """Reads and unpacks in steps, so that the peak is the result and one step."""
        row = math.prod(self.shape[1:])
        block = self.kind.block
        first = start * row // block * block  # a vector's rows may begin within a block
        flat = np.empty(-(-stop * row // block) * block - first, np.float32)
        step = STEP // block * block
        with RegularFile(self.path, CheckpointError) as file:
            size = file.num_bytes()
            if size != self.file_bytes:
                raise CheckpointError(
                    f"{self.path.name} has {size:,} bytes now, expected {self.file_bytes:,} as "
                    "when it was opened; leave the file alone while it is read, then start again"
                )
            for begin in range(0, len(flat), step):
                part = flat[begin : begin + step]
                part[...] = self._values(file, first + begin, len(part))
        return flat[start * row - first : stop * row - first].reshape(-1, *self.shape[1:])

    def _values(self, file: RegularFile, first: int, count: int) -> Floats:
        """``count`` values from the value ``first`` on: whole blocks."""
        assert self.kind.unpack is not None
        block, size = self.kind.block, self.kind.block_bytes
        raw = np.frombuffer(
            file.read(self.offset + first // block * size, count // block * size), np.uint8
        )
        where = f"{self.path.name}: tensor {quoted(self.name)}"
        if raw.size != count // block * size:
            raise CheckpointError(
                f"{where} ends after {raw.size:,} bytes, expected {count // block * size:,}; the "
                "file shrank while it was read: get it again from its source"
            )
        with np.errstate(all="ignore"):  # a scale that is not finite shows in the values
            values = self.kind.unpack(raw)
        if not np.isfinite(values).all():
            raise CheckpointError(
                f"{where} holds {values[~np.isfinite(values)][0]}, expected finite numbers; the "
                "weights are damaged: get the file again from its source"
            )
        return values


def find_type(number: int, where: str) -> TensorType:
    """The type that ggml has under ``number``.

    Raises CheckpointError, which begins with ``where``, for one that is not known or cannot be
    unpacked, and MissingExtraError for a type of blocks without the package ``gguf``.
    """
    if number in PLAIN:
        return PLAIN[number]
    known = _block_types()
    if number in known:
        return known[number]
    names = ", ".join(kind.name for kind in (*PLAIN.values(), *known.values()))
    raise CheckpointError(
        f"{where} has the type {_named(number)}, expected one of {names}; take the file in another "
        "of these"
    )


def _named(number: int) -> str:
    from gguf import GGMLQuantizationType

    names = {int(kind): kind.name for kind in GGMLQuantizationType}
    return f"{names[number]} ({number})" if number in names else f"{number:,}"


@cache
def _block_types() -> dict[int, TensorType]:
    """Those that the package can unpack, by number."""
    with importing("reading quantized GGUF files", "gguf"):
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

    def unpacking(kind: Any) -> Callable[[NDArray[np.uint8]], Floats]:
        # As one row: the package goes through many of them a few at a time.
        return lambda raw: quants.dequantize(raw.reshape(1, -1), kind).reshape(-1)

    types = {}
    for kind in GGMLQuantizationType:
        block, size = GGML_QUANT_SIZES[kind]
        if int(kind) in PLAIN:
            continue
        unpack = unpacking(kind)
        try:
            unpack(np.zeros(size, np.uint8))
        except NotImplementedError:  # it knows the type, not its values
            continue
        types[int(kind)] = TensorType(kind.name, block, size, unpack=unpack)
    return types
