"""Strict JSON: what it refuses, and that every message says found, expected and what to do."""

from __future__ import annotations

import json
import os
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import count_bytes_read
from hypothesis import assume, given
from hypothesis import strategies as st

from pocketlm.export import strict_json
from pocketlm.export.errors import CheckpointError, ModelFolderError
from pocketlm.export.strict_json import (
    MAX_DEPTH,
    TEXT_FACTOR,
    VALUE_BYTES,
    load_json_object,
    parse_json_object,
    quoted,
)

REFUSED = {
    "duplicate key": (b'{"a": 1, "b": 2, "a": 3}', "has the key 'a' twice, expected each key once"),
    "nested duplicate key": (b'{"x": [{"k": 1, "k": 1}]}', "has the key 'k' twice"),
    "duplicate after unescaping": (b'{"a": 1, "\\u0061": 2}', "has the key 'a' twice"),
    "latin-1": (b'{"a": "\xe9"}', "is not UTF-8 (byte 7 is 0xe9)"),
    "utf-16": ('{"a": 1}'.encode("utf-16"), "is not UTF-8 (byte 0 is 0xff)"),
    "overlong utf-8": (b'{"a": "\xc0\xaf"}', "is not UTF-8"),
    "surrogate in utf-8": (b'{"a": "\xed\xa0\x80"}', "is not UTF-8"),
    "half surrogate in value": (b'{"a": ["\\ud800"]}', "half a surrogate pair"),
    "half surrogate in key": (b'{"\\uDFFF": 1}', "half a surrogate pair"),
    "byte order mark": (b'\xef\xbb\xbf{"a": 1}', "is not valid JSON (Unexpected UTF-8 BOM"),
    "NaN": (b'{"a": NaN}', "has the number NaN, expected finite numbers only"),
    "Infinity": (b'{"a": Infinity}', "has the number Infinity"),
    "-Infinity": (b'{"a": [-Infinity]}', "has the number -Infinity"),
    "float overflow": (b'{"a": 1e999}', "has the number '1e999', expected one that fits float64"),
    "huge integer": (b'{"a": ' + b"9" * 5000 + b"}", "has an integer of 5,000 digits"),
    "array": (b"[1, 2]", "holds a JSON array, expected a JSON object"),
    "string": (b'"text"', "holds a JSON string"),
    "number": (b"3", "holds a JSON number"),
    "boolean": (b"true", "holds a JSON boolean"),
    "null": (b"null", "holds a JSON null"),
    "empty": (b"", "is not valid JSON (Expecting value at character 0)"),
    "spaces": (b"  \n", "is not valid JSON"),
    "cut off": (b'{"a": 1', "is not valid JSON"),
    "text after the end": (b'{"a": 1} x', "is not valid JSON (Extra data at character 9)"),
    "trailing comma": (b'{"a": 1,}', "is not valid JSON"),
    "comment": (b'{"a": 1} // yes', "is not valid JSON"),
    "control character": (b'{"a": "\x01"}', "is not valid JSON"),
    "single quotes": (b"{'a': 1}", "is not valid JSON"),
    "arrays 100,000 deep": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    "objects 100,000 deep": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
    "open arrays": (b"[" * 1_000_000, "nested too deeply, expected at most 100 levels"),
    "101 deep": (b'{"a":' + b"[" * 100 + b"]" * 100 + b"}", "nested too deeply"),
    "deep behind many values": (b'{"a":[' + b"0," * 20_000 + b"[" * 99, "nested too deeply"),
    "many values": (b'{"a":[' + b"0," * 1_000_000 + b"0]}", "expected at most 1,000,000"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str) -> None:
    data, problem = REFUSED[case]
    with pytest.raises(CheckpointError) as caught:
        parse_json_object(data, "config.json", CheckpointError)
    message = str(caught.value)
    assert message.startswith("config.json ") and problem in message
    assert "expected" in message and message.endswith("get it again from its source")
    assert "\n" not in message and len(message) < 400


def test_accepts_plain_objects() -> None:
    data = b' {"a": [1, 2.5, true, null, "\xc3\xa9\\ud83d\\ude00"], "b": {"a": {}}}\n'
    expected = {"a": [1, 2.5, True, None, "é😀"], "b": {"a": {}}}
    assert parse_json_object(data, "x", CheckpointError) == expected


# --- how much, and how deep ---------------------------------------------------------------------


def count(value: Any) -> int:
    """Keys and values inside; an empty array or object counts as if it held one."""
    if isinstance(value, dict):
        return max(1, 2 * len(value) + sum(map(count, value.values())))
    return max(1, len(value) + sum(map(count, value))) if isinstance(value, list) else 0


def depth(value: Any) -> int:
    inner = list(value.values()) if isinstance(value, dict) else value
    return 1 + max(map(depth, inner), default=0) if isinstance(inner, list) else 0


def made(generator: random.Random, levels: int) -> Any:
    """Some JSON with punctuation, quotes and backslashes in its strings and keys."""
    texts = ["", "a", '"', "\\", '\\"', "[[[", '}{,:"]', "\\\\", "é[", "\U0001f600,", "\n,"]
    word = "".join(generator.choices(texts, k=3))
    kind = generator.randrange(5 if levels else 3)
    if kind == 3:
        return [made(generator, levels - 1) for _ in range(generator.randrange(5))]
    if kind == 4:
        names = [f"{word}{i}" for i in range(generator.randrange(5))]
        return {name: made(generator, levels - 1) for name in names}
    return (word, generator.choice([0, -1.5, 10**20]), generator.choice([None, True]))[kind]


def test_values_and_levels_are_counted_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict_json, "_PIECE_BYTES", 7)
    generator = random.Random(1)
    for round_ in range(300):
        value = {"a": made(generator, round_ % 6)}
        data = json.dumps(value, ensure_ascii=round_ % 2 == 0).encode()
        num_values, levels = count(value), depth(value)
        assert parse_json_object(data, "x", CheckpointError, num_values) == value
        with pytest.raises(CheckpointError, match="too many values"):
            parse_json_object(data, "x", CheckpointError, num_values - 1)
        with monkeypatch.context() as patch:
            patch.setattr(strict_json, "MAX_DEPTH", levels)
            assert parse_json_object(data, "x", CheckpointError) == value
            patch.setattr(strict_json, "MAX_DEPTH", levels - 1)
            with pytest.raises(CheckpointError, match="nested too deeply"):
                parse_json_object(data, "x", CheckpointError)


def keyed(value: str) -> Callable[[int], str]:
    return lambda i: f'"{i:05x}":{value % i if "%" in value else value}'


FILLINGS: dict[str, Callable[[int], str]] = {
    "empty arrays": lambda i: "[]",
    "empty objects": lambda i: "{}",
    "small arrays": lambda i: "[0]",
    "arrays in arrays": lambda i: "[" * 5 + "]" * 5,
    "small objects": lambda i: f'{{"{i:05x}":1}}',
    "strings": lambda i: f'"{i:05x}"',
    "strings with four bytes a character": lambda i: f'"\U0001f600{i:05x}"',
    "numbers": lambda i: "257",
    "keys and numbers": keyed("257"),
    "keys and strings": keyed('"\U0001f600%05x"'),
    "keys and objects": keyed("{}"),
    "one string": lambda i: f'"{"a" * 1000}"' if i else '"\U0001f600"',
}


@pytest.mark.parametrize("filling", FILLINGS)
def test_memory_is_bounded_by_bytes_and_values(filling: str) -> None:
    parts = [FILLINGS[filling](i) for i in range(5462)]  # a dict that has just grown
    inner = ",".join(parts)
    text = f"{{{inner}}}" if filling.startswith("keys") else f'{{"a":[{inner}]}}'
    data, megabyte = text.encode(), 1 << 20
    tracemalloc.start()
    try:
        value = parse_json_object(data, "x", CheckpointError)
        taken = tracemalloc.get_traced_memory()[1]
        num_values = count(value)
        del value
        tracemalloc.reset_peak()
        with pytest.raises(CheckpointError, match="too many values"):
            parse_json_object(data, "x", CheckpointError, num_values // 2)
        refused = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert taken < (TEXT_FACTOR - 1) * len(data) + VALUE_BYTES * num_values + megabyte
    assert refused < 3 * len(data) + megabyte


def test_the_deepest_that_is_allowed_is_read() -> None:
    inner = "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)
    assert "a" in parse_json_object(f'{{"a":{inner}}}'.encode(), "x", CheckpointError)


# --- the rest -----------------------------------------------------------------------------------


def test_negative_zero_is_no_integer() -> None:
    assert isinstance(parse_json_object(b'{"a": -0}', "x", CheckpointError)["a"], float)


def test_raises_the_error_it_was_given(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="^pocketlm.json holds a JSON array"):
        parse_json_object(b"[]", "pocketlm.json", ModelFolderError)
    with pytest.raises(ModelFolderError, match="cannot be opened"):
        load_json_object(tmp_path / "pocketlm.json", 100, ModelFolderError)


def test_loads_a_file_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b'{"a": 1}')
    assert load_json_object(path, 8, CheckpointError) == {"a": 1}
    with pytest.raises(CheckpointError, match="has 8 bytes, expected at most 7 bytes of JSON"):
        load_json_object(path, 7, CheckpointError)


def test_refuses_a_large_file_without_reading_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bytes_read = count_bytes_read(monkeypatch)
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match="expected at most 10,000,000 bytes"):
        load_json_object(path, 10_000_000, CheckpointError)
    assert bytes_read() == 0


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_refuses_a_named_pipe_without_waiting(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match="is a named pipe, expected a regular file"):
        load_json_object(path, 100, CheckpointError)


def test_refuses_a_folder_and_a_dangling_link(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a folder, expected a regular file"):
        load_json_object(tmp_path, 100, CheckpointError)
    (tmp_path / "link.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="'link.json' cannot be opened"):
        load_json_object(tmp_path / "link.json", 100, CheckpointError)


def test_follows_a_link_to_a_file(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b'{"a": 1}')
    (tmp_path / "config.json").symlink_to("blob")
    assert load_json_object(tmp_path / "config.json", 100, CheckpointError) == {"a": 1}


@pytest.mark.parametrize("name", ["nul\0byte", "half\ud800", "x" * 5000])
def test_refuses_impossible_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="cannot be opened"):
        load_json_object(tmp_path / name, 100, CheckpointError)


def test_quoted_is_one_short_line() -> None:
    assert quoted("a\nb") == r"'a\nb'"
    assert quoted("x" * 1000) == repr("x" * 100) + "..."
    assert quoted("\ud800\x1b[31m").isascii()


@given(st.lists(st.sampled_from(["\\ud83e", "\\uDD86", "\\ud8", "\\\\", "\\n", "u", "a", "ud83e"])))
def test_half_a_surrogate_pair_is_found_wherever_it_is(parts: list[str]) -> None:
    data = f'{{"a": "{"".join(parts)}"}}'.encode()
    try:
        json.dumps(json.loads(data), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        with pytest.raises(ModelFolderError, match="half a surrogate pair"):
            parse_json_object(data, "x", ModelFolderError)
    except json.JSONDecodeError:
        assume(False)
    else:
        assert parse_json_object(data, "x", ModelFolderError) == json.loads(data)


def test_arrays_and_objects_are_counted_outside_of_strings() -> None:
    data = b'{"a": [[], {"[{": "[["}]}'
    assert parse_json_object(data, "x", ModelFolderError, max_nested=4)
    with pytest.raises(ModelFolderError, match="too many arrays and objects, expected at most 3"):
        parse_json_object(data, "x", ModelFolderError, max_nested=3)
