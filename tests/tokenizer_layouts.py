"""Folders of tokenizer files in the layouts that people have, and what transformers makes of them.

Used by the unit tests, which know the ids, and by the comparison with transformers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

TEXT = "ab<|im_start|>user c<|im_end|> [X] d"
FLAGS = {
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": True,
}


def byte_level(*, prefix_space: bool = False) -> dict[str, Any]:
    """tokenizer.json of single bytes with <s> and </s>, ids 256 and 257."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: index for index, character in enumerate(alphabet)}
    library = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["<s>", "</s>"])
    content: dict[str, Any] = json.loads(library.to_str())
    return content


def without_special() -> dict[str, Any]:
    """The same, in which </s> is no special token."""
    content = byte_level()
    content["added_tokens"][1]["special"] = False
    return content


def with_words(*words: str) -> dict[str, Any]:
    """The same with ``words`` as plain entries of its vocabulary, from id 256 on."""
    content = byte_level()
    vocab = content["model"]["vocab"]
    vocab |= {word: 256 + index for index, word in enumerate(words)}
    for index, token in enumerate(content["added_tokens"]):
        token["id"] = len(vocab) + index
    return content


def vocab_and_merges() -> dict[str, Any]:
    vocab = byte_level()["model"]["vocab"] | {"<|endoftext|>": 256}
    return {"vocab.json": vocab, "merges.txt": "#version: 0.2\n"}


@dataclass(frozen=True)
class Layout:
    """Files by name, and what they are together."""

    files: dict[str, Any]
    ids: dict[str, int]  # of tokens in TEXT, and others
    special: set[str]  # of them
    names: dict[str, str] = field(default_factory=dict)  # what a chat template is given


CLASS = {"tokenizer_class": "PreTrainedTokenizerFast"}
START, END = "<|im_start|>", "<|im_end|>"
DECODER = {
    "256": FLAGS | {"content": "<s>"},
    "257": FLAGS | {"content": "</s>"},
    "258": FLAGS | {"content": START},
    "259": FLAGS | {"content": END},
    "260": FLAGS | {"content": "[X]", "special": False, "lstrip": True, "normalized": True},
}

LAYOUTS = {
    "listed in the config": Layout(
        {
            "tokenizer.json": byte_level(),
            "tokenizer_config.json": CLASS | {"added_tokens_decoder": DECODER, "eos_token": END},
        },
        {START: 258, END: 259, "[X]": 260},
        {"<s>", "</s>", START, END},
        {"eos_token": END},
    ),
    "special by the config alone": Layout(
        {
            "tokenizer.json": with_words(START, END),
            "tokenizer_config.json": CLASS
            | {
                "added_tokens_decoder": {
                    "256": FLAGS | {"content": START},
                    "257": FLAGS | {"content": END},
                }
            },
        },
        {START: 256, END: 257, "<s>": 258},
        {"<s>", "</s>", START, END},
    ),
    "named in the map alone": Layout(
        {
            "tokenizer.json": byte_level(),
            "tokenizer_config.json": CLASS | {"bos_token": "<s>"},
            "special_tokens_map.json": {
                "eos_token": FLAGS | {"content": END},
                "pad_token": "</s>",
                "additional_special_tokens": [START],
            },
        },
        {END: 258, START: 259},
        {"<s>", "</s>", START, END},
        {"bos_token": "<s>", "eos_token": END, "pad_token": "</s>"},
    ),
    "the map against the config": Layout(
        {
            "tokenizer.json": byte_level(),
            "tokenizer_config.json": CLASS | {"bos_token": "</s>", "eos_token": "</s>"},
            "special_tokens_map.json": {"bos_token": "<s>"},
        },
        {},
        {"<s>", "</s>"},
        {"bos_token": "<s>", "eos_token": "</s>"},
    ),
    "the map beside a list": Layout(
        {
            "tokenizer.json": byte_level(),
            "tokenizer_config.json": CLASS | {"added_tokens_decoder": DECODER, "bos_token": "<s>"},
            "special_tokens_map.json": {"bos_token": "</s>", "eos_token": "<|not read|>"},
        },
        {START: 258, END: 259, "[X]": 260},
        {"<s>", "</s>", START, END},
        {"bos_token": "<s>"},
    ),
    "added and special": Layout(
        {
            **vocab_and_merges(),
            "tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer", "eos_token": END},
            "added_tokens.json": {END: 258, START: 257, "[X]": 259},
            "special_tokens_map.json": {"bos_token": START, "eos_token": END},
        },
        {START: 257, END: 258, "[X]": 259, "<|endoftext|>": 256},
        {"<|endoftext|>", START, END},
        {"bos_token": START, "eos_token": END, "unk_token": "<|endoftext|>"},
    ),
    "named, but not special": Layout(
        {
            "tokenizer.json": without_special(),
            "tokenizer_config.json": CLASS | {"bos_token": "<s>"},
            "special_tokens_map.json": {"eos_token": "</s>"},
        },
        {},
        {"<s>", "</s>"},
        {"bos_token": "<s>", "eos_token": "</s>"},
    ),
    "a token without text": Layout(
        {
            "tokenizer.json": byte_level(),
            "tokenizer_config.json": CLASS
            | {"added_tokens_decoder": DECODER | {"258": FLAGS | {"content": ""}}},
        },
        {END: 258, "[X]": 259},
        {"<s>", "</s>", END},
    ),
    "the class by the model": Layout(
        {
            **vocab_and_merges(),
            "config.json": {"model_type": "qwen2"},
            "tokenizer_config.json": {"model_max_length": 128},
            "added_tokens.json": {END: 257},
        },
        {END: 257},
        {"<|endoftext|>"},
        dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
    ),
    "extra tokens in a list": Layout(
        {
            "tokenizer.json": byte_level(),
            "tokenizer_config.json": CLASS | {"additional_special_tokens": [START, END, "<s>"]},
        },
        {START: 258, END: 259},
        {"<s>", "</s>", START, END},
    ),
    "a space in front": Layout(
        {
            "tokenizer.json": byte_level(),
            "tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}
            | {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "</s>"},
        },
        {},
        {"<s>", "</s>"},
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "</s>"},
    ),
}


def write_layout(folder: Path, layout: Layout) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in layout.files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text, encoding="utf-8")
    return folder
