"""What the files of a checkpoint are, told without reading all of them.

Of each file, in the order given: its name without the folder, its size, pieces of its content, and
when it was written. Where the checkpoint lies plays no part, so that one that was moved, or copied
with its times, is the same. Trusted is that whoever changes a weight and not the size either writes
the file anew, which changes its time in nanoseconds, or touches one of ``PIECES`` places that are
spread over it: two fine-tunes of one model would have to be written in the same nanosecond, and be
equal in all of these places, to be taken for one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from pocketlm.export.errors import CheckpointError
from pocketlm.export.regular_file import RegularFile

PIECES, PIECE_BYTES = 16, 1 << 14  # a file of up to 256 KiB is read whole


def fingerprint(files: Iterable[Path], *, with_times: bool = True) -> str:
    """64 hexadecimal digits; raises CheckpointError for a file that cannot be read.

    ``with_times`` False is for files that are unpacked anew, and so get new times, at every start:
    then names, sizes and pieces tell alone.
    """
    digest = hashlib.sha256()
    for path in files:
        with RegularFile(path, CheckpointError) as file:
            size = file.num_bytes()
            written = path.stat().st_mtime_ns if with_times else None
            digest.update(json.dumps([path.name, size, written]).encode())
            for offset, length in pieces(size):
                digest.update(file.read(offset, length))
    return digest.hexdigest()


def pieces(size: int) -> list[tuple[int, int]]:
    """(offset, length) of what is read of a file with ``size`` bytes: first, last, and between."""
    if size <= PIECES * PIECE_BYTES:
        return [(0, size)]
    last = size - PIECE_BYTES
    return [(last * i // (PIECES - 1), PIECE_BYTES) for i in range(PIECES)]
