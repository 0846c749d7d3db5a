"""What lies beside a tokenizer counts as it does in transformers; what is wrong there is told."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tokenizer_layouts import CLASS, DECODER, END, LAYOUTS, START, Layout, byte_level, write_layout

from pocketlm.export.errors import CheckpointError
from pocketlm.export.folder_tokenizer import read_tokenizer
from pocketlm.export.tokenizers import open_tokenizer
from pocketlm.runtime.chat_template import special_tokens
from pocketlm.runtime.tokenizer import Tokenizer


def opened(folder: Path, vocab_size: int = 300) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer as a model folder has it, and its tokenizer_config.json."""
    files, _ = read_tokenizer(open_tokenizer(folder), vocab_size)
    (folder / "out").mkdir()
    for name, data in files.items():
        (folder / "out" / name).write_bytes(data)
    config = json.loads(files.get("tokenizer_config.json", b"{}"))
    return Tokenizer.open(folder / "out" / "tokenizer.json"), config


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_tokens_are_those_of_transformers(layout: Layout, tmp_path: Path) -> None:
    tokenizer, config = opened(write_layout(tmp_path, layout))
    assert {token: tokenizer.id_of(token) for token in layout.ids} == layout.ids
    for token, token_id in layout.ids.items():
        assert tokenizer.encode(f"x{token}", add_special_tokens=False)[-1] == token_id
    assert {*tokenizer.special_spellings} == layout.special
    assert special_tokens(config) == layout.names


def test_flags_and_the_space_in_front_are_those_of_the_config(tmp_path: Path) -> None:
    tokenizer, _ = opened(write_layout(tmp_path / "a", LAYOUTS["listed in the config"]))
    assert tokenizer.encode("a [X]", add_special_tokens=False)[1:] == [260]  # takes the space
    spaced, _ = opened(write_layout(tmp_path / "b", LAYOUTS["a space in front"]))
    assert spaced.decode(spaced.encode("a")) == " a"


def test_a_tokenizer_that_has_it_all_stays_byte_for_byte(tmp_path: Path) -> None:
    layout = LAYOUTS["the map against the config"]
    write_layout(tmp_path, layout)
    source = open_tokenizer(tmp_path)
    data = (tmp_path / "tokenizer.json").read_bytes()
    assert source.folder_files(source.read())["tokenizer.json"] == data


def test_defaults_of_a_class_are_tokens_that_there_are(tmp_path: Path) -> None:
    config: dict[str, Any] = {"tokenizer_class": "LlamaTokenizerFast", "eos_token": None}
    files = {"tokenizer.json": byte_level(), "tokenizer_config.json": config}
    _, found = opened(write_layout(tmp_path, Layout(files, {}, set())))
    assert found == config | {"bos_token": "<s>"}  # no <unk>, and null is none


def test_tokens_beyond_the_embedding_and_padding_are_told(tmp_path: Path) -> None:
    source = open_tokenizer(write_layout(tmp_path, LAYOUTS["listed in the config"]))
    assert read_tokenizer(source, 261)[1] == ()
    (told,) = read_tokenizer(source, 258)[1]
    assert told == (
        "tokenizer.json has '<|im_start|>', '<|im_end|>', '[X]' beyond the 258 rows of the "
        "embedding: a prompt with such a token is refused"
    )
    (told,) = read_tokenizer(source, 100_000)[1]
    assert "has 261 tokens, the embedding 100,000 rows" in told
    with pytest.raises(CheckpointError, match="belongs to another model"):
        read_tokenizer(source, 255)  # what texts are made of


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("special_tokens_map.json", "", "special_tokens_map.json is not valid JSON"),
        ("special_tokens_map.json", "[]", "special_tokens_map.json holds a JSON array"),
        ("special_tokens_map.json", '{"bos_token": 1}', "bos_token is '1', expected a token"),
        ("special_tokens_map.json", '{"bos_token": {}}', "bos_token is '{}', expected a token"),
        ("special_tokens_map.json", '{"bos_token": ["<s>"]}', "expected a token"),
        ("special_tokens_map.json", '{"additional_special_tokens": [3]}', "expected a token"),
        ("special_tokens_map.json", '{"a": "b", "a": "c"}', "has the key 'a' twice"),
        ("added_tokens.json", '{"<x>": 258', "added_tokens.json is not valid JSON"),
        ("added_tokens.json", '{"<x>": "258"}', "'<x>' has the id '258', expected tokens"),
        ("added_tokens.json", '{"<x>": true}', "has the id 'True'"),
        ("added_tokens.json", '{"<x>": -1}', "has the id '-1'"),
        ("added_tokens.json", '{"": 258}', "'' has the id"),
        ("added_tokens.json", '{"<x>": 258, "<x>": 259}', "has the key '<x>' twice"),
        ("tokenizer_config.json", '{"eos_token": 5}', "the special token '5', expected a text"),
        ("tokenizer_config.json", '{"extra_special_tokens": [5]}', "the special token '5'"),
        ("tokenizer_config.json", '{"added_tokens_decoder": []}', "added_tokens_decoder is"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {}}}', "added_tokens_decoder.x"),
        ("tokenizer_config.json", '{"clean_up_tokenization_spaces": 1}', "clean_up_tok.* is '1'"),
        ("tokenizer_config.json", '{"add_prefix_space": "no"}', "add_prefix_space is 'no'"),
    ],
    ids=str,
)
def test_files_that_are_not_what_they_should_be_are_named(
    name: str, content: str, message: str, tmp_path: Path
) -> None:
    write_layout(tmp_path, Layout({"tokenizer.json": byte_level()}, {}, set()))
    (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        open_tokenizer(tmp_path).read()


@pytest.mark.parametrize(
    "name",
    ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"]
    + ["chat_template.jinja"],
)
def test_a_git_lfs_pointer_is_named_wherever_it_lies(name: str, tmp_path: Path) -> None:
    write_layout(tmp_path, Layout({"tokenizer.json": byte_level()}, {}, set()))
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    (tmp_path / name).write_text(pointer)
    with pytest.raises(CheckpointError, match=f"'{name}' is a Git LFS pointer.*run git lfs pull"):
        open_tokenizer(tmp_path).read()


def test_both_spellings_of_further_tokens_are_known(tmp_path: Path) -> None:
    spellings: list[dict[str, Any]] = [
        {"extra_special_tokens": [START, END]},
        {"extra_special_tokens": {"start_token": START, "end_token": {"content": END}}},
        {"start_token": START, "end_token": END},
    ]
    for index, further in enumerate(spellings):
        files = {"tokenizer.json": byte_level(), "tokenizer_config.json": CLASS | further}
        tokenizer, _ = opened(write_layout(tmp_path / str(index), Layout(files, {}, set())))
        assert [tokenizer.id_of(START), tokenizer.id_of(END)] == [258, 259]
        assert {258, 259} <= tokenizer.special_ids


def test_a_token_of_the_config_that_is_there_keeps_its_id(tmp_path: Path) -> None:
    """The library counts; what tokenizer_config.json says of ids is not asked."""
    shuffled = {"400": DECODER["258"], "300": DECODER["259"]}
    files = {
        "tokenizer.json": byte_level(),
        "tokenizer_config.json": {"added_tokens_decoder": shuffled},
    }
    tokenizer, _ = opened(write_layout(tmp_path, Layout(files, {}, set())))
    assert [tokenizer.id_of(END), tokenizer.id_of(START)] == [258, 259]


def test_words_are_cut_as_the_model_asks_where_no_class_is_named(tmp_path: Path) -> None:
    tokenizer, _ = opened(write_layout(tmp_path, LAYOUTS["the class by the model"]))
    assert len(tokenizer.encode("\u0065\u0301")) == 2  # NFC, which GPT-2's has not


def test_llmcs_own_tokenizer_is_named(tmp_path: Path) -> None:
    file = tmp_path / "gpt2_tokenizer.bin"
    file.write_bytes((20240328).to_bytes(4, "little") + bytes(1020))
    with pytest.raises(CheckpointError, match=re.escape("a tokenizer of llm.c, which can only")):
        open_tokenizer(file).read()
