"""The checksums of a torch file: a zip archive of stored entries, whose CRC-32 torch never checks.

    PK\\3\\4 header, name, padding, data    for each of archive/data.pkl, archive/data/0, ...
    the central directory: name, place, size and CRC-32 of each
    PK\\5\\6 end of the directory, after 76 bytes of its 64-bit form or none

Whatever is read in two ways by two readers is refused: compression, encryption, a name twice,
entries that overlap, and bytes that belong to none.
Sources: APPNOTE.TXT of PKWARE; ``inline_container.cc`` of PyTorch.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path

from ..errors import CheckpointError
from ..regular_file import RegularFile
from ..strict_json import quoted

ENTRY, END, END64 = b"PK\3\4", b"PK\5\6", b"PK\6\7"
HEADER_BYTES = 30
LARGEST_DESCRIPTOR = 24  # bytes behind the data that say its CRC-32 and size once more
LARGEST_DIRECTORY = 8_000_000  # bytes; an entry takes about 110, and memory for ten times as many
CHUNK_BYTES = 1 << 20
UNREADABLE = (zipfile.BadZipFile, NotImplementedError, OSError)  # what zipfile raises
ENCRYPTED, UTF8 = 1 << 0, 1 << 11  # flags


def check_torch_file(path: Path) -> None:
    """Reads the whole file at ``path``; raises CheckpointError, naming an entry that is damaged.

    A file in torch's older form, which is no archive, has no checksum: nothing is checked then.
    """
    with RegularFile(path, CheckpointError) as file:
        if file.read(0, 4) != ENTRY:  # what torch goes by, too
            return
        try:
            _check_directory_size(file)
            with zipfile.ZipFile(path) as archive:
                entries, end = archive.infolist(), archive.start_dir
            _check_entries(file, entries, end)
        except (*UNREADABLE, ValueError, struct.error) as cause:
            raise CheckpointError(
                f"{path.name}: {cause}, expected the archive that torch.save writes, with its "
                "checksums; the file is damaged or was saved without them: get it again"
            ) from cause


def _check_directory_size(file: RegularFile) -> None:
    """Before zipfile reads it whole. A comment, which torch does not write, could hide the end."""
    size = file.num_bytes()
    tail = file.read(max(0, size - 98), 98)
    if len(tail) < 98 or tail[-22:-18] != END or tail[-2:] != b"\0\0":
        raise ValueError("does not end with a directory of entries")
    (directory,) = struct.unpack_from("<I", tail, 98 - 22 + 12)
    if tail[-42:-38] == END64:
        (directory,) = struct.unpack_from("<Q", tail, 40)
    if directory > LARGEST_DIRECTORY:
        raise ValueError(f"has a directory of {directory:,} bytes")


def _check_entries(file: RegularFile, entries: list[zipfile.ZipInfo], end: int) -> None:
    seen: set[str] = set()
    reached, slack = 0, 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        name = quoted(entry.orig_filename)
        if entry.orig_filename in seen:
            raise ValueError(f"has the entry {name} twice")
        seen.add(entry.orig_filename)
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & ENCRYPTED:
            raise ValueError(f"has the entry {name} compressed or encrypted")
        if not reached <= entry.header_offset <= reached + slack:
            raise ValueError(f"has the entry {name} at byte {entry.header_offset:,}")
        start = _data_start(file, entry)
        if _crc32(file, start, entry.file_size) != entry.CRC:
            raise ValueError(f"has other bytes in the entry {name} than its CRC-32 says")
        reached, slack = start + entry.file_size, LARGEST_DESCRIPTOR
    if not reached <= end <= reached + slack:
        raise ValueError(f"has its directory at byte {end:,}")


def _data_start(file: RegularFile, entry: zipfile.ZipInfo) -> int:
    """From the entry's own header, which must agree with the directory."""
    header = file.read(entry.header_offset, HEADER_BYTES)
    name_bytes: int
    extra_bytes: int
    name_bytes, extra_bytes = struct.unpack_from("<2H", header, HEADER_BYTES - 4)
    start = entry.header_offset + HEADER_BYTES
    name = file.read(start, name_bytes).decode("utf-8" if entry.flag_bits & UTF8 else "cp437")
    if header[:4] != ENTRY or name != entry.orig_filename:
        raise ValueError(f"has no entry {quoted(entry.orig_filename)} where the directory says")
    if entry.compress_size != entry.file_size:
        raise ValueError(f"has the entry {quoted(name)} in two sizes")
    return start + name_bytes + extra_bytes


def _crc32(file: RegularFile, start: int, num_bytes: int) -> int:
    buffer = memoryview(bytearray(min(num_bytes, CHUNK_BYTES)))
    crc, end = 0, start + num_bytes
    for offset in range(start, end, CHUNK_BYTES):
        part = buffer[: min(CHUNK_BYTES, end - offset)]
        if file.read_into(offset, part) != len(part):
            raise ValueError("is cut off")
        crc = zlib.crc32(part, crc)
    return crc
