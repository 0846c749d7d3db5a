"""A tokenizer.json as transformers opens it: with what the files beside it say.

Tokens that tokenizer_config.json or added_tokens.json list, or that are named as special ones, and
that tokenizer.json lacks, are added to it; where both have a token, the flags in
``added_tokens_decoder`` win. What that lists gets the id that the tokenizers library gives it: that
of the vocabulary if it is there, else the next one that is free.

Sources: ``PreTrainedTokenizerFast.__init__`` of transformers 4.57, ``TokenizersBackend.__init__``
and ``_decode`` of 5.24; ``AddedVocabulary.add_tokens`` of the tokenizers library for the ids.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..errors import CheckpointError
from ..strict_json import shown
from .added_tokens import Token, added_token, configured_tokens, spelling, token_flags, wanted
from .beside import EXTRA, NAMES

# Tokens that a class of tokenizers has unless told otherwise: bos_token, eos_token, unk_token,
# pad_token. Only classes that models known here are published with.
_END = "<|endoftext|>"
CLASS_DEFAULTS: dict[str, tuple[str | None, ...]] = {
    "GPT2Tokenizer": (_END, _END, _END, None),
    "GPTNeoXTokenizer": (_END, _END, _END, None),
    "CodeGenTokenizer": (_END, _END, _END, None),
    "Qwen2Tokenizer": (None, _END, _END, _END),
    "LlamaTokenizer": ("<s>", "</s>", "<unk>", None),
    "GemmaTokenizer": ("<bos>", "<eos>", "<unk>", "<pad>"),
}
DEFAULTED = ("bos_token", "eos_token", "unk_token", "pad_token")

# What transformers does to a decoded text; in this order.
CLEANED = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


class Rewritten(dict[str, Any]):
    """tokenizer.json's content where it is no longer that of its file."""


def configured(
    content: dict[str, Any], config: dict[str, Any], added: dict[str, int]
) -> dict[str, Any]:
    """``content`` itself where ``config`` and ``added`` say nothing new, else ``Rewritten``.

    Raises CheckpointError for a ``config`` that is not what transformers writes.
    """
    changed = {
        "added_tokens": _added_tokens(content, config, added),
        "pre_tokenizer": _pre_tokenizer(content.get("pre_tokenizer"), config),
        "decoder": _decoder(content, config),
    }
    new = {name: value for name, value in changed.items() if value != (content.get(name) or None)}
    if not changed["added_tokens"]:
        new.pop("added_tokens", None)
    return Rewritten(content | new) if new else content


def with_class_defaults(config: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    """``config`` with the special tokens of its class that it does not mention and there are."""
    name = str(config.get("tokenizer_class")).removesuffix("Fast")
    defaults = zip(DEFAULTED, CLASS_DEFAULTS.get(name, ()), strict=False)
    missing = {key: token for key, token in defaults if token is not None and key not in config}
    if not missing:
        return config
    ids = _Ids(content)
    return config | {key: token for key, token in missing.items() if ids.known(token)}


def decoder_of(config: dict[str, Any], added: dict[str, int]) -> dict[str, Any]:
    """``added`` in the form of ``added_tokens_decoder``."""
    special = {*_named(config), *_extra(config)}
    return {
        str(token_id): {
            **added_token(token_id, token, special=token in special),
            "normalized": token not in special,
        }
        for token, token_id in added.items()
    }


class _Ids:
    """The ids of tokens, as the library gives them."""

    def __init__(self, content: dict[str, Any]) -> None:
        model = content.get("model")
        vocab = model.get("vocab") if isinstance(model, dict) else None
        if isinstance(vocab, list):  # [text, score] of a Unigram model
            pieces = [entry[0] if isinstance(entry, list) and entry else entry for entry in vocab]
            vocab = {str(piece): index for index, piece in reversed(list(enumerate(pieces)))}
        self._vocab: dict[str, Any] = vocab if isinstance(vocab, dict) else {}
        self.added: dict[str, Token] = {}
        for token in _listed(content):
            self.added[str(token.get("content"))] = token
        self._next = max([len(self._vocab), *(int(t["id"]) + 1 for t in self.added.values())])

    def known(self, token: str) -> bool:
        return token in self.added or token in self._vocab

    def new(self, token: str) -> int:
        """Of a token that is not among those added."""
        if token in self._vocab:
            found: int = self._vocab[token]
            return found
        self._next += 1
        return self._next - 1


def _listed(content: dict[str, Any]) -> list[Token]:
    """Those of tokenizer.json that are well formed; others are refused when it is checked."""
    listed = content.get("added_tokens")
    tokens = listed if isinstance(listed, list) else []
    return [t for t in tokens if isinstance(t, dict) and type(t.get("id")) is int]


def _added_tokens(
    content: dict[str, Any], config: dict[str, Any], added: dict[str, int]
) -> list[Token] | None:
    stored = content.get("added_tokens")
    if stored and (not isinstance(stored, list) or len(_listed(content)) != len(stored)):
        found: list[Token] = stored
        return found  # refused when it is checked
    named, extra = _named(config), _extra(config)
    ids = _Ids(content)
    before = {token: dict(entry) for token, entry in ids.added.items()}

    def add(token: Token) -> None:
        name = token["content"]
        old = ids.added.get(name)
        token_id = ids.new(name) if old is None else old["id"]
        special = token["special"] or name in named or (old is not None and old.get("special"))
        ids.added[name] = {**token, "id": token_id, "special": bool(special)}

    for token in configured_tokens(config):
        add(token)
    for name, token_id in sorted(added.items(), key=lambda item: item[1]):
        if name not in ids.added:
            flags = decoder_of(config, {name: token_id})[str(token_id)]
            add(flags)
    for token in (*named.values(), *extra.values()):
        name = token["content"]
        if name not in ids.added:
            add(token)
        elif name in named:
            ids.added[name] = {**ids.added[name], "special": True}
    if ids.added == before:
        return stored or None
    return sorted(ids.added.values(), key=lambda token: int(token["id"]))


def _named(config: dict[str, Any]) -> dict[str, Token]:
    """The special tokens with a name, by spelling."""
    others = [name for name in config if name.endswith("_token") and name not in NAMES]
    tokens = [config.get(name) for name in NAMES]
    tokens += [config[name] for name in others if isinstance(config[name], str)]
    return _by_spelling(tokens)


def _extra(config: dict[str, Any]) -> dict[str, Token]:
    """Those without: transformers 5 calls them otherwise, and may give them names of their own."""
    found: Any = next((config[name] for name in reversed(EXTRA) if config.get(name)), [])
    values = found.values() if isinstance(found, dict) else found
    return _by_spelling(values if isinstance(found, dict | list) else [])


def _by_spelling(values: Iterable[Any]) -> dict[str, Token]:
    tokens = {}
    for value in values:
        text = spelling(value)
        if text is None and value is not None:
            raise CheckpointError(
                f"tokenizer_config.json: found the special token {shown(value)}, expected a text "
                "or an object with its content; the file is damaged or belongs to another model"
            )
        if text:
            tokens[text] = added_token(0, text, special=True) | token_flags(value)
    return tokens


def _pre_tokenizer(stored: Any, config: dict[str, Any]) -> Any:
    """``add_prefix_space`` of the config is that of GPT-2's pre-tokenizer."""
    if not isinstance(stored, dict) or stored.get("type") != "ByteLevel":
        return stored or None
    is_gpt2 = str(config.get("tokenizer_class")).removesuffix("Fast") == "GPT2Tokenizer"
    found = stored.get("add_prefix_space", True)
    prefix = wanted(config, "add_prefix_space", False if is_gpt2 else found)
    return stored if prefix == found else {**stored, "add_prefix_space": prefix}


def _decoder(content: dict[str, Any], config: dict[str, Any]) -> Any:
    """``clean_up_tokenization_spaces`` written out, where transformers 5 still does it.

    That is not with BPE, whose texts it only spoils, unless told so by a name that says as much.
    """
    stored = content.get("decoder") or None
    model = content.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    anyway = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
    if not wanted(config, "clean_up_tokenization_spaces", False):
        return stored
    if kind in ("BPE", None) and not wanted(config, anyway, False):
        return stored
    # Without a decoder the library puts a space between tokens: so does this one.
    spaced = {"type": "WordPiece", "prefix": "\0no token begins so\0", "cleanup": False}
    replaced = [
        {"type": "Replace", "pattern": {"String": old}, "content": old.strip(" ")}
        for old in CLEANED
    ]
    return {"type": "Sequence", "decoders": [stored or spaced, {"type": "Fuse"}, *replaced]}
