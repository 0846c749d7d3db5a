"""The llm.c reader: equal to the safetensors checkpoint bit for bit, and exact about every size."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from checkpoint_files import (
    LLMC_DTYPES,
    count_bytes_read,
    gpt2_config,
    gpt2_tensors,
    llmc_arrays,
    llmc_header,
    tokenizer_file,
    write_checkpoint,
    write_llmc,
    write_tokenizer,
)

from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.errors import CheckpointError
from pocketlm.export.manifest import Source
from pocketlm.export.writing import export_model

CONFIG = gpt2_config()
TENSORS = gpt2_tensors(CONFIG)
WORDS = ["magic", "version", "context length", "vocabulary", "layers", "heads", "width", "padded"]


def edges(version: int) -> list[int]:
    """Returns where each of the 16 arrays ends, the start of the first one included."""
    item = {3: 4, 5: 2}[version]
    sizes = [array.size * item for array in llmc_arrays(CONFIG, TENSORS)]
    return list(itertools.accumulate(sizes, initial=1024))


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    message = str(caught.value)
    assert path.name in message and "expected" in message and ";" in message
    assert "\n" not in message and len(message) < 500
    return message


# --- the same model ---------------------------------------------------------------------------


@pytest.mark.parametrize("version", [3, 5])
@pytest.mark.parametrize("vocab_size", [97, 128, 129])
def test_equals_the_safetensors_checkpoint(version: int, vocab_size: int, tmp_path: Path) -> None:
    config = gpt2_config(vocab_size=vocab_size)
    tensors = gpt2_tensors(config)
    folder = write_checkpoint(tmp_path / "hf", config, tensors, dtype=LLMC_DTYPES[version])
    expected = open_checkpoint(folder)
    actual = open_checkpoint(write_llmc(tmp_path / "m.bin", config, tensors, version))
    assert set(actual.tensors) == set(expected.tensors)
    for name, tensor in actual.tensors.items():
        other = expected.tensors[name]
        assert (tensor.name, tensor.shape, tensor.dtype) == (name, other.shape, other.dtype)
        assert tensor.num_bytes == other.num_bytes
        values = tensor.read()
        assert values.flags.c_contiguous and values.flags.owndata and values.dtype == np.float32
        np.testing.assert_array_equal(values, other.read(), err_msg=name)
    assert actual.config == expected.config


def test_square_matrices_are_turned_too(tmp_path: Path) -> None:
    """attn.c_proj is square: a missed transpose would raise no shape error."""
    path = write_llmc(tmp_path / "m.bin", CONFIG, TENSORS)
    stored = np.fromfile(path, "<f4", 32 * 32, offset=edges(3)[6]).reshape(32, 32)
    values = open_checkpoint(path).tensors["transformer.h.0.attn.c_proj.weight"].read()
    np.testing.assert_array_equal(values, stored.T)
    assert not np.array_equal(values, stored)


def test_matrices_larger_than_a_chunk_are_turned(tmp_path: Path) -> None:
    config = gpt2_config(n_embd=512, n_layer=1)
    tensors = gpt2_tensors(config)
    actual = open_checkpoint(write_llmc(tmp_path / "m.bin", config, tensors)).tensors
    for name in ("transformer.h.0.mlp.c_fc.weight", "transformer.h.0.mlp.c_proj.weight"):
        np.testing.assert_array_equal(actual[name].read(), tensors[name])


@pytest.mark.parametrize("padded", [97, 98, 128, 150])
def test_any_padding_is_cut_off(padded: int, tmp_path: Path) -> None:
    path = write_llmc(tmp_path / "m.bin", CONFIG, TENSORS, padded_vocab_size=padded)
    for name, tensor in open_checkpoint(path).tensors.items():
        np.testing.assert_array_equal(tensor.read(), TENSORS[name])


def test_contents_of_the_padding_do_not_matter(tmp_path: Path) -> None:
    path = write_llmc(tmp_path / "m.bin", CONFIG, TENSORS)
    with path.open("r+b") as file:
        file.seek(1024 + 97 * 32 * 4)
        file.write(np.full(31 * 32, np.nan, np.float32).tobytes())
    wte = open_checkpoint(path).tensors["transformer.wte.weight"].read()
    np.testing.assert_array_equal(wte, TENSORS["transformer.wte.weight"])


def test_literal_file(tmp_path: Path) -> None:
    """The smallest model, its numbers counted upwards: each tensor is where the format says."""
    header = struct.pack("<8i", 20240326, 3, 1, 1, 1, 1, 1, 2).ljust(1024, b"\0")
    path = tmp_path / "m.bin"
    path.write_bytes(header + np.arange(30, dtype="<f4").tobytes())
    tensors = open_checkpoint(path).tensors
    firsts = [tensor.read().reshape(-1)[0] for tensor in tensors.values()]
    assert firsts == [0, 2, 3, 4, 5, 8, 11, 12, 13, 14, 15, 19, 23, 27, 28, 29]
    fc = tensors["transformer.h.0.mlp.c_fc.weight"].read()  # (4, 1) in the file
    np.testing.assert_array_equal(fc, [[15, 16, 17, 18]])


def test_config_of_the_published_model_names_its_end_of_text(tmp_path: Path) -> None:
    config = gpt2_config(vocab_size=50257, n_embd=4, n_layer=1, n_head=2)
    path = write_llmc(tmp_path / "m.bin", config, gpt2_tensors(config))
    checkpoint = open_checkpoint(path)
    assert checkpoint.config["bos_token_id"] == checkpoint.config["eos_token_id"] == 50256
    assert (checkpoint.config["n_head"], checkpoint.config["n_inner"]) == (2, None)
    assert checkpoint.generation_config == {}


def end_of_text_first(folder: Path, spelling: str = "<|endoftext|>") -> Path:
    """The tokenizer of the tests with its end of text at id 0, as other trainers put it."""
    file = write_tokenizer(folder, 97)
    content = json.loads(file.read_text("utf-8"))
    vocab = content["model"]["vocab"]
    words = sorted(vocab, key=lambda word: int((vocab[word] + 1) % 97))
    content["model"]["vocab"] = {words[0].replace("<|endoftext|>", spelling): 0} | {
        word: i for i, word in enumerate(words) if i
    }
    content["added_tokens"][0] |= {"id": 0, "content": spelling}
    file.write_text(json.dumps(content), "utf-8")
    return file


def ends(path: Path, tokenizer: Path | None) -> tuple[Any, Any]:
    config = open_checkpoint(path, tokenizer).config
    return config["bos_token_id"], config["eos_token_id"]


def test_a_text_begins_and_ends_as_the_tokenizer_says(tmp_path: Path) -> None:
    path = write_llmc(tmp_path / "m.bin", CONFIG, TENSORS)
    assert ends(path, None) == (96, 96)
    assert ends(path, write_tokenizer(tmp_path / "last", 97)) == (96, 96)
    assert ends(path, end_of_text_first(tmp_path / "first")) == (0, 0)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, (None, None)),  # 96 is a word, and "</s>" might be anything
        ({"eos_token": "</s>"}, (0, 0)),
        ({"eos_token": {"content": "</s>", "lstrip": False}}, (0, 0)),
        ({"eos_token": "</s>", "bos_token": "a"}, (65, 0)),
        ({"bos_token": "a", "eos_token": None}, (65, None)),
        ({"eos_token": "<nowhere>"}, (None, None)),
    ],
    ids=str,
)
def test_begin_and_end_may_have_other_names(
    config: dict[str, Any], expected: tuple[Any, Any], tmp_path: Path
) -> None:
    path = write_llmc(tmp_path / "m.bin", CONFIG, TENSORS)
    tokenizer = end_of_text_first(tmp_path / "other", "</s>")
    (tmp_path / "other/tokenizer_config.json").write_text(json.dumps(config))
    assert ends(path, tokenizer) == expected


def test_rows_that_the_tokenizer_leaves_unused_do_not_move_the_end(tmp_path: Path) -> None:
    """Of 97 rows the tokenizer has 90, the last of them added behind the vocabulary."""
    path = write_llmc(tmp_path / "m.bin", CONFIG, TENSORS, padded_vocab_size=128)
    file = write_tokenizer(tmp_path / "short", 89)
    assert ends(path, file) == (88, 88)
    content = json.loads(file.read_text("utf-8"))
    pad = content["added_tokens"][0] | {"id": 89, "content": "[PAD]"}
    content["added_tokens"].append(pad)
    file.write_text(json.dumps(content), "utf-8")
    assert ends(path, file) == (88, 88)
    file = end_of_text_first(tmp_path / "unnamed", "</s>")
    content = json.loads(file.read_text("utf-8"))
    content["model"]["vocab"].pop(max(content["model"]["vocab"], key=content["model"]["vocab"].get))
    file.write_text(json.dumps(content), "utf-8")
    assert ends(path, file) == (96, 96)  # a row without a token, as GPT-2 has its end there


def test_the_model_folder_has_the_tokenizers_end(tmp_path: Path) -> None:
    config = gpt2_config(n_embd=16, n_layer=1, n_head=2)
    path = write_llmc(tmp_path / "m.bin", config, gpt2_tensors(config))
    tokenizer = end_of_text_first(tmp_path / "first")
    folder = export_model(open_checkpoint(path, tokenizer), tmp_path / "out")
    for name in ("config.json", "generation_config.json"):
        written = json.loads((folder.path / name).read_text())
        assert (written["bos_token_id"], written["eos_token_id"]) == (0, 0)
    model = json.loads((folder.path / "genai_config.json").read_text())["model"]
    assert (model["bos_token_id"], model["eos_token_id"]) == (0, [0])


def test_tokenizer_is_found_beside_the_file_or_where_it_is_named(tmp_path: Path) -> None:
    path = write_llmc(tmp_path / "m.bin", CONFIG, TENSORS)
    assert open_checkpoint(path).tokenizer is None
    other = write_tokenizer(tmp_path / "other", 97)
    assert tokenizer_file(open_checkpoint(path, tmp_path / "other")) == other
    assert tokenizer_file(open_checkpoint(path, str(other))) == other
    beside = write_tokenizer(tmp_path, 97)
    assert tokenizer_file(open_checkpoint(path)) == beside
    assert tokenizer_file(open_checkpoint(path, other)) == other


# --- sizes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [3, 5])
@pytest.mark.parametrize("edge", range(17))
@pytest.mark.parametrize("change", [-1, 0, 1])
def test_refuses_every_other_size(version: int, edge: int, change: int, tmp_path: Path) -> None:
    path = write_llmc(tmp_path / "m.bin", CONFIG, TENSORS, version)
    full = path.stat().st_size
    assert full == edges(version)[-1]
    size = edges(version)[edge] + change
    if size == full:
        return
    os.truncate(path, size)
    message = refusal(path)
    if size < 1024:
        assert "has 1,023 bytes, expected a header of 1,024" in message
    else:
        assert f"has {size:,} bytes, expected {full:,} bytes" in message
        assert ("is cut off" if size < full else "has bytes after its end") in message


@pytest.mark.parametrize("size", [4, 5, 1000])
def test_refuses_part_of_a_header(size: int, tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    path.write_bytes(llmc_header(CONFIG)[:size])
    assert f"has {size:,} bytes, expected a header of 1,024" in refusal(path)


def test_refuses_a_header_alone(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    path.write_bytes(llmc_header(CONFIG))
    assert "has 1,024 bytes, expected" in refusal(path)


# --- header words -----------------------------------------------------------------------------

BAD_WORDS = [
    (2, 0, "context length in the header is 0, expected 1 to"),
    (2, -64, "context length in the header is -64"),
    (2, 2**31 - 1, "context length in the header is 2,147,483,647, expected 1 to 1,048,576"),
    (3, 0, "vocabulary in the header is 0"),
    (3, -97, "vocabulary in the header is -97"),
    (3, 2**31 - 1, "vocabulary in the header is 2,147,483,647"),
    (3, 129, "padded vocabulary in the header is 128, expected at least the vocabulary of 129"),
    (4, 0, "layers in the header is 0"),
    (4, -1, "layers in the header is -1"),
    (4, 1_000_000_000, "layers in the header is 1,000,000,000, expected 1 to 1,024"),
    (5, 0, "heads in the header is 0"),
    (5, -4, "heads in the header is -4"),
    (5, 5, "width in the header is 32, expected a multiple of its 5 heads"),
    (5, 2**31 - 1, "heads in the header is 2,147,483,647"),
    (6, 0, "width in the header is 0"),
    (6, -(2**31), "width in the header is -2,147,483,648"),
    (6, 2**31 - 1, "width in the header is 2,147,483,647, expected 1 to 65,536"),
    (7, -1, "padded vocabulary in the header is -1"),
    (7, 0, "padded vocabulary in the header is 0, expected at least the vocabulary of 97"),
    (7, 96, "padded vocabulary in the header is 96, expected at least the vocabulary of 97"),
    (7, 2**31 - 1, "padded vocabulary in the header is 2,147,483,647"),
    (1, 1, "has llm.c version 1, expected 3 (float32) or 5 (bfloat16)"),
    (1, 2, "has llm.c version 2, expected 3 (float32) or 5 (bfloat16)"),
    (1, 4, "has llm.c version 4"),
    (1, 6, "has llm.c version 6"),
    (1, 0, "has llm.c version 0"),
    (1, -3, "has llm.c version -3"),
    # Honest about everything but one number: the size gives it away.
    (2, 65, "bytes = float32 with 128 vocabulary rows by version 3; the file is cut"),
    (4, 1, "the file has bytes after its end"),
    (4, 3, "the file is cut off"),
    (7, 129, "the file is cut off"),
]


@pytest.mark.parametrize(("word", "value", "problem"), BAD_WORDS)
def test_refuses_header_words(word: int, value: int, problem: str, tmp_path: Path) -> None:
    path = write_llmc(tmp_path / "m.bin", CONFIG, TENSORS)
    with path.open("r+b") as file:
        file.seek(4 * word)
        file.write(struct.pack("<i", value))
    assert problem in refusal(path)


@pytest.mark.parametrize(
    ("magic", "what"),
    [
        (20240327, "a debug state"),
        (20240328, "a tokenizer that can only decode"),
        (20240520, "token data with GPT-2 ids"),
        (20240522, "multiple-choice evaluation data"),
        (20240527, "the optimizer state of a training run"),
        (20240801, "token data with Llama 3 ids"),
        (20240803, "a Llama 3 checkpoint or debug state"),
    ],
)
def test_names_the_other_files_of_llmc(magic: int, what: str, tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    path.write_bytes(struct.pack("<i", magic).ljust(2048, b"\0"))
    message = refusal(path)
    assert f"m.bin is {what}" in message
    assert f"(magic {magic}), expected a GPT-2 checkpoint (magic 20240326)" in message


@pytest.mark.parametrize("magic", [0, 20240325, 0x26D73401])
def test_unknown_magic_is_not_llmc(magic: int, tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    path.write_bytes(struct.pack("<I", magic).ljust(2048, b"\0"))
    assert "is a file starting with bytes" in refusal(path)


# --- layouts that share a magic number --------------------------------------------------------


def write_layout(path: Path, version: int, dtype: Any, rows: int, word7: int) -> Path:
    arrays = llmc_arrays(CONFIG, TENSORS, rows)
    payload = b"".join(array.astype(dtype).tobytes() for array in arrays)
    path.write_bytes(llmc_header(CONFIG, version, word7) + payload)
    return path


@pytest.mark.parametrize("word7", [0, 128])
def test_refuses_version_3_of_the_early_layout(word7: int, tmp_path: Path) -> None:
    """llm.c commit 00627070 wrote bfloat16 without padding as version 3."""
    path = write_layout(tmp_path / "m.bin", 3, ml_dtypes.bfloat16, 97, word7)
    message = refusal(path)
    assert f"has {path.stat().st_size:,} bytes, the size of bfloat16 with 97 vocabulary" in message
    assert (
        "128 vocabulary rows by version 3" if word7 else "padded vocabulary, given in"
    ) in message
    assert "this is an early layout: write the file again with a current" in message


@pytest.mark.parametrize(
    ("version", "dtype", "rows"),
    [
        (3, np.float32, 97),
        (3, ml_dtypes.bfloat16, 128),
        (5, ml_dtypes.bfloat16, 97),
        (5, np.float32, 97),
        (5, np.float32, 128),
    ],
)
def test_refuses_layouts_the_version_does_not_mean(
    version: int, dtype: Any, rows: int, tmp_path: Path
) -> None:
    message = refusal(write_layout(tmp_path / "m.bin", version, dtype, rows, 128))
    assert f"the size of {np.dtype(dtype).name} with {rows} vocabulary rows" in message
    assert f"with 128 vocabulary rows by version {version}" in message


def test_refuses_a_size_that_two_layouts_have(tmp_path: Path) -> None:
    """So many padding rows that bfloat16 with them is as long as float32 without."""
    config = gpt2_config(n_layer=1, n_embd=4, n_head=1, n_positions=1)
    tensors = gpt2_tensors(config)
    unpadded = sum(array.size for array in llmc_arrays(config, tensors, 97))
    padded = 97 + unpadded // 4
    path = write_llmc(tmp_path / "m.bin", config, tensors, 5, padded_vocab_size=padded)
    assert path.stat().st_size == 1024 + 4 * unpadded
    message = refusal(path)
    assert "the size of float32 with 97 vocabulary rows and of bfloat16 with" in message
    assert "expected a file that can be read in one way only" in message


# --- reading ----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [3, 5])
def test_refuses_nan_by_tensor_and_layer(version: int, tmp_path: Path) -> None:
    tensors = {name: values.copy() for name, values in TENSORS.items()}
    tensors["transformer.h.1.mlp.c_fc.weight"][3, 5] = np.nan
    checkpoint = open_checkpoint(write_llmc(tmp_path / "m.bin", CONFIG, tensors, version))
    checkpoint.tensors["transformer.h.0.mlp.c_fc.weight"].read()
    with pytest.raises(CheckpointError, match="tensor 'transformer.h.1.mlp.c_fc.weight' holds nan"):
        checkpoint.tensors["transformer.h.1.mlp.c_fc.weight"].read()


def test_refuses_a_file_that_shrank_after_opening(tmp_path: Path) -> None:
    path = write_llmc(tmp_path / "m.bin", CONFIG, TENSORS)
    tensors = open_checkpoint(path).tensors
    os.truncate(path, 2000)
    with pytest.raises(CheckpointError, match="has 2,000 bytes now, expected"):
        tensors["transformer.wte.weight"].read()


def test_reads_the_header_then_only_what_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shown on a sparse file of GPT-2 XL's size, 6 GB."""
    count = count_bytes_read(monkeypatch)
    config = gpt2_config(vocab_size=50257, n_positions=1024, n_embd=1600, n_layer=48, n_head=25)
    path = tmp_path / "gpt2_1558M.bin"
    path.write_bytes(llmc_header(config))
    os.truncate(path, 6_230_746_624)
    tensors = open_checkpoint(path).tensors
    assert count() == 4 + 4 + 1024  # the magic number, twice, then the header
    assert tensors["transformer.h.47.mlp.c_proj.bias"].read().shape == (1600,)
    assert count() == 4 + 4 + 1024 + 4 * 1600
    assert len(tensors) == 48 * 12 + 4


PUBLISHED = [  # (n_layer, n_head, n_embd, bytes in version 3, bytes in version 5)
    (12, 12, 768, 497904640, 248952832),
    (24, 16, 1024, 1419486208, 709743616),
    (36, 20, 1280, 3096361984, 1548181504),
    (48, 25, 1600, 6230746624, 3115373824),
]


@pytest.mark.parametrize(("layers", "heads", "width", "bytes_3", "bytes_5"), PUBLISHED)
def test_sizes_of_the_published_files(
    layers: int, heads: int, width: int, bytes_3: int, bytes_5: int, tmp_path: Path
) -> None:
    config = gpt2_config(
        vocab_size=50257, n_positions=1024, n_embd=width, n_layer=layers, n_head=heads
    )
    for version, size in ((3, bytes_3), (5, bytes_5)):
        path = tmp_path / f"{version}.bin"
        path.write_bytes(llmc_header(config, version))
        os.truncate(path, size)
        assert open_checkpoint(path).tensors["transformer.wte.weight"].shape == (50257, width)


def test_source_names_the_format_and_hashes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    path.write_bytes(
        struct.pack("<8i", 20240326, 3, 1, 1, 1, 1, 1, 1).ljust(1024, b"\0") + b"\0" * 116
    )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert open_checkpoint(path).source() == Source(format="llm.c", files={"m.bin": digest})
