"""The header of a GGUF file, checked before memory is taken: metadata, and where each tensor is.

    "GGUF"   u32 version   u64 tensors   u64 entries
    entry    string key, u32 type, value; an array is u32 type, u64 length, values
    tensor   string name, u32 dimensions, u64 of each (the innermost first), u32 type, u64 offset
    data     from the next multiple of "general.alignment" (32) on; offsets are within it

Little-endian; a string is u64 length and UTF-8. Tensors follow each other in the order in which
they are listed, each from a multiple of the alignment on, as ggml demands. Read here and not by the
package ``gguf``: its reader trusts every length and count, maps the file into memory, where one
that shrinks ends the process, and makes an object of every token.

Sources: ggml's ``docs/gguf.md``, and ``gguf.cpp`` for what llama.cpp refuses.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError
from ..regular_file import RegularFile
from ..strict_json import quoted
from .tensors import StoredBlocks, find_type

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # 1 has other counts; between 2 and 3 nothing changed but the byte order
DEFAULT_ALIGNMENT = 32
# Far above published files: of 20 MB, 780,000 texts (262,000 tokens and their merges) and 2,000
# tensors. Reading a header takes twice its bytes and 60 bytes for each text.
MAX_HEADER_BYTES = 50_000_000
MAX_TEXTS = 1_200_000
MAX_ENTRIES = 65_536
MAX_TENSORS = 65_536
MAX_DIMENSIONS = 4
MAX_NAME_BYTES = 256
MAX_SIZE = 2**63 - 1  # bytes of a tensor
FIRST_BYTES = 1 << 20  # read at once; what is missing then comes in ever larger parts

# Type of a value -> how struct and numpy spell it.
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
NUMBERS |= {12: "d"}
DTYPES = {kind: np.dtype(f"<{layout}") for kind, layout in NUMBERS.items()}
BOOL, STRING, ARRAY = 7, 8, 9

AGAIN = "the file is damaged: get it again from its source"


@dataclass(frozen=True)
class GGUFFile:
    """One file: ``metadata`` (numbers, texts, lists of texts, arrays of numbers) and tensors."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, StoredBlocks]  # in file order


def is_gguf(path: Path) -> bool:
    """Tells whether ``path`` is a file that begins as GGUF does."""
    if not path.is_file():
        return False
    with RegularFile(path, CheckpointError) as file:
        return file.read(0, len(MAGIC)) == MAGIC


def read_header(path: Path) -> GGUFFile:
    """Reads and checks everything but the tensors' values.

    Raises CheckpointError for a damaged file, and MissingExtraError for quantized tensors without
    the package ``gguf``.
    """
    with RegularFile(path, CheckpointError) as file:
        cursor = _Cursor(file)
        num_tensors, num_entries = _counts(cursor)
        metadata: dict[str, Any] = {}
        for _ in range(num_entries):
            key = cursor.name("the key of an entry")
            if key in metadata:
                raise cursor.wrong(f"has the entry {quoted(key)} twice", "each once")
            metadata[key] = cursor.value(key)
        infos = [_tensor_info(cursor) for _ in range(num_tensors)]
        return GGUFFile(path, metadata, _placed(cursor, infos, _alignment(cursor, metadata)))


def _counts(cursor: _Cursor) -> tuple[int, int]:
    magic = cursor.take(4, "the header")
    if magic != MAGIC:
        raise cursor.wrong(f"begins with the bytes {magic!r}", f"{MAGIC!r}")
    version = cursor.number("I", "the version")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        if swapped in VERSIONS:
            raise cursor.wrong(
                "is of a big-endian machine", "little-endian", "take the ordinary file"
            )
        known = " or ".join(map(str, VERSIONS))
        raise cursor.wrong(
            f"is GGUF of version {version:,}", f"{known}", "convert it again with llama.cpp"
        )
    counts = []
    for what, most in (("tensors", MAX_TENSORS), ("entries", MAX_ENTRIES)):
        count = cursor.number("Q", f"the number of {what}")
        if count > most:
            raise cursor.wrong(f"has {count:,} {what} by its header", f"at most {most:,}")
        counts.append(count)
    return counts[0], counts[1]


@dataclass(frozen=True)
class _Info:
    """A tensor as the header lists it."""

    name: str
    shape: tuple[int, ...]  # the outermost dimension first
    kind: int
    offset: int


def _tensor_info(cursor: _Cursor) -> _Info:
    name = cursor.name("the name of a tensor")
    where = f"tensor {quoted(name)}"
    dimensions = cursor.number("I", where)
    if dimensions > MAX_DIMENSIONS:
        raise cursor.wrong(f"{where} has {dimensions:,} dimensions", f"at most {MAX_DIMENSIONS}")
    shape = tuple(cursor.number("Q", where) for _ in range(dimensions))[::-1]
    if not all(shape) or math.prod(shape) > MAX_SIZE // 8:
        raise cursor.wrong(f"{where} has the shape {shape}", "sizes of 1 or more that fit a file")
    return _Info(name, shape, cursor.number("I", where), cursor.number("Q", where))


def _alignment(cursor: _Cursor, metadata: dict[str, Any]) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(value) is not int or value <= 0 or value & (value - 1) or value > FIRST_BYTES:
        raise cursor.wrong(
            f"has a general.alignment of {value!r:.60}", "a power of two, such as 32"
        )
    return value


def _placed(cursor: _Cursor, infos: list[_Info], alignment: int) -> dict[str, StoredBlocks]:
    """The tensors at their places in the file, which they must fill without holes or overlaps."""

    def padded(size: int) -> int:
        return -(-size // alignment) * alignment

    begin, end = padded(cursor.place), 0
    tensors: dict[str, StoredBlocks] = {}
    for info in infos:
        where = f"tensor {quoted(info.name)}"
        if info.name in tensors:
            raise cursor.wrong(f"has the {where} twice", "each once")
        kind = find_type(info.kind, f"{cursor.file}: {where}")
        row = info.shape[-1] if info.shape else 1
        if row % kind.block:
            raise cursor.wrong(
                f"{where} has rows of {row:,} values",
                f"whole blocks of {kind.block} in {kind.name}",
            )
        if info.offset != padded(end):
            raise cursor.wrong(
                f"{where} begins at byte {info.offset:,} of the data",
                f"{padded(end):,}, where the tensor before it ends",
            )
        tensor = StoredBlocks(
            info.name, cursor.path, cursor.num_bytes, begin + info.offset, info.shape, kind
        )
        tensors[info.name] = tensor
        end = info.offset + tensor.num_bytes
    found = max(0, cursor.num_bytes - begin)
    if infos and not end <= found <= padded(end):
        size = f"{end:,}" if padded(end) == end else f"{end:,} to {padded(end):,}"
        problem = "it is cut off" if found < end else "there is something behind its end"
        raise cursor.wrong(
            f"has {found:,} bytes of data", f"{size} by its header", f"{problem}: get it again"
        )
    return tensors


class _Cursor:
    """Reads a header from its beginning; what a length or count asks for is checked first."""

    def __init__(self, file: RegularFile) -> None:
        self.path = file.path
        self.file = file.path.name
        self.num_bytes = file.num_bytes()
        self.place = 0
        self._stream = file
        self._data = b""
        self._texts = 0

    def wrong(self, found: str, expected: str, advice: str = AGAIN) -> CheckpointError:
        """The error of a file that has something else than it must have."""
        between = " " if found.startswith(("has ", "is ", "begins ")) else ": "
        return CheckpointError(f"{self.file}{between}{found}, expected {expected}; {advice}")

    def take(self, count: int, what: str) -> bytes:
        """The next ``count`` bytes."""
        begin, self.place = self.place, self.place + count
        if self.place > len(self._data):
            self._read_to(self.place, what)
        return self._data[begin : self.place]

    def number(self, layout: str, what: str) -> Any:
        """The next number, in a letter of struct."""
        size = struct.calcsize(f"<{layout}")
        return struct.unpack(f"<{layout}", self.take(size, what))[0]

    def name(self, what: str) -> str:
        """The next string, which is a name."""
        length = self.number("Q", what)
        if length > MAX_NAME_BYTES:
            raise self.wrong(f"{what} has {length:,} bytes", f"at most {MAX_NAME_BYTES}")
        return self._text(self.take(length, what), what)

    def value(self, key: str) -> Any:
        """The next value with its type, that of the entry ``key``."""
        key = quoted(key)
        kind = self.number("I", key)
        if kind == STRING:
            return self._strings(1, key)[0]
        if kind != ARRAY:
            return self._number_of(kind, key)
        kind, count = self.number("I", key), self.number("Q", key)
        if kind == STRING:
            return self._strings(count, key)
        if kind not in DTYPES:
            raise self._unknown(kind, key, "an array of values of the type")
        dtype = DTYPES[kind]
        values = np.frombuffer(self.take(count * dtype.itemsize, key), np.uint8)
        if kind == BOOL and values.size and values.max() > 1:
            raise self.wrong(f"{key} has the truth value {values.max()}", "0 or 1")
        return values.view(dtype)

    def _number_of(self, kind: int, key: str) -> Any:
        if kind not in NUMBERS:
            raise self._unknown(kind, key, "a value of the type")
        if kind != BOOL:
            return self.number(NUMBERS[kind], key)
        value = self.number("B", key)
        if value > 1:
            raise self.wrong(f"{key} has the truth value {value}", "0 or 1")
        return bool(value)

    def _unknown(self, kind: int, key: str, what: str) -> CheckpointError:
        known = ", ".join(map(str, sorted((*NUMBERS, STRING))))
        return self.wrong(f"{key} has {what} {kind:,}", f"one of {known}")

    def _strings(self, count: int, key: str) -> list[str]:
        """The next ``count`` strings; the loop is that of all tokens and merges."""
        self._texts += count
        if self._texts > MAX_TEXTS:
            raise self.wrong(
                f"{key} makes {self._texts:,} texts", f"at most {MAX_TEXTS:,} in a header"
            )
        length_at = struct.Struct("<Q").unpack_from
        data, place, found = self._data, self.place, []
        try:
            for _ in range(count):
                begin = place + 8
                if begin > len(data):
                    data = self._read_to(begin, key)
                place = begin + length_at(data, place)[0]
                if place > len(data):
                    data = self._read_to(place, key)
                found.append(data[begin:place].decode("utf-8"))
        except UnicodeDecodeError as cause:
            raise self._not_text(cause, key) from cause
        self.place = place
        return found

    def _text(self, data: bytes, what: str) -> str:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as cause:
            raise self._not_text(cause, what) from cause

    def _not_text(self, cause: UnicodeDecodeError, what: str) -> CheckpointError:
        return self.wrong(
            f"{what} has the bytes {cause.object[:20]!r}, which are not UTF-8", "text"
        )

    def _read_to(self, end: int, what: str) -> bytes:
        """The header's first ``end`` bytes at least."""
        if end > self.num_bytes:
            raise self.wrong(
                f"{what} would end at byte {end:,}",
                f"at most {self.num_bytes:,}, where the file ends",
            )
        if end > MAX_HEADER_BYTES:
            raise self.wrong(
                f"{what} would end at byte {end:,}",
                f"at most {MAX_HEADER_BYTES:,} bytes before the tensors",
            )
        size = max(end, 2 * len(self._data), FIRST_BYTES)
        self._data += self._stream.read(len(self._data), size - len(self._data))
        if len(self._data) < end:
            raise self.wrong(
                f"{what} cannot be read", "a file that stays as it is while it is read"
            )
        return self._data
