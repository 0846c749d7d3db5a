"""The GGUF reader: refuses every lying file, and reads what the package ``gguf`` reads.

Levels: hostile headers (a table), hostile bytes (mutations, against the package), values of every
type of tensor, files in parts.
"""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import count_bytes_read
from gguf_files import (
    ALIGNMENT,
    BF16,
    F16,
    F32,
    Raw,
    arranged,
    described,
    gguf,
    gguf_bytes,
    header,
    info,
    stored,
    text,
    value,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_checkpoints import llama_config, llama_tensors

from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.errors import CheckpointError, MissingExtraError
from pocketlm.export.gguf import tensors as gguf_tensors
from pocketlm.export.gguf.header import GGUFFile, read_header

EIGHT = stored(np.arange(8, dtype=np.float32))  # 32 bytes


def one(offset: int = 0, kind: int = F32, shape: tuple[int, ...] = (8,), data: int = 32) -> bytes:
    """A file with the tensor 'w'."""
    return header({}, info("w", shape, kind, offset), num_tensors=1) + bytes(data)


def two(second: int, name: str = "b", data: int = 64) -> bytes:
    """A file with a tensor 'a' of 32 bytes and one more."""
    infos = info("a", (8,), F32, 0) + info(name, (8,), F32, second)
    return header({}, infos, num_tensors=2) + bytes(data)


def entry(key: str | bytes, given: Any) -> bytes:
    return text(key) + value(given)


def array(kind: int, count: int, data: bytes = b"") -> Raw:
    return Raw(struct.pack("<IIQ", 9, kind, count) + data)


def scalar(kind: int, data: bytes = b"") -> Raw:
    return Raw(struct.pack("<I", kind) + data)


PLAIN = gguf_bytes({"general.name": "x"}, {"w": EIGHT})

REFUSED: dict[str, tuple[bytes, str]] = {
    # The beginning
    "magic only": (b"GGUF", "the version would end at byte 8, expected at most 4, where the file"),
    "no counts": (header({})[:15], "the number of tensors would end at byte 16"),
    "version 1": (header({}, version=1), "is GGUF of version 1, expected 2 or 3; convert it"),
    "version 4": (header({}, version=4), "is GGUF of version 4, expected 2 or 3"),
    "version 0": (header({}, version=0), "is GGUF of version 0"),
    "big-endian": (header({}, version=3 << 24), "is of a big-endian machine, expected little-end"),
    "tensors without end": (header({}, num_tensors=2**63), "has 9,223,372,036,854,775,808 tensors"),
    "entries without end": (header({}, num_entries=2**64 - 1), "entries by its header, expected"),
    "more entries than there are": (header({}, num_entries=9), "where the file ends"),
    "more tensors than there are": (header({}, num_tensors=9), "where the file ends"),
    # Entries
    "key of 2^63 bytes": (header(struct.pack("<Q", 2**63)), "key of an entry has 9,223,372,036"),
    "key of 300 bytes": (header(entry("k" * 300, 1)), "has 300 bytes, expected at most 256"),
    "key not UTF-8": (header(entry(b"\xff", 1)), "bytes b'\\xff', which are not UTF-8"),
    "key of two lines": (header(entry("a\nb", scalar(13))), "'a\\nb' has a value of the type 13"),
    "the same key twice": (
        header(entry("k", 1) + entry("k", 2), num_entries=2),
        "has the entry 'k' twice, expected each once",
    ),
    "unknown type": (header(entry("k", scalar(13))), "'k' has a value of the type 13, expected on"),
    "type of 2^32 - 1": (header(entry("k", scalar(2**32 - 1))), "of the type 4,294,967,295"),
    "number cut off": (header(entry("k", scalar(10, b"12")))[:40], "'k' would end at byte"),
    "truth value 2": (
        header(entry("k", scalar(7, b"\2"))),
        "'k' has the truth value 2, expected 0",
    ),
    "text past the end": (header(entry("k", scalar(8, struct.pack("<Q", 99)))), "'k' would end at"),
    "text of 2^64 - 1": (
        header(entry("k", scalar(8, struct.pack("<Q", 2**64 - 1)))),
        "'k' would end at byte 18,446,744,073,709,551,660",
    ),
    "text not UTF-8": (header(entry("k", scalar(8, text(b"\xc3")))), "which are not UTF-8"),
    # Arrays
    "array of arrays": (header(entry("k", array(9, 1))), "an array of values of the type 9"),
    "array in an array": (
        header(entry("k", array(9, 1, struct.pack("<IQ", 4, 1) + b"1234"))),
        "an array of values of the type 9",
    ),
    "array of an unknown type": (header(entry("k", array(77, 1))), "of the type 77, expected one"),
    "numbers without end": (header(entry("k", array(4, 2**62))), "'k' would end at byte"),
    "bytes without end": (header(entry("k", array(0, 2**64 - 1))), "where the file ends"),
    "texts without end": (
        header(entry("k", array(8, 2**64 - 1))),
        "'k' makes 18,446,744,073,709,551,615 texts, expected at most 1,200,000 in a header",
    ),
    "texts over the cap": (header(entry("k", array(8, 1_200_001))), "makes 1,200,001 texts"),
    "texts past the end": (header(entry("k", array(8, 3, text("a")))), "'k' would end at byte"),
    "truth values of 7": (header(entry("k", array(7, 2, b"\1\7"))), "has the truth value 7"),
    # Alignment
    "alignment 0": (header({"general.alignment": 0}), "has a general.alignment of 0, expected a p"),
    "alignment 3": (header({"general.alignment": 3}), "general.alignment of 3, expected a power"),
    "alignment of 2^31": (header({"general.alignment": 2**31}), "general.alignment of 2147483648"),
    "alignment is true": (header({"general.alignment": True}), "general.alignment of True"),
    "alignment is a text": (header({"general.alignment": "32"}), "general.alignment of '32'"),
    # Tensors
    "name of 2^40 bytes": (
        header({}, struct.pack("<Q", 2**40), num_tensors=1),
        "the name of a tensor has 1,099,511,627,776 bytes, expected at most 256",
    ),
    "name not UTF-8": (header({}, info(b"\x80", (8,), 0, 0), num_tensors=1), "are not UTF-8"),
    "five dimensions": (
        one(shape=(1, 1, 1, 1, 8)),
        "tensor 'w' has 5 dimensions, expected at most",
    ),
    "2^32 - 1 dimensions": (
        header({}, text("w") + struct.pack("<I", 2**32 - 1), num_tensors=1),
        "tensor 'w' has 4,294,967,295 dimensions",
    ),
    "dimension 0": (one(shape=(0,)), "tensor 'w' has the shape (0,), expected sizes of 1 or more"),
    "dimension of 2^64 - 1": (one(shape=(2**64 - 1,)), "tensor 'w' has the shape"),
    "product of 2^64": (one(shape=(2**32, 2**32)), "tensor 'w' has the shape"),
    "unknown tensor type": (
        one(kind=99),
        "w.gguf: tensor 'w' has the type 99, expected one of F32",
    ),
    "type without values": (one(kind=15), "tensor 'w' has the type Q8_K (15), expected one of"),
    "type that was removed": (one(kind=4), "tensor 'w' has the type 4, expected one of F32, F16"),
    "half a block": (one(kind=2, shape=(2, 40)), "rows of 40 values, expected whole blocks of 32"),
    "the same tensor twice": (two(32, "a"), "has the tensor 'a' twice, expected each once"),
    # Places
    "offset of 2^64 - 32": (one(offset=2**64 - 32), "tensor 'w' begins at byte 18,446,744,073,709"),
    "offset not aligned": (one(offset=8), "tensor 'w' begins at byte 8 of the data, expected 0"),
    "first one late": (one(offset=32, data=64), "begins at byte 32 of the data, expected 0, where"),
    "overlap": (two(0), "tensor 'b' begins at byte 0 of the data, expected 32, where the tensor"),
    "hole": (two(64, data=96), "tensor 'b' begins at byte 64 of the data, expected 32"),
    "cut off by a byte": (PLAIN[:-1], "has 31 bytes of data, expected 32 by its header; it is cut"),
    "all data missing": (one(data=0), "has 0 bytes of data, expected 32 by its header"),
    "something behind": (
        one(data=33),
        "33 bytes of data, expected 32 by its header; there is some",
    ),
    "twice in one file": (PLAIN * 2, "there is something behind its end"),
    "a terabyte": (one(shape=(2**20, 2**18)), "expected 1,099,511,627,776 by its header"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str, tmp_path: Path) -> None:
    data, problem = REFUSED[case]
    (tmp_path / "w.gguf").write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as caught:
            read_header(tmp_path / "w.gguf")
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert message.startswith("w.gguf") and problem in message, message
    assert ", expected " in message and "; " in message
    assert "\n" not in message and len(message) < 600


def test_every_beginning_of_a_file_is_refused(tmp_path: Path) -> None:
    entries = {"a": 1, "b": "text", "c": ["x", "yz"], "d": [1.5, 2.5], "e": True}
    data = gguf_bytes(entries, {"w": EIGHT, "v": EIGHT})
    file = tmp_path / "w.gguf"
    for end in range(4, len(data)):
        file.write_bytes(data[:end])
        with pytest.raises(CheckpointError):
            read_header(file)
    file.write_bytes(data)
    assert read_header(file).metadata["c"] == ["x", "yz"]


ACCEPTED: dict[str, bytes] = {
    "plain": PLAIN,
    "version 2": PLAIN.replace(struct.pack("<I", 3), struct.pack("<I", 2), 1),
    "nothing": header({}),
    "no padding at the end": gguf_bytes({}, {"w": stored(np.ones(3, np.float32))})[:-20],
    "every kind of value": header(
        {
            "u8": scalar(0, b"\xff"),
            "i8": scalar(1, b"\xff"),
            "u16": scalar(2, b"\xff\xff"),
            "i16": scalar(3, b"\xff\xff"),
            "u32": 7,
            "i32": scalar(5, b"\xff\xff\xff\xff"),
            "f32": 1.5,
            "bool": True,
            "text": "é😀",
            "": "",
            "u64": scalar(10, b"\xff" * 8),
            "i64": scalar(11, b"\xff" * 8),
            "f64": scalar(12, struct.pack("<d", 0.1)),
            "texts": ["a", "", "bc"],
            "numbers": [1, 2, 3],
            "none": array(4, 0),
            "no texts": array(8, 0),
            "flags": array(7, 3, b"\0\1\0"),
        }
    ),
    "other alignment": header({"general.alignment": 64}, info("w", (8,), F32, 0), num_tensors=1)
    + bytes(64),
    "four dimensions": gguf_bytes({}, {"w": ((1, 2, 1, 4), F32, bytes(32))}),
    "types": gguf_bytes(
        {},
        {
            "f16": ((3,), F16, bytes(6)),
            "bf16": ((3,), BF16, bytes(6)),
            "q4_0": ((2, 64), 2, bytes(72)),
            "q6_k": ((1, 256), 14, bytes(210)),
            "i32": ((2,), 26, bytes(8)),
        },
    ),
}
# The package wants at least 64 bytes behind a header of other alignment: what is there is padding.


def check_against_package(file: Path, found: GGUFFile) -> None:
    """Asserts that the package reads the same entries, names, shapes, places and types."""
    reader = gguf.GGUFReader(file)
    fields = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    assert set(found.metadata) == set(fields)
    for key, expected in fields.items():
        ours = found.metadata[key]
        ours = ours.tolist() if isinstance(ours, np.ndarray) else ours
        # It takes a list of nothing for a missing value.
        assert ours == expected or (not ours and not expected) or ours != ours, key
    assert list(found.tensors) == [tensor.name for tensor in reader.tensors]
    for tensor in reader.tensors:
        ours = found.tensors[tensor.name]
        assert ours.shape == tuple(int(size) for size in tensor.shape[::-1])
        assert (ours.kind.name, ours.offset) == (tensor.tensor_type.name, tensor.data_offset)
        assert ours.num_bytes == tensor.n_bytes


@pytest.mark.parametrize("case", ACCEPTED)
def test_reads_what_the_package_reads(case: str, tmp_path: Path) -> None:
    file = tmp_path / "w.gguf"
    file.write_bytes(ACCEPTED[case])
    check_against_package(file, read_header(file))


def seed_file() -> bytes:
    config = llama_config("llama", num_hidden_layers=1, vocab_size=32, hidden_size=32)
    weights = {k: stored(v) for k, v in arranged(config, llama_tensors(config)).items()}
    tokens = {"tokenizer.ggml.tokens": ["a", "b", "ab"], "tokenizer.ggml.merges": ["a b"]}
    return gguf_bytes(described(config) | tokens, weights)


SEED = seed_file()
HEADER_END = SEED.index(b"blk.0.ffn_down.weight") + 64
INTERESTING = [0, 1, 8, 9, 32, 255, 2**16, 2**31, 2**32 - 1, 2**63, 2**64 - 1]


@st.composite
def mutants(draw: st.DrawFn) -> bytes:
    """The seed with some of its header changed, cut, doubled or moved."""
    data = bytearray(SEED)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, HEADER_END))
        match draw(st.sampled_from(["byte", "u32", "u64", "cut", "double", "drop"])):
            case "byte":
                data[place] = draw(st.integers(0, 255))
            case "u32":
                number = draw(st.sampled_from(INTERESTING)) % 2**32
                data[place : place + 4] = struct.pack("<I", number)
            case "u64":
                data[place : place + 8] = struct.pack("<Q", draw(st.sampled_from(INTERESTING)))
            case "cut":
                del data[place:]
            case "double":
                data[place:place] = data[place : place + draw(st.integers(1, 40))]
            case "drop":
                del data[place : place + draw(st.integers(1, 40))]
        if len(data) <= HEADER_END:
            break
    return bytes(data)


@given(mutants())
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_a_mutant_is_refused_in_a_line_or_read_as_by_the_package(
    tmp_path: Path, data: bytes
) -> None:
    file = tmp_path / "w.gguf"
    file.write_bytes(data)
    try:
        found = read_header(file)
    except CheckpointError as error:
        assert "\n" not in str(error) and len(str(error)) < 700
        return
    check_against_package(file, found)
    try:
        checkpoint = open_checkpoint(file)
        if checkpoint.tokenizer is not None:
            checkpoint.tokenizer.read()
        for tensor in checkpoint.tensors.values():
            tensor.read()
    except CheckpointError as error:
        assert "\n" not in str(error) and len(str(error)) < 1200


# --- values -------------------------------------------------------------------------------------

KINDS = {
    kind.name: kind
    for kind in gguf.GGMLQuantizationType
    if int(kind) not in gguf_tensors.PLAIN and int(kind) in gguf_tensors._block_types()
}


def random_blocks(kind: gguf.GGMLQuantizationType, rows: int, row: int) -> np.ndarray[Any, Any]:
    """(rows, bytes): any bytes whose values are finite."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(int(kind)).integers(0, 256, (rows * row // block, size), np.uint8)
    with np.errstate(all="ignore"):
        values = gguf.dequantize(raw, kind).reshape(len(raw), -1)
    raw[~np.isfinite(values).all(axis=1)] = 0
    return raw.reshape(rows, -1)


def test_every_type_that_people_have_is_known() -> None:
    named = {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"}
    assert KINDS.keys() >= named | {"IQ4_NL", "IQ4_XS", "IQ3_S", "IQ2_XXS", "IQ1_M"}


@pytest.mark.parametrize("name", KINDS)
def test_rows_of_every_type_are_those_of_the_package(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, rows, row = KINDS[name], 7, 768
    raw = random_blocks(kind, rows, row)
    file = tmp_path / "w.gguf"
    file.write_bytes(gguf_bytes({}, {"w": ((rows, row), int(kind), raw.tobytes())}))
    monkeypatch.setattr(gguf_tensors, "STEP", 1000)  # several steps
    tensor = read_header(file).tensors["w"].tensor("w")
    expected = gguf.dequantize(raw, kind)
    assert (tensor.quantized, tensor.dtype, tensor.num_bytes) == (name, "float32", raw.size)
    for start, stop in ((0, rows), (0, 1), (2, 5), (6, 7)):
        found = tensor.rows(start, stop)
        assert found.dtype == np.float32 and found.flags.c_contiguous
        np.testing.assert_array_equal(found, expected[start:stop])


def test_blocks_are_read_by_their_layout(tmp_path: Path) -> None:
    def f16(*values: float) -> bytes:
        return np.array(values, "<f2").tobytes()

    nibbles = bytes(range(0xF0, 0x100))  # low nibbles 0 … 15, high ones all 15
    signed = np.arange(-16, 16, dtype=np.int8).tobytes()
    tensors = {
        "q4_0": ((1, 32), 2, f16(0.5) + nibbles),
        "q4_1": ((1, 32), 3, f16(0.5, -3) + nibbles),
        "q8_0": ((2, 32), 8, f16(0.25) + signed + f16(-2) + signed),
        "vector": ((64,), 8, f16(1) + signed + f16(-2) + signed),
    }
    file = tmp_path / "w.gguf"
    file.write_bytes(gguf_bytes({}, tensors))
    found = {name: stored.tensor(name) for name, stored in read_header(file).tensors.items()}
    steps = np.arange(16)
    assert found["q4_0"].read().tolist() == [[*(0.5 * (steps - 8)), *[3.5] * 16]]
    assert found["q4_1"].read().tolist() == [[*(0.5 * steps - 3), *[4.5] * 16]]
    values = np.arange(-16, 16)
    assert found["q8_0"].read().tolist() == [(0.25 * values).tolist(), (-2 * values).tolist()]
    assert found["vector"].rows(30, 35).tolist() == [14, 15, 32, 30, 28]  # of two blocks


@pytest.mark.parametrize("kind", [F32, F16, BF16])
def test_plain_numbers_need_no_package(
    kind: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.linspace(-2, 2, 24, dtype=np.float32).reshape(4, 6)
    file = tmp_path / "w.gguf"
    file.write_bytes(gguf_bytes({}, {"w": stored(values, kind)}))
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    gguf_tensors._block_types.cache_clear()
    tensor = read_header(file).tensors["w"].tensor("w")
    assert tensor.quantized is None
    np.testing.assert_allclose(tensor.read(), values, rtol=2**-8)


def test_without_the_package_blocks_name_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "w.gguf").write_bytes(one(kind=2, shape=(1, 32), data=32))
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    gguf_tensors._block_types.cache_clear()
    with pytest.raises(MissingExtraError, match=r'pip install "pocketlm\[gguf\]"'):
        read_header(tmp_path / "w.gguf")


@pytest.mark.parametrize("bits", [0x7E00, 0x7C00, 0xFC00])  # NaN, infinity and minus infinity
def test_refuses_values_that_are_not_finite(bits: int, tmp_path: Path) -> None:
    raw = struct.pack("<H", bits) + b"\x11" * 32
    file = tmp_path / "w.gguf"
    file.write_bytes(gguf_bytes({}, {"w": ((1, 32), 8, raw)}))
    with pytest.raises(CheckpointError, match=r"^w.gguf: tensor 'w' holds -?(nan|inf), expected"):
        read_header(file).tensors["w"].tensor("w").read()


def test_a_file_that_changes_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "w.gguf"
    file.write_bytes(one(kind=8, shape=(1, 32), data=64))
    tensor = read_header(file).tensors["w"].tensor("w")
    file.write_bytes(PLAIN)
    with pytest.raises(CheckpointError, match="bytes now, expected .* as when it was opened"):
        tensor.read()


def test_rows_of_a_large_tensor_take_the_memory_of_those_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """32,000 × 4096 in Q4_0, in a file that takes no space on disk."""
    rows, row = 32_000, 4096
    file = tmp_path / "w.gguf"
    file.write_bytes(one(kind=2, shape=(rows, row), data=0))
    size = rows * row // 32 * 18
    with open(file, "ab") as stream:
        stream.truncate(file.stat().st_size + size)
    read = count_bytes_read(monkeypatch)
    tensor = read_header(file).tensors["w"].tensor("w")
    tracemalloc.start()
    found = tensor.rows(31_000, 31_256)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.shape == (256, row) and found.nbytes == 4 << 20
    assert peak < found.nbytes + 6_000_000
    assert read() < 256 * row // 32 * 18 + 2_000_000


# --- parts --------------------------------------------------------------------------------------


def write_parts(folder: Path, count: int = 3, **changed: Any) -> Path:
    """A Llama in parts, as llama.cpp's program splits it; returns the first."""
    config = llama_config("llama")
    weights = {k: stored(v) for k, v in arranged(config, llama_tensors(config)).items()}
    names = list(weights)
    for i in range(count):
        part = names[len(names) * i // count : len(names) * (i + 1) // count]
        entries = {
            "split.no": Raw(struct.pack("<IH", 2, i)),
            "split.count": Raw(struct.pack("<IH", 2, count)),
            "split.tensors.count": Raw(struct.pack("<Ii", 5, len(weights))),
        }
        if i == 0:
            entries |= described(config)
        entries |= changed.get(f"of{i}", {})
        file = folder / f"m-{i + 1:05}-of-{count:05}.gguf"
        file.write_bytes(gguf_bytes(entries, {name: weights[name] for name in part}))
    return folder / f"m-00001-of-{count:05}.gguf"


def test_parts_are_one_checkpoint(tmp_path: Path) -> None:
    first = write_parts(tmp_path)
    found = open_checkpoint(first)
    assert [file.name for file in found.files] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    tensors = llama_tensors(llama_config("llama"))
    assert found.tensors.keys() == tensors.keys()
    for name, values in tensors.items():
        np.testing.assert_array_equal(found.tensors[name].read(), values)


def test_another_part_names_the_first(tmp_path: Path) -> None:
    first = write_parts(tmp_path)
    with pytest.raises(
        CheckpointError, match="is part 00002 of 3, expected the first; name m-0000"
    ):
        open_checkpoint(first.with_name("m-00002-of-00003.gguf"))


def test_missing_and_wrong_parts_are_named(tmp_path: Path) -> None:
    first = write_parts(tmp_path)
    last = first.with_name("m-00003-of-00003.gguf")
    data = last.read_bytes()
    last.unlink()
    with pytest.raises(CheckpointError, match="found no m-00003-of-00003.gguf beside it, expected"):
        open_checkpoint(first)
    last.write_bytes(first.with_name("m-00002-of-00003.gguf").read_bytes())
    with pytest.raises(CheckpointError, match="m-00003-of-00003.gguf: split.no is '1', expected 2"):
        open_checkpoint(first)
    last.write_bytes(data)
    renamed = first.rename(tmp_path / "first.gguf")
    with pytest.raises(CheckpointError, match="its name to end in -00001-of-00003.gguf"):
        open_checkpoint(renamed)


def test_parts_of_two_models_are_refused(tmp_path: Path) -> None:
    first = write_parts(tmp_path, of0={"split.tensors.count": 99})
    with pytest.raises(CheckpointError, match="split.tensors.count is '99', expected 21, as many"):
        open_checkpoint(first)
    two = write_parts(tmp_path, 2, of1={"split.no": 1})
    other = two.with_name("m-00002-of-00002.gguf")
    data = gguf_bytes(
        {"split.no": 1, "split.count": 2}, {"output.weight": EIGHT, "token_embd.weight": EIGHT}
    )
    other.write_bytes(data)
    with pytest.raises(CheckpointError, match="and its parts have . tensors? twice, expected each"):
        open_checkpoint(two)


def test_a_file_of_one_part_is_whole(tmp_path: Path) -> None:
    assert len(open_checkpoint(write_parts(tmp_path, 1)).files) == 1


def test_alignment_is_that_of_the_writer() -> None:
    assert len(PLAIN) % ALIGNMENT == 0
