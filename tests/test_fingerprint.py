"""The fingerprint of files: the same wherever they lie, another after every change it promises."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from pocketlm.export.errors import CheckpointError
from pocketlm.models.fingerprint import PIECE_BYTES, PIECES, fingerprint, pieces

LARGE = 3 * PIECES * PIECE_BYTES + 1
MIDDLE = pieces(LARGE)[PIECES // 2][0]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """A small file, and one that is not read whole, both of a time with nanoseconds."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_bytes(b"{}")
    (folder / "model.safetensors").write_bytes(bytes(LARGE))
    files = [folder / "config.json", folder / "model.safetensors"]
    for file in files:
        os.utime(file, ns=(0, 1_700_000_000_123_456_789))
    return files


def changed(files: list[Path], offset: int) -> str:
    """The fingerprint with one byte of the large file changed, and its time set back."""
    status = files[1].stat()
    content = bytearray(files[1].read_bytes())
    content[offset] ^= 1
    files[1].write_bytes(content)
    os.utime(files[1], ns=(0, status.st_mtime_ns))
    return fingerprint(files)


def test_the_place_plays_no_part(files: list[Path], tmp_path: Path) -> None:
    before = fingerprint(files)
    copy = shutil.copytree(files[0].parent, tmp_path / "copy")
    assert fingerprint([copy / file.name for file in files]) == before
    moved = files[0].parent.rename(tmp_path / "moved")
    assert fingerprint([moved / file.name for file in files]) == before


@pytest.mark.parametrize("offset", [0, PIECE_BYTES - 1, MIDDLE, LARGE - PIECE_BYTES, LARGE - 1])
def test_a_byte_in_a_piece_is_seen_though_size_and_time_are_the_same(
    files: list[Path], offset: int
) -> None:
    before = fingerprint(files)
    assert changed(files, offset) != before
    assert changed(files, offset) == before  # changed back


def test_a_nanosecond_a_byte_more_another_name_and_order_are_seen(files: list[Path]) -> None:
    seen = {fingerprint(files), fingerprint(files[::-1]), fingerprint(files[:1])}
    os.utime(files[1], ns=(0, files[1].stat().st_mtime_ns + 1))
    seen.add(fingerprint(files))
    files[1].write_bytes(bytes(LARGE + 1))
    seen.add(fingerprint(files))
    files[1] = files[1].rename(files[1].with_name("other"))
    seen.add(fingerprint(files))
    assert len(seen) == 6


def test_without_times_only_content_is_seen(files: list[Path]) -> None:
    before = fingerprint(files, with_times=False)
    os.utime(files[0])
    assert fingerprint(files, with_times=False) == before
    files[0].write_bytes(b"[]")
    assert fingerprint(files, with_times=False) != before


@pytest.mark.parametrize("size", [0, 1, PIECES * PIECE_BYTES, PIECES * PIECE_BYTES + 1, 10**12])
def test_pieces_lie_in_the_file_from_its_first_to_its_last_byte(size: int) -> None:
    found = pieces(size)
    assert found[0][0] == 0 and sum(found[-1]) == size
    assert all(a[0] < b[0] for a, b in zip(found, found[1:], strict=False))
    assert sum(length for _, length in found) <= min(size, PIECES * PIECE_BYTES)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="'gone' cannot be opened"):
        fingerprint([tmp_path / "gone"])
