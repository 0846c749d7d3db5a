"""A GGUF file goes in, its metadata and its tensors in float32 come out; what a real model needs.

    "GGUF"   u32 version   u64 tensors   u64 entries
    entry    string name, u32 type, value; an array is u32 type, u64 length, values
    tensor   string name, u32 dimensions, u64 of each (the innermost first), u32 type, u64 offset
    data     from the next multiple of "general.alignment" (32) on; offsets are within it

Little-endian; a string is u64 length and UTF-8. A row of a quantized tensor is blocks of 32 values:

    Q8_0     f16 d, 32 × i8 q              value = d·q
    Q4_1     f16 d, f16 m, 16 bytes        value = d·q + m; low nibbles are the first 16 values

Sources: ggml's ``docs/gguf.md``; ``block_q8_0`` and ``block_q4_1`` of its ``ggml-common.h``.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..export.errors import CheckpointError

VERSION = 3
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
NUMBERS |= {12: "d"}
STRING, ARRAY = 8, 9
BLOCK = 32  # values
F32, Q4_1, Q8_0 = 0, 3, 8
BLOCK_DTYPES = {
    Q4_1: np.dtype([("d", "<f2"), ("m", "<f2"), ("q", "u1", BLOCK // 2)]),
    Q8_0: np.dtype([("d", "<f2"), ("q", "i1", BLOCK)]),
}

Floats = NDArray[np.float32]


class GGUFFile:
    """A file whose ``metadata`` is read and whose tensors are when they are asked for."""

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError for what is no GGUF file of the version that is known here."""
        self._path = path
        self._data = np.memmap(path, np.uint8, "r")
        self._place = 0
        magic, version, tensors, entries = self._take("4sIQQ")
        if magic != b"GGUF" or version != VERSION:
            raise CheckpointError(
                f"{path}: found {magic!r}, version {version}, expected b'GGUF', version {VERSION}; "
                "give another file"
            )
        self.metadata: dict[str, Any] = {self._string(): self._value() for _ in range(entries)}
        self._infos = dict(self._info() for _ in range(tensors))
        alignment = self.metadata.get("general.alignment", 32)
        self._begin = -(-self._place // alignment) * alignment

    @property
    def names(self) -> list[str]:
        """Of the tensors, in the file's order."""
        return list(self._infos)

    def tensor(self, name: str) -> Floats:
        """A tensor in float32, its innermost dimension last; CheckpointError for other formats."""
        shape, kind, offset = self._infos[name]
        start, count = self._begin + offset, int(np.prod(shape))
        if kind == F32:
            return self._data[start : start + 4 * count].view("<f4").reshape(shape)
        if kind not in BLOCK_DTYPES:
            raise CheckpointError(
                f"{self._path}: {name} has the type {kind}, expected F32 ({F32}), Q4_1 ({Q4_1}) or "
                f"Q8_0 ({Q8_0}); give another file"
            )
        size = count // BLOCK * BLOCK_DTYPES[kind].itemsize
        blocks = self._data[start : start + size].view(BLOCK_DTYPES[kind])
        return dequantize(blocks, kind).reshape(shape)

    def _take(self, layout: str) -> tuple[Any, ...]:
        start, self._place = self._place, self._place + struct.calcsize(f"<{layout}")
        return struct.unpack(f"<{layout}", self._data[start : self._place].tobytes())

    def _string(self) -> str:
        (length,) = self._take("Q")
        (text,) = self._take(f"{length}s")
        return str(text, "utf-8")

    def _value(self) -> Any:
        (kind,) = self._take("I")
        if kind != ARRAY:
            return self._one(kind)
        kind, count = self._take("IQ")
        if kind == STRING:
            return [self._string() for _ in range(count)]
        return list(self._take(f"{count}{NUMBERS[kind]}"))

    def _one(self, kind: int) -> Any:
        return self._string() if kind == STRING else self._take(NUMBERS[kind])[0]

    def _info(self) -> tuple[str, tuple[tuple[int, ...], int, int]]:
        name = self._string()
        (dimensions,) = self._take("I")
        shape = self._take(f"{dimensions}Q")[::-1]
        return name, (shape, *self._take("IQ"))


def dequantize(blocks: NDArray[Any], kind: int) -> Floats:
    """(n,) blocks of ``BLOCK_DTYPES[kind]`` -> (n, 32) values."""
    scale, q = blocks["d"].astype(np.float32)[:, None], blocks["q"]
    if kind == Q8_0:
        return np.asarray(scale * q.astype(np.float32))
    values = np.concatenate([q & 15, q >> 4], axis=1).astype(np.float32)
    return np.asarray(scale * values + blocks["m"].astype(np.float32)[:, None])
