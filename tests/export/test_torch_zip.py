"""Torch's archives are read with their checksums before torch, which ignores them, sees them."""

from __future__ import annotations

import io
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoint_files import count_bytes_read

from pocketlm.export.errors import CheckpointError
from pocketlm.export.traced.torch_zip import check_torch_file

ENTRIES = {
    "archive/data.pkl": b"\x80\x02}q\x00." * 9,
    "archive/byteorder": b"little",
    "archive/data/0": bytes(range(256)) * 8,
    "archive/data/1": b"",
    "archive/data/2": b"\x00\x3f" * 999,
    "archive/version": b"3\n",
    "archive/.data/serialization_id": b"0123456789" * 4,
}


class Pipe(io.RawIOBase):
    """Cannot seek: zipfile then writes checksums behind the data, as torch does."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.data += data
        return len(data)


def archive(
    entries: dict[str, bytes] = ENTRIES, *, behind: bool = True, method: int = zipfile.ZIP_STORED
) -> bytes:
    """The entries as torch writes them: stored, the data of each at a multiple of 64 bytes."""
    pipe, file = Pipe(), io.BytesIO()
    with zipfile.ZipFile(pipe if behind else file, "w", method) as out:
        for name, data in entries.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            place = len(pipe.data) if behind else file.tell()
            padding = -(place + 30 + len(name) + 4) % 64
            info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
            with out.open(info, "w") as stream:
                stream.write(data)
    return bytes(pipe.data) if behind else file.getvalue()


def refusal(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        check_torch_file(path)
    message = str(caught.value)
    assert message.startswith(f"{path.name}: ") and "\n" not in message and len(message) < 400
    assert "expected the archive that torch.save writes" in message
    return message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pytorch_model.bin"


@pytest.mark.parametrize("behind", [True, False])
def test_a_sound_archive_passes_and_is_read_once(
    behind: bool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(archive(behind=behind))
    bytes_read = count_bytes_read(monkeypatch)
    check_torch_file(path)
    assert sum(map(len, ENTRIES.values())) < bytes_read() < len(archive()) + 200


@pytest.mark.parametrize("name", [name for name, data in ENTRIES.items() if data])
@pytest.mark.parametrize("behind", [True, False])
def test_a_flipped_bit_names_its_entry(name: str, behind: bool, path: Path) -> None:
    data = bytearray(archive(behind=behind))
    place = data.index(ENTRIES[name]) + len(ENTRIES[name]) // 2
    data[place] ^= 1
    assert f"has other bytes in the entry '{name}' than its CRC-32" in refusal(path, bytes(data))


def test_a_flipped_bit_in_a_large_tensor_is_found(path: Path) -> None:
    weights = random.Random(0).randbytes(2_500_000)
    data = bytearray(archive({"archive/data.pkl": b"x", "archive/data/0": weights}))
    path.write_bytes(data)
    check_torch_file(path)
    data[data.index(weights) + 2_400_000] ^= 0x80
    assert "'archive/data/0'" in refusal(path, bytes(data))


def test_the_64_bit_form_passes_too(path: Path) -> None:
    """As torch writes every archive: 76 bytes more before the end."""
    data = archive()
    end = data[-22:]
    count, size, place = struct.unpack_from("<HII", end, 10)
    record = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, place)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, len(data) - 22, 1)
    path.write_bytes(data[:-22] + record + locator + end)
    check_torch_file(path)
    hostile = bytearray(record)
    struct.pack_into("<Q", hostile, 40, 1 << 40)
    found = refusal(path, data[:-22] + bytes(hostile) + locator + end)
    assert "has a directory of 1,099,511,627,776 bytes" in found


def renamed(data: bytes) -> bytes:
    """Of two entries of one length, the second gets the name of the first in both places."""
    return data.replace(b"archive/data/2", b"archive/data/0")


def overlapping(data: bytes) -> bytes:
    """The directory sends one entry to the place of another."""
    place = data.index(b"PK\1\2")
    places = []
    while data[place : place + 4] == b"PK\1\2":
        places.append(place)
        lengths = struct.unpack_from("<3H", data, place + 28)
        place += 46 + sum(lengths)
    changed = bytearray(data)
    changed[places[4] + 42 : places[4] + 46] = data[places[2] + 42 : places[2] + 46]
    return bytes(changed)


BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "compressed": (lambda: archive(method=zipfile.ZIP_DEFLATED), "compressed or encrypted"),
    "the same name twice": (lambda: renamed(archive()), "has the entry 'archive/data/0' twice"),
    "overlapping": (lambda: overlapping(archive()), "has the entry 'archive/data/"),
    "another name in its place": (
        lambda: archive().replace(b"archive/data/2", b"archive/data/7", 1),
        "has no entry 'archive/data/2' where the directory says",
    ),
    "something before": (lambda: b"PK\3\4 hidden" + archive(), "has the entry 'archive/data.pkl'"),
    "something behind": (lambda: archive() + b"hidden", "does not end with a directory"),
    "a comment": (lambda: archive()[:-2] + b"\x06\x00hidden", "does not end with a directory"),
    "cut off": (lambda: archive()[:-500], "does not end with a directory"),
    "nothing but a signature": (lambda: b"PK\3\4", "does not end with a directory"),
    "no directory": (lambda: b"PK\3\4" + bytes(90) + archive()[-22:], "expected the archive"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_two_readers_could_read_in_two_ways_is_refused(case: str, path: Path) -> None:
    make, problem = BROKEN[case]
    assert problem in refusal(path, make())


def test_any_damage_is_refused_or_outside_what_is_read(path: Path) -> None:
    whole = archive()
    generator = random.Random(0)
    for _ in range(300):
        data = bytearray(whole)
        place = generator.randrange(len(data))
        data[place] ^= 1 << generator.randrange(8)
        path.write_bytes(data)
        try:
            check_torch_file(path)
        except CheckpointError as error:
            assert "\n" not in str(error)
        else:
            with zipfile.ZipFile(io.BytesIO(data)) as opened:
                found = {name: opened.read(name) for name in opened.namelist()}
            assert found == ENTRIES


OLDER = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."


@pytest.mark.parametrize("data", [OLDER, b"", b'{"weight_map": {}}'])
def test_what_is_no_archive_has_no_checksum_to_compare(data: bytes, path: Path) -> None:
    path.write_bytes(data)
    check_torch_file(path)
