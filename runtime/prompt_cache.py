"""A file with what was computed of a text, so that nothing of it is computed again.

    0   magic    8 bytes  "pocketkv"
    8   version  uint32
    12  header   uint32   bytes of the header
    16  size     uint64   bytes of the whole file
    24  header            JSON: whose it is, and how much there is: see ``_Header``
    .   token ids         int64 (T,)
    .   logits            float32 (V,), if the header says so
    .   keys, values      (K, T, E) of every layer's keys, then its values, in the cache's own type
    .   checksum uint32   CRC-32 of all before it

Numbers are little-endian. Each part begins at a multiple of 64 bytes, with zeros before it, so that
all of them can be used where they lie in memory. T tokens, K key/value heads, E head size, V
vocabulary. A file is replaced as a whole or not at all.

The checksum is to find damage, not forgery: it reads ten times as fast as a SHA-256 where a
processor has no instructions for that.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import mmap
import os
import struct
import zlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..export.errors import RequestError
from ..export.folder import ModelFolder
from ..export.manifest import DATA_FILE, PREFILL_DATA_FILE
from ..export.output_file import OutputFile
from .chunks import Chunked
from .engine import onnxruntime
from .kv import GRAPHS, KV_CACHES
from .prefill_choice import GRAPHS as PREFILL_GRAPHS
from .prefill_choice import INT8, NONE
from .prefix import Prefix, prompt_prefix
from .sequence import Sequence
from .session import Session

MAGIC = b"pocketkv"
VERSION = 1
ALIGNMENT = 64
_START = struct.Struct("<8sIIQ")
_CHECKSUM = struct.Struct("<I")
REMOVE = "remove the file, or name another"


@dataclass(frozen=True)
class Owner:
    """What a file was computed with: with anything else, other numbers would come out."""

    weights: str  # SHA-256 of the file of weights
    kv: str  # fp32 or int8
    graph: str  # SHA-256 of the graph's
    prefill: str  # SHA-256 of what computes prompts, if that is something else; or none
    provider: str
    onnxruntime: str  # its version
    layers: int
    kv_heads: int
    head_size: int
    vocabulary: int
    context_length: int
    dtype: str  # of a key or value

    @classmethod
    def of(cls, folder: ModelFolder, session: Session) -> Owner:
        """That of the files that ``session``, which has ``folder`` open, can use."""
        shape = session.shape
        return cls(
            weights=folder.files[DATA_FILE].sha256,
            kv=session.kv,
            graph=folder.files[folder.graph(GRAPHS[session.kv]).file].sha256,
            prefill=_prefill_digest(folder, session),
            provider=session.place.name,
            onnxruntime=onnxruntime.__version__,
            layers=shape.num_layers,
            kv_heads=shape.kv_heads,
            head_size=shape.head_size,
            vocabulary=shape.vocab_size,
            context_length=shape.context_length,
            dtype=session.cache_dtype.name,
        )


def _prefill_digest(folder: ModelFolder, session: Session) -> str:
    if session.prefill == NONE:
        return NONE
    names = folder.graph(PREFILL_GRAPHS[session.kv]).file, PREFILL_DATA_FILE
    return hashlib.sha256("".join(folder.files[name].sha256 for name in names).encode()).hexdigest()


WORDS = {
    "weights": "of a model with the weights",
    "kv": "with a KV cache in",
    "graph": "of a graph with the digest",
    "prefill": "of the weights for prompts",
    "provider": "of the provider",
    "onnxruntime": "of ONNX Runtime",
}


@dataclass(frozen=True)
class _Header:
    """What follows: ``tokens`` is T; the others are those of ``Chunked``."""

    owner: dict[str, Any]  # without a ``prefill`` of none, which older files do not say
    tokens: int
    ends: list[int]
    logits: bool
    text_length: int = 0  # older files do not say it


class PromptCacheFile:
    """What a file holds of prompts, and its new content; ``Prefixes`` for one generation.

    path     where it lies
    reused   tokens of the prompt that were found in it
    written  whether it was written anew
    """

    def __init__(self, path: str | os.PathLike[str], owner: Owner) -> None:
        """Looks whether it can be written where there is none; RequestError where not."""
        self.path = Path(path)
        self.reused = 0
        self.written = False
        self._owner = owner
        self._output = None if self.path.exists() else OutputFile(path)
        self._held = 0

    def find(self, prompt: Chunked) -> Prefix | None:
        """What it holds of ``prompt``; RequestError for a file that is of no use.

        That is one that is damaged, or was computed with something else.
        """
        if self._output is not None:
            return None
        prefix = read_prefix(self.path, self._owner)
        self.reused = prefix.computed.shared(prompt)
        self._held = _worth(prefix.computed, self.reused)
        return prefix.first(self.reused)

    def keep(self, sequence: Sequence) -> None:
        """Writes it anew if ``sequence`` has computed more of its prompt than it holds.

        Not if another one wrote it meanwhile. Raises StorageError where the disk is full,
        RequestError where it cannot be replaced.
        """
        computed = sequence.computed
        end = computed.ends[-1] if computed.ends else 0
        if _worth(computed, end) <= self._held:
            return
        prefix = prompt_prefix(sequence)
        if prefix is not None:
            output = self._output or OutputFile(self.path, lambda data: data[:8] == MAGIC)
            with contextlib.suppress(RequestError):  # meanwhile another generation wrote it
                output.write(prefix_bytes(prefix, self._owner))
                self.written = True


def _worth(computed: Chunked, end: int) -> int:
    """Of two that hold as many tokens the one with the logits after them saves more."""
    known = end > 0 and computed.logits is not None and end == computed.ends[-1]
    return 2 * end + known


def prefix_bytes(prefix: Prefix, owner: Owner) -> bytes:
    """The content of a file."""
    computed = prefix.computed
    logits = computed.logits
    header = _Header(
        {name: said for name, said in asdict(owner).items() if (name, said) != ("prefill", NONE)},
        len(computed.token_ids),
        [int(end) for end in computed.ends],
        logits is not None,
        computed.text_length,
    )
    said = json.dumps(asdict(header)).encode()
    arrays: list[NDArray[Any]] = [np.asarray(computed.token_ids, "<i8"), *prefix.values]
    if logits is not None:
        arrays.insert(1, logits.astype("<f4", copy=False))
    parts = [b"", said]
    at = _START.size + len(said)
    for array in arrays:
        gap = -at % ALIGNMENT
        parts += [bytes(gap), np.ascontiguousarray(array).tobytes()]
        at += gap + array.nbytes
    parts[0] = _START.pack(MAGIC, VERSION, len(said), at + _CHECKSUM.size)
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    return b"".join([*parts, _CHECKSUM.pack(checksum)])


def read_prefix(path: Path, owner: Owner) -> Prefix:
    """What ``prefix_bytes`` wrote, where it lies: the file is mapped, not read.

    Raises RequestError for a file that is none, damaged, or of another ``owner``.
    """
    return parse(_mapped(path), path, owner)


def parse(data: mmap.mmap | bytes, path: Path, owner: Owner) -> Prefix:
    """What the content ``data`` of a file says; see ``read_prefix``."""
    if data[:8] != MAGIC:
        raise RequestError(
            f"{path}: found {bytes(data[:8])!r} at its beginning, expected {MAGIC!r}: a prompt "
            "cache of pocketlm's; name another file"
        )
    if len(data) < _START.size:
        raise _damaged(path, f"{len(data)} bytes, expected {_START.size} and more")
    _, version, header_bytes, size = _START.unpack_from(data)
    if version != VERSION:
        raise RequestError(
            f"{path}: found a prompt cache of version {version}, expected {VERSION}; {REMOVE}"
        )
    if len(data) != size:
        raise _damaged(path, f"{len(data):,} bytes, expected {size:,}")
    checksum = zlib.crc32(memoryview(data)[: -_CHECKSUM.size])
    (expected,) = _CHECKSUM.unpack_from(data, size - _CHECKSUM.size)
    if checksum != expected:
        raise _damaged(path, f"the checksum {checksum:08x}, expected {expected:08x}")
    end = _START.size + header_bytes
    header = _header(path, bytes(data[_START.size : end]))
    _check_owner(path, header.owner, owner)
    return _prefix(path, data, end, header, owner)


def _mapped(path: Path) -> mmap.mmap | bytes:
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                return b""
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as cause:
        raise RequestError(
            f"{path}: cannot be read ({getattr(cause, 'strerror', None) or cause}), expected a "
            "prompt cache, or nothing there; name another"
        ) from cause


def _header(path: Path, said: bytes) -> _Header:
    try:
        header = _Header(**json.loads(said))
        numbers = [header.tokens, *header.ends]
        ends = [0, *header.ends]
        well = all(type(number) is int and number > 0 for number in numbers)
        well = well and all(one < two for one, two in zip(ends, ends[1:], strict=False))
        well = well and ends[-1] <= header.tokens
        well = well and type(header.text_length) is int and header.text_length >= 0
        well = well and type(header.logits) is bool and (bool(header.ends) or not header.logits)
    except (ValueError, TypeError, RecursionError):
        well = False
    if not well:
        raise _damaged(path, f"the header {said[:80]!r}, expected that of a prompt cache")
    return header


def _check_owner(path: Path, found: object, owner: Owner) -> None:
    expected = asdict(owner)
    found = {"prefill": NONE, **found} if isinstance(found, dict) else {}
    if found.keys() != expected.keys():
        raise _damaged(path, f"{str(found):.80} for its owner, expected {', '.join(expected)}")
    for field in fields(Owner):
        one, other = found[field.name], expected[field.name]
        if one != other or type(one) is not type(other):
            what = WORDS.get(field.name, f"with {field.name}")
            raise RequestError(
                f"{path}: found a prompt cache {what} {_short(one)}, expected {_short(other)}; use "
                f"what it was made with{_to_type(field.name, one, other)}, or {REMOVE}"
            )


def _to_type(field: str, found: object, expected: object) -> str:
    """What chooses the same as the file's owner did, where one option does."""
    if field == "kv" and found in KV_CACHES:
        value = found
    elif field == "prefill" and NONE in (found, expected):
        value = NONE if found == NONE else INT8
    else:
        return ""
    return f' (--{field} {value}; in Python: {field}="{value}")'


def _prefix(path: Path, data: mmap.mmap | bytes, at: int, header: _Header, owner: Owner) -> Prefix:
    size = (owner.kv_heads, header.tokens, owner.head_size)
    parts: list[tuple[str, tuple[int, ...]]] = [("<i8", (header.tokens,))]
    if header.logits:
        parts.append(("<f4", (owner.vocabulary,)))
    parts += [(owner.dtype, size)] * (2 * owner.layers)
    places = []
    for dtype, shape in parts:
        at += -at % ALIGNMENT
        places.append((dtype, shape, at))
        at += math.prod(shape) * np.dtype(dtype).itemsize
    if at + _CHECKSUM.size != len(data):
        raise _damaged(path, f"{len(data):,} bytes, expected {at + _CHECKSUM.size:,} for its parts")
    ids, *arrays = (
        np.frombuffer(data, dtype, math.prod(shape), at).reshape(shape)
        for dtype, shape, at in places
    )
    logits = arrays.pop(0) if header.logits else None
    computed = Chunked(
        tuple(ids.tolist()), tuple(header.ends), logits, text_length=header.text_length
    )
    return Prefix(computed, arrays)


def _short(value: object) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 else text[:40]


def _damaged(path: Path, found: str) -> RequestError:
    return RequestError(f"{path}: found {found}; the file is damaged - {REMOVE}")
