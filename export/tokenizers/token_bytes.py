"""The bytes that a token stands for, from the ``decoder`` section of tokenizer.json.

Every token stands for a fixed run of bytes, and a text is the UTF-8 reading of their concatenation:

    ByteLevel                          each character names a byte (GPT-2's printable alphabet)
    Sequence of Replace, ByteFallback, "▁" is a space, <0xE2> is a byte, the rest is UTF-8
      Fuse, Strip (at the start)         (sentencepiece, Llama)
    Fuse, or none                      UTF-8 of the token, nothing put in between

Other decoders (WordPiece, CTC, ...) rewrite text depending on the neighbours and are refused.
Source: the decoders of the tokenizers library, which agree on all valid UTF-8.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from .byte_alphabet import byte_alphabet

KNOWN_DECODERS = "ByteLevel, Fuse, none, or a Sequence of Replace, ByteFallback, Fuse and Strip"


class UnknownDecoder(ValueError):
    """The message has found and expected."""


def read_decoder(decoder: dict[str, Any] | None) -> tuple[Callable[[str], bytes], int]:
    """The function token -> bytes, and how many spaces to strip at the start of a text.

    Raises ``UnknownDecoder`` for one that is not known.
    """
    steps: list[Callable[[str | bytes], str | bytes]] = []
    strip = 0
    fused = False
    for part in _flatten(decoder):
        match part:
            case {"type": "ByteLevel"}:
                steps.append(_from_byte_level)
            case {"type": "ByteFallback"}:
                steps.append(_from_byte_fallback)
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if (
                not fused
            ):
                steps.append(_replacing(old, new))
            case {"type": "Fuse"}:
                fused = True
            case {"type": "Strip", "content": " ", "start": int(start), "stop": 0} if fused:
                strip += start
            case _:
                found = json.dumps(part, ensure_ascii=False)
                raise UnknownDecoder(
                    f"decoder has the part {found[:200]}, expected {KNOWN_DECODERS}"
                )

    def to_bytes(token: str) -> bytes:
        value: str | bytes = token
        for step in steps:
            value = step(value)
        return value.encode("utf-8") if isinstance(value, str) else value

    return to_bytes, strip


def _flatten(decoder: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if decoder is None:
        return
    if decoder.get("type") == "Sequence":
        for part in decoder.get("decoders", ()):
            yield from _flatten(part)
    else:
        yield decoder


_ALPHABET = {character: byte for byte, character in enumerate(byte_alphabet())}


def _from_byte_level(token: str | bytes) -> str | bytes:
    """Bytes of a token written in the alphabet; an added token with other characters is text."""
    if isinstance(token, str) and all(character in _ALPHABET for character in token):
        return bytes(_ALPHABET[character] for character in token)
    return token


def _from_byte_fallback(token: str | bytes) -> str | bytes:
    """<0xE2> is the byte E2; everything else stays."""
    if isinstance(token, str) and len(token) == 6 and token[:3] == "<0x" and token[5] == ">":
        try:
            return bytes.fromhex(token[3:5])
        except ValueError:
            pass
    return token


def _replacing(old: str, new: str) -> Callable[[str | bytes], str | bytes]:
    return lambda token: token.replace(old, new) if isinstance(token, str) else token
