"""What the conversions share: tokens beside the vocabulary, and what is put around a text."""

from __future__ import annotations

from typing import Any

from ..errors import CheckpointError
from ..strict_json import shown

Token = dict[str, Any]


def added_token(token_id: int, content: str, *, special: bool) -> Token:
    """An entry of tokenizer.json's ``added_tokens``."""
    return {
        "id": token_id,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }


def configured_tokens(config: dict[str, Any]) -> list[Token]:
    """The tokens that tokenizer_config.json lists under ``added_tokens_decoder``, by id.

    One without text is none to the tokenizers library either, and leaves its ID free.
    """
    listed = config.get("added_tokens_decoder", {})
    if not isinstance(listed, dict):
        raise _wrong("added_tokens_decoder", listed)
    tokens = []
    for key, entry in listed.items():
        content = entry.get("content") if isinstance(entry, dict) else None
        if not key.isdecimal() or len(key) > 9 or not isinstance(content, str):
            raise _wrong(f"added_tokens_decoder.{key}", entry)
        if not content:
            continue
        token = added_token(int(key), content, special=entry.get("special") is True)
        tokens.append(token | token_flags(entry))
    return sorted(tokens, key=lambda token: int(token["id"]))


def token_flags(entry: object) -> Token:
    """What a token's entry says of the text around it; nothing where it is a text alone."""
    flags = ("single_word", "lstrip", "rstrip", "normalized")
    return {flag: entry.get(flag) is True for flag in flags} if isinstance(entry, dict) else {}


def spelling(entry: object) -> str | None:
    """That of a token given as text, or as an object with its content."""
    text = entry.get("content") if isinstance(entry, dict) else entry
    return text if isinstance(text, str) else None


def around(ids: dict[str, int], begin: str | None, end: str | None) -> Token | None:
    """The post-processor that puts ``begin`` before and ``end`` after a text, or None."""

    def special(name: str) -> Token:
        return {"SpecialToken": {"id": name, "type_id": 0}}

    if begin is None and end is None:
        return None
    first = [special(begin)] if begin is not None else []
    last = [special(end)] if end is not None else []

    def part(name: str, type_id: int) -> list[Token]:
        return [*first, {"Sequence": {"id": name, "type_id": type_id}}, *last]

    return {
        "type": "TemplateProcessing",
        "single": part("A", 0),
        "pair": [*part("A", 0), *part("B", 1)],
        "special_tokens": {
            name: {"id": name, "ids": [ids[name]], "tokens": [name]}
            for name in (begin, end)
            if name is not None
        },
    }


def named_token(config: dict[str, Any], name: str, default: str | None = None) -> str | None:
    """How ``config`` spells ``name``, such as "eos_token"; None where there is none."""
    value = config.get(name, default)
    text = spelling(value)
    if text is None and value is not None:
        raise _wrong(name, value)
    return text


def wanted(config: dict[str, Any], name: str, default: bool) -> bool:
    """``add_bos_token`` and its like: true, false, or absent."""
    value = config.get(name, default)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise _wrong(name, value)
    return value


def _wrong(name: str, value: object) -> CheckpointError:
    return CheckpointError(
        f"tokenizer_config.json: {name} is {shown(value, 80)}, expected what transformers writes "
        "there; the file is damaged or belongs to another model"
    )
