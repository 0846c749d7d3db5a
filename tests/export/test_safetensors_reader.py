"""The safetensors reader: refuses every lying file, and reads what the reference library reads.

Levels: hostile headers (a table), hostile bytes (mutations, against the reference library),
folders (shards, missing files), values (dtypes, NaN).
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
from checkpoint_files import (
    count_bytes_read,
    gpt2_config,
    gpt2_tensors,
    raw_safetensors,
    safetensors_bytes,
    write_checkpoint,
    write_safetensors,
)
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pocketlm.export.checkpoint import Checkpoint, CheckpointTensor, open_checkpoint
from pocketlm.export.errors import CheckpointError
from pocketlm.export.readers.safetensors import DTYPES, read_file


def entry(dtype: Any = "F32", shape: Any = (2,), begin: Any = 0, end: Any = 8) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def one(data: bytes = b"\0" * 8, **fields: Any) -> bytes:
    """A file with one tensor 'w' whose header entry has these fields replaced."""
    return raw_safetensors({"w": entry() | fields}, data)


def prefixed(length: int, rest: bytes = b"") -> bytes:
    return struct.pack("<Q", length) + rest


DUPLICATE = (
    '{"w": {"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
    ' "w": {"dtype":"I32","shape":[2],"data_offsets":[0,8]}}'
)
DEEP = '{"w": ' + "[" * 100_000 + "]" * 100_000 + "}"

REFUSED: dict[str, tuple[bytes, str]] = {
    # Header length
    "empty file": (b"", "has 0 bytes, expected at least 8"),
    "7 bytes": (b"\0" * 7, "has 7 bytes, expected at least 8"),
    "no header": (prefixed(0), "header is not valid JSON"),
    "header past the end": (prefixed(3, b"{}"), "header of 3 bytes, expected at most 2 in a file"),
    "header over the cap": (prefixed(25_000_001, b"{}"), "expected at most 25,000,000; this is"),
    "header of 2^63": (prefixed(1 << 63, b"{}"), "header of 9,223,372,036,854,775,808 bytes"),
    "header of 2^64 - 1": (prefixed(2**64 - 1, b"{}"), "expected at most 25,000,000"),
    "big-endian length": (struct.pack(">Q", 2) + b"{}", "expected at most 25,000,000"),
    # JSON
    "not UTF-8": (raw_safetensors(b'{"\xff": 1}'), "header is not UTF-8"),
    "not JSON": (raw_safetensors("{w: 1}"), "header is not valid JSON"),
    "array": (raw_safetensors("[]"), "header holds a JSON array"),
    "text after the end": (raw_safetensors("{} {}"), "header is not valid JSON (Extra data"),
    "NUL padding": (raw_safetensors(b"{}\0\0\0\0\0\0"), "header is not valid JSON (Extra data"),
    "nested 100,000 deep": (raw_safetensors(DEEP), "header is nested too deeply"),
    "duplicate tensor": (raw_safetensors(DUPLICATE, b"\0" * 8), "has the key 'w' twice"),
    "duplicate field": (
        raw_safetensors('{"w": {"dtype":"F32","dtype":"I32","shape":[],"data_offsets":[0,4]}}'),
        "has the key 'dtype' twice",
    ),
    "half surrogate": (raw_safetensors('{"\\ud800": 1}'), "half a surrogate pair"),
    # Metadata
    "metadata number": (raw_safetensors({"__metadata__": {"a": 1}}), "__metadata__ in the header"),
    "metadata nested": (raw_safetensors({"__metadata__": {"a": {}}}), "from string to string"),
    "metadata list": (raw_safetensors({"__metadata__": ["a"]}), "__metadata__ in the header is"),
    "metadata null": (raw_safetensors({"__metadata__": None}), "__metadata__ in the header is"),
    # Entries
    "entry is a list": (raw_safetensors({"w": [1]}), "tensor 'w' has the entry '[1]'"),
    "entry is null": (raw_safetensors({"w": None}), "tensor 'w' has the entry 'None'"),
    "entry is empty": (raw_safetensors({"w": {}}), "tensor 'w' has the fields none"),
    "no shape": (
        raw_safetensors({"w": {"dtype": "F32", "data_offsets": [0, 8]}}, b"\0" * 8),
        "expected the fields dtype, shape, data_offsets",
    ),
    "extra field": (one(offset=1), "expected the fields dtype, shape, data_offsets"),
    "unknown dtype": (one(dtype="F33"), "tensor 'w' has the dtype 'F33', expected one of F32"),
    "lower-case dtype": (one(dtype="f32"), "tensor 'w' has the dtype 'f32'"),
    "dtype is a number": (one(dtype=3), "tensor 'w' has the dtype '3'"),
    "entry nested 90 deep": (
        raw_safetensors('{"w": ' + "[" * 90 + "]" * 90 + "}"),
        "tensor 'w' has the entry",
    ),
    "dtype is a list": (one(dtype=["F32"]), "tensor 'w' has the dtype"),
    "negative dimension": (one(shape=[-2]), "tensor 'w' has the shape '[-2]'"),
    "two negative dimensions": (one(shape=[-1, -2]), "tensor 'w' has the shape"),
    "float dimension": (one(shape=[2.0]), "tensor 'w' has the shape '[2.0]'"),
    "boolean dimension": (one(shape=[True, 2]), "tensor 'w' has the shape '[True, 2]'"),
    "string dimension": (one(shape=["2"]), "tensor 'w' has the shape"),
    "shape is a number": (one(shape=2), "tensor 'w' has the shape '2'"),
    "shape is a string": (one(shape="2"), "tensor 'w' has the shape"),
    "33 dimensions": (one(shape=[1] * 32 + [2]), "a list of at most 32 integers"),
    "dimension of 2^64": (one(shape=[2**64]), "integers from 0 to 9223372036854775807"),
    "product 2^64 + 8 bytes": (one(shape=[2**62 + 2]), "at most 9223372036854775807 bytes in all"),
    "product wraps to 8 bytes": (one(shape=[2**32, 2**32]), "bytes in all"),
    "zero hides an overflow": (one(shape=[0, 2**40, 2**40]), "bytes in all"),
    # Offsets
    "offset is negative": (one(data_offsets=[-8, 0]), "has data_offsets '[-8, 0]'"),
    "offset is minus zero": (
        raw_safetensors('{"w":{"dtype":"F32","shape":[2],"data_offsets":[-0,8]}}', b"\0" * 8),
        "has data_offsets",
    ),
    "offset is a float": (one(data_offsets=[0.0, 8.0]), "has data_offsets '[0.0, 8.0]'"),
    "offset is a boolean": (one(data_offsets=[False, 8]), "has data_offsets"),
    "offset is a string": (one(data_offsets=["0", "8"]), "has data_offsets"),
    "three offsets": (one(data_offsets=[0, 4, 8]), "expected [begin, end] with begin <= end"),
    "one offset": (one(data_offsets=[8]), "expected [begin, end] with begin <= end"),
    "end before begin": (one(data_offsets=[8, 0]), "expected [begin, end] with begin <= end"),
    "offsets over 2^64": (one(data_offsets=[2**64, 2**64 + 8]), "has data_offsets"),
    "span too short": (one(data_offsets=[0, 4]), "has 4 bytes of data (0 to 4), expected 8 bytes"),
    "span too long": (
        one(b"\0" * 12, data_offsets=[0, 12]),
        "has 12 bytes of data (0 to 12), expected 8 bytes = F32 of shape '[2]'",
    ),
    "dtype too wide": (one(dtype="F64"), "expected 16 bytes = F64"),
    # Cover
    "cut off by a byte": (one(b"\0" * 7), "has 7 bytes of data, expected 8 by its header"),
    "all data missing": (one(b""), "has 0 bytes of data, expected 8 by its header"),
    "a byte too many": (one(b"\0" * 9), "bytes that belong to no tensor"),
    "data without tensors": (raw_safetensors("{}", b"\0"), "bytes that belong to no tensor"),
    "begins late": (one(b"\0" * 16, data_offsets=[8, 16]), "leaves a hole, expected it at 0"),
    "hole": (
        raw_safetensors({"a": entry(), "b": entry(begin=12, end=20)}, b"\0" * 20),
        "tensor 'b' begins at byte 12 of the data and leaves a hole, expected it at 8",
    ),
    "overlap": (
        raw_safetensors({"a": entry(), "b": entry(begin=4, end=12)}, b"\0" * 12),
        "tensor 'b' begins at byte 4 of the data and overlaps the tensor before it",
    ),
    "same span twice": (
        raw_safetensors({"a": entry(), "b": entry()}, b"\0" * 8),
        "overlaps the tensor before it",
    ),
    "empty tensor inside another": (
        raw_safetensors({"a": entry(), "b": entry(shape=[0], begin=4, end=4)}, b"\0" * 8),
        "tensor 'b' begins at byte 4",
    ),
    "empty tensor past the end": (
        raw_safetensors({"a": entry(), "b": entry(shape=[0], begin=9, end=9)}, b"\0" * 8),
        "leaves a hole",
    ),
    "terabyte in an 8-byte file": (
        one(shape=[2**38], data_offsets=[0, 2**40]),
        "has 8 bytes of data, expected 1,099,511,627,776 by its header",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str, tmp_path: Path) -> None:
    data, problem = REFUSED[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        read_file(path)
    message = str(caught.value)
    assert message.startswith("model.safetensors") and problem in message, message
    assert "expected" in message and ("get it again" in message or "again from" in message)
    assert "\n" not in message and len(message) < 500


ACCEPTED: dict[str, bytes] = {
    "leading and trailing spaces": raw_safetensors(
        f'   {{"w":{json.dumps(entry())}}}   ', b"8" * 8
    ),
    "other white space": raw_safetensors(f'\n\t\r{{"w":{json.dumps(entry())}}}', b"8" * 8),
    "unaligned header": prefixed(2, b"{}"),
    "no tensors": raw_safetensors("{}"),
    "null-free metadata": raw_safetensors({"__metadata__": {"format": "pt", "": ""}}),
    "rank 0": one(b"1234", shape=[], data_offsets=[0, 4]),
    "empty": one(b"", shape=[0], data_offsets=[0, 0]),
    "empty with large axis": one(b"", shape=[2**40, 0], data_offsets=[0, 0]),
    "two empty at one place": raw_safetensors(
        {"a": entry(shape=[0], end=0), "b": entry(shape=[3, 0], end=0), "c": entry()}, b"8" * 8
    ),
    "header out of order": raw_safetensors(
        {"b": entry(begin=8, end=16), "a": entry()}, b"12345678abcdefgh"
    ),
    "rank 32": one(b"12345678", shape=[1] * 31 + [2]),
    "odd names": raw_safetensors({"": entry(), "é\n\0😀/..": entry(begin=8, end=16)}, b"8" * 16),
    "every dtype": raw_safetensors(
        {
            name: entry(name, [2], sum(sizes[:i]), sum(sizes[: i + 1]))
            for sizes in [[2 * size for _, size in DTYPES.values()]]
            for i, name in enumerate(DTYPES)
        },
        b"1" * sum(2 * size for _, size in DTYPES.values()),
    ),
}


deserialize: Callable[[bytes], list[tuple[str, dict[str, Any]]]] = safetensors.deserialize


def check_against_reference(data: bytes, tensors: dict[str, CheckpointTensor]) -> None:
    """Asserts that the reference library reads the same names, shapes, dtypes and bits."""
    reference = dict(deserialize(data))
    assert set(tensors) == set(reference)
    names = {ours: theirs for theirs, (ours, _) in DTYPES.items()}
    bits = {"float32": "<f4", "float16": "<f2", "bfloat16": ml_dtypes.bfloat16}
    for name, tensor in tensors.items():
        expected = reference[name]
        assert tensor.shape == tuple(expected["shape"])
        assert names[tensor.dtype] == expected["dtype"]
        assert tensor.num_bytes == len(expected["data"])
        if tensor.dtype in bits:
            values = np.frombuffer(expected["data"], bits[tensor.dtype]).reshape(tensor.shape)
            if np.isfinite(values.astype(np.float32)).all():
                np.testing.assert_array_equal(
                    tensor.read().view(np.uint32), values.astype(np.float32).view(np.uint32)
                )
            else:
                with pytest.raises(CheckpointError, match="expected finite numbers"):
                    tensor.read()


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepts_what_the_reference_accepts(case: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(ACCEPTED[case])
    check_against_reference(ACCEPTED[case], read_file(path))


def test_names_no_reference_dtype_wrongly() -> None:
    """Every dtype in our table has the reference library's size (one that it lacks is refused)."""
    for name, (_, size) in DTYPES.items():
        deserialize(one(b"1" * 2 * size, dtype=name, data_offsets=[0, 2 * size]))


SEEDS = [
    *ACCEPTED.values(),
    safetensors_bytes({"a": np.arange(6.0).reshape(2, 3), "b": np.ones(4)}),
    safetensors_bytes({"a": np.arange(6.0).reshape(2, 3), "mask": np.ones(3, np.bool_)}, "BF16"),
    safetensors_bytes({"x.weight": np.full((2, 2), 0.5), "x.bias": np.zeros(2)}, "F16"),
]
FRAGMENTS = [
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"0",
    b"9",
    b"-",
    b" ",
    b"\\",
    b"e1",
    b"null",
]


@st.composite
def mutants(draw: st.DrawFn) -> bytes:
    """Files with a few bytes changed, inserted or removed; the length is repaired half the time."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        act = draw(st.sampled_from(["set", "flip", "insert", "remove", "copy"]))
        if act == "set":
            data[place : place + 1] = draw(st.sampled_from([*FRAGMENTS, b"\0", b"\xff"]))
        elif act == "flip" and data:
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif act == "insert":
            data[place:place] = draw(st.one_of(st.sampled_from(FRAGMENTS), st.binary(max_size=9)))
        elif act == "remove":
            del data[place : place + draw(st.integers(1, 12))]
        else:
            data[place:place] = data[place : place + draw(st.integers(1, 60))]
    end = data.rfind(b"}}") + 2
    if draw(st.booleans()) and end >= 10:
        data[:8] = struct.pack("<Q", end - 8)
    return bytes(data)


@st.composite
def near_headers(draw: st.DrawFn) -> bytes:
    """Files that are right but for at most a few numbers or fields of the header."""
    dtypes = st.sampled_from([*DTYPES, "F32", "BF16", "F16"])
    shapes = st.lists(st.integers(0, 3), max_size=3)
    entries = []
    reached = 0
    for dtype, shape in draw(st.lists(st.tuples(dtypes, shapes), max_size=4)):
        size = int(np.prod(shape, dtype=int)) * DTYPES[dtype][1]
        entries.append(entry(dtype, shape, reached, reached + size))
        reached += size
    for _ in range(draw(st.integers(0, 2)) if entries else 0):
        values = draw(st.sampled_from(entries))
        change = draw(st.sampled_from([-8, -4, -1, 1, 4, 8, 2**32, 2**64 - 4, 0.0, True]))
        act = draw(st.sampled_from(["shape", "data_offsets", "dtype", "axis", "move"]))
        if act == "dtype":
            values["dtype"] = draw(dtypes)
        elif act == "axis":
            values["shape"].insert(0, draw(st.integers(0, 2)))
        elif act == "move":
            values["data_offsets"] = [offset + change for offset in values["data_offsets"]]
        elif values[act]:
            values[act][draw(st.integers(0, len(values[act]) - 1))] += change
    names = draw(st.lists(st.text(max_size=3), min_size=len(entries), max_size=len(entries)))
    pairs = [[name, values] for name, values in zip(names, entries, strict=True)]
    if draw(st.booleans()):
        pairs.append(["__metadata__", draw(st.dictionaries(st.text(max_size=2), st.text()))])
    texts = [f"{json.dumps(name)}:{json.dumps(values)}" for name, values in pairs]
    space = draw(st.sampled_from(["", " ", "\n", "\t ", "\r\n"]))
    header = space + "{" + f",{space}".join(draw(st.permutations(texts))) + "}" + space
    length = max(0, reached + draw(st.sampled_from([0, 0, 0, 0, -1, 1])))
    return raw_safetensors(header, draw(st.binary(min_size=length, max_size=length)))


@given(data=st.one_of(mutants(), near_headers()))
@example(data=b"")
@settings(
    max_examples=1200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@pytest.mark.slow
def test_accepted_mutants_read_as_in_the_reference(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    try:
        tensors = read_file(path)
    except CheckpointError:
        return
    check_against_reference(data, tensors)


# --- values -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_read_gives_float32_that_the_caller_owns(dtype: str, tmp_path: Path) -> None:
    values = np.random.default_rng(1).standard_normal((5, 7)).astype(np.float32)
    numpy_dtype: Any = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}[dtype]
    write_checkpoint(tmp_path, tensors={"w": values}, dtype=dtype)
    tensor = open_checkpoint(tmp_path).tensors["w"]
    result = tensor.read()
    assert result.dtype == np.float32 and result.flags.c_contiguous and result.flags.owndata
    np.testing.assert_array_equal(result, values.astype(numpy_dtype).astype(np.float32))
    result[:] = 0
    assert tensor.read().any(), "a second read must not see what the caller did to the first"


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_refuses_values_that_are_not_finite(dtype: str, value: float, tmp_path: Path) -> None:
    values = np.zeros((3, 4), np.float32)
    values[2, 3] = value
    write_checkpoint(tmp_path, tensors={"h.0.w": values}, dtype=dtype)
    tensor = open_checkpoint(tmp_path).tensors["h.0.w"]
    with pytest.raises(CheckpointError) as caught:
        tensor.read()
    assert str(caught.value) == (
        f"model.safetensors: tensor 'h.0.w' holds {values[2, 3]}, expected finite numbers; "
        "the weights are damaged: get the file again from its source"
    )


def test_finds_a_nan_in_any_chunk(tmp_path: Path) -> None:
    values = np.zeros(3_000_000, np.float32)
    values[-1] = np.nan
    write_checkpoint(tmp_path, tensors={"w": values})
    with pytest.raises(CheckpointError, match="holds nan"):
        open_checkpoint(tmp_path).tensors["w"].read()


def test_subnormal_and_extreme_values_survive(tmp_path: Path) -> None:
    info = np.finfo(np.float32)
    values = np.array(
        [info.tiny / 4, -0.0, info.max, info.min, info.smallest_subnormal], np.float32
    )
    write_checkpoint(tmp_path, tensors={"w": values})
    result = open_checkpoint(tmp_path).tensors["w"].read()
    np.testing.assert_array_equal(result.view(np.uint32), values.view(np.uint32))


def test_lists_a_mask_but_does_not_read_it(tmp_path: Path) -> None:
    mask = np.tril(np.ones((1, 1, 4, 4), np.bool_))
    write_checkpoint(tmp_path, tensors={"h.0.attn.bias": mask, "w": np.ones(2)})
    tensor = open_checkpoint(tmp_path).tensors["h.0.attn.bias"]
    assert (tensor.dtype, tensor.shape, tensor.num_bytes) == ("bool", (1, 1, 4, 4), 16)
    with pytest.raises(CheckpointError, match="is stored as bool, expected float32, float16"):
        tensor.read()


def test_peak_memory_is_the_result_and_a_chunk(tmp_path: Path) -> None:
    tracemalloc = pytest.importorskip("tracemalloc")
    path = tmp_path / "model.safetensors"
    count = 16 << 20
    header = {"w": entry("BF16", [count], 0, 2 * count)}
    path.write_bytes(raw_safetensors(header))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + 2 * count)
    tensor = read_file(path)["w"]
    tracemalloc.start()
    try:
        tensor.read()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The result takes 64 MiB; the rest is a chunk of 2 MiB in several forms.
    assert peak < (64 + 16) << 20


# --- the file changes after opening -----------------------------------------------------------


@pytest.mark.parametrize("change", [-1, 1, -10_000])
def test_refuses_a_file_that_changed_its_size(change: int, tmp_path: Path) -> None:
    tensors = open_checkpoint(write_checkpoint(tmp_path)).tensors
    path = tmp_path / "model.safetensors"
    size = path.stat().st_size
    os.truncate(path, size + change)
    with pytest.raises(
        CheckpointError, match=f"has {size + change:,} bytes now, expected {size:,}"
    ):
        tensors["transformer.wte.weight"].read()


def test_refuses_a_file_that_disappeared(tmp_path: Path) -> None:
    tensors = open_checkpoint(write_checkpoint(tmp_path)).tensors
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="'model.safetensors' cannot be opened"):
        tensors["transformer.wte.weight"].read()


def test_opening_reads_headers_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bytes_read = count_bytes_read(monkeypatch)
    path = tmp_path / "model.safetensors"
    count = 1 << 31
    header = raw_safetensors({"w": entry("F32", [count], 0, 4 * count)})
    path.write_bytes(header)
    (tmp_path / "config.json").write_text("{}")
    with path.open("r+b") as file:
        file.truncate(len(header) + 4 * count)
    assert open_checkpoint(tmp_path).tensors["w"].num_bytes == 8 << 30
    assert bytes_read() == len(header) + 2 * len("{}")  # once for the class of the tokenizer


def test_a_lying_header_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bytes_read = count_bytes_read(monkeypatch)
    path = tmp_path / "model.safetensors"
    path.write_bytes(prefixed(100_000_001))
    os.truncate(path, 1 << 40)
    with pytest.raises(CheckpointError, match="announces a header of 100,000,001 bytes"):
        read_file(path)
    assert bytes_read() == 8


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_refuses_a_named_pipe_without_waiting(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="'model.safetensors' is a named pipe"):
        open_checkpoint(tmp_path)


def test_follows_the_links_of_a_download_cache(tmp_path: Path) -> None:
    blobs = write_checkpoint(tmp_path / "blobs")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(Path("..") / "blobs" / path.name)
    checkpoint = open_checkpoint(snapshot)
    assert checkpoint.tensors["transformer.ln_f.bias"].read().shape == (32,)
    assert checkpoint.tokenizer is not None
    assert checkpoint.tokenizer.files[0] == snapshot / "tokenizer.json"


# --- folders and shards -----------------------------------------------------------------------


def assert_equal(left: Checkpoint, right: Checkpoint) -> None:
    assert set(left.tensors) == set(right.tensors)
    for name, tensor in left.tensors.items():
        other = right.tensors[name]
        assert (tensor.shape, tensor.dtype) == (other.shape, other.dtype)
        np.testing.assert_array_equal(tensor.read(), other.read(), err_msg=name)


@pytest.mark.parametrize("shards", [2, 3, 7])
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_sharded_equals_single(shards: int, dtype: str, tmp_path: Path) -> None:
    single = open_checkpoint(write_checkpoint(tmp_path / "single", dtype=dtype))
    sharded = open_checkpoint(write_checkpoint(tmp_path / "sharded", dtype=dtype, shards=shards))
    assert_equal(single, sharded)
    assert list(single.tensors) == list(sharded.tensors)


def test_prefers_the_single_file_to_an_index(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=2, seed=1)
    write_checkpoint(tmp_path, seed=2)
    tensors = open_checkpoint(tmp_path).tensors
    assert {tensor.file for tensor in tensors.values()} == {"model.safetensors"}


def test_accepts_one_file_under_another_name(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "tiny.safetensors")
    tensors = open_checkpoint(tmp_path).tensors
    assert {tensor.file for tensor in tensors.values()} == {"tiny.safetensors"}


def test_refuses_two_files_without_an_index(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=2)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match="has 2 safetensors files .* expected one, or shards"):
        open_checkpoint(tmp_path)


def edit_index(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
OUTSIDE = [
    "../x.safetensors",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "..",
    ".",
    "",
    "C:x",
    "a\0b",
    3,
    None,
    [],
]


@pytest.mark.parametrize("shard", OUTSIDE)
def test_refuses_shards_outside_the_folder(shard: Any, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "x", shards=2)
    write_safetensors(tmp_path, {"secret": np.ones(2)})
    edit_index(tmp_path / "x", lambda m: m.update({"transformer.ln_f.bias": shard}))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path / "x")
    assert "puts tensor 'transformer.ln_f.bias' into" in str(caught.value)
    assert "expected the plain name of a file in the same folder" in str(caught.value)


def test_refuses_a_missing_shard(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=2)
    (tmp_path / SECOND).unlink()
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    assert f"names the shard '{SECOND}', which is not in the folder (1 of 2" in str(caught.value)
    assert "download the missing files" in str(caught.value)


def test_refuses_a_shard_with_an_impossible_name(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=2)
    edit_index(tmp_path, lambda m: m.update({"extra": "x" * 5000}))
    with pytest.raises(CheckpointError, match="which is not in the folder"):
        open_checkpoint(tmp_path)


def test_refuses_a_tensor_absent_from_its_shard(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=2)
    edit_index(tmp_path, lambda m: m.update({"ghost": FIRST}))
    with pytest.raises(CheckpointError, match=f"tensor 'ghost' is not in the shard '{FIRST}', exp"):
        open_checkpoint(tmp_path)


def test_refuses_a_tensor_in_another_shard_than_the_index_says(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=2)
    edit_index(tmp_path, lambda m: m.update({"transformer.ln_f.bias": FIRST}))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    assert f"'transformer.ln_f.bias' is not in the shard '{FIRST}' (it is in '{SECOND}')" in str(
        caught.value
    )


def test_refuses_a_tensor_in_two_shards(tmp_path: Path) -> None:
    tensors = gpt2_tensors(gpt2_config())
    write_checkpoint(tmp_path, shards=2)
    half = {name: tensors[name] for name in list(tensors)[len(tensors) // 2 :]}
    twice = {"transformer.wte.weight": tensors["transformer.wte.weight"], **half}
    (tmp_path / SECOND).write_bytes(safetensors_bytes(twice))
    with pytest.raises(CheckpointError, match="tensor 'transformer.wte.weight' is in the shards"):
        open_checkpoint(tmp_path)


def test_refuses_a_tensor_that_the_index_does_not_name(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=2)
    edit_index(tmp_path, lambda m: m.pop("transformer.ln_f.bias"))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    assert f"tensor 'transformer.ln_f.bias' of the shard '{SECOND}' is not in" in str(caught.value)


@pytest.mark.parametrize("index", ["{}", '{"weight_map": {}}', '{"weight_map": ["a"]}'])
def test_refuses_an_index_without_a_map(index: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=2)
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match="has no weight_map, expected an object from tensor"):
        open_checkpoint(tmp_path)


def test_refuses_an_index_that_names_a_tensor_twice(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=2)
    text = f'{{"weight_map": {{"a": "{FIRST}", "a": "{SECOND}"}}}}'
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match="index.json has the key 'a' twice"):
        open_checkpoint(tmp_path)


def test_names_the_damaged_shard(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=2)
    path = tmp_path / SECOND
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=f"^{SECOND} has .* the file is cut off"):
        open_checkpoint(tmp_path)


def test_refuses_a_checkpoint_without_tensors(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tensors={})
    with pytest.raises(CheckpointError, match="model.safetensors holds no tensor, expected"):
        open_checkpoint(tmp_path)
