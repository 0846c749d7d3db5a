"""The bytes that a token stands for, from the ``decoder`` section of tokenizer.json.

Where every token stands for a fixed run of bytes, but for the first one of a text, a text is the
UTF-8 reading of their concatenation:

    ByteLevel          each character names a byte (GPT-2's printable alphabet)
    Replace, Strip     of text in a token
    ByteFallback       <0xE2> is a byte (sentencepiece, Llama)
    Metaspace          "▁" is a space, and nothing in the first token
    WordPiece          "##" goes on with a word, all else but the first token begins one
    none               a space before every token but the first
    Fuse, then Strip   spaces at the start of the text

in those orders in which that holds. Others (CTC, BPEDecoder, patterns, changes to the whole text)
look at a token's neighbours and have no rule here: they are left to the library.

Source: the decoders of the tokenizers library. Both agree on all valid UTF-8; of bytes that are
none, ByteFallback makes one U+FFFD each and gives up whole characters beside them, which are kept
here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .byte_alphabet import byte_alphabet

Step = Callable[[str | bytes], str | bytes]

PATTERN_LENGTH = 32  # characters that a regular expression is thought to match at most

# Of WordPiece with ``cleanup``, in this order, within a token.
CLEANED = (
    *((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't")),
    *((" 'm", "'m"), (" do not", " don't"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re")),
)


@dataclass(frozen=True)
class ByteRule:
    """What a token adds to a text."""

    first: Callable[[str], bytes]  # as the first token
    later: Callable[[str], bytes]
    strip: int  # spaces that are dropped at the start of the text
    drops_first_space: bool = False  # ``first`` lacks the space that ``later`` may begin with


def read_decoder(decoder: dict[str, Any] | None) -> ByteRule | None:
    """The rule for a tokenizer.json's ``decoder``; None where tokens have no bytes of their own."""
    if decoder is None:
        return _rule([], [_after_space], 0)
    first: list[Step] = []
    later: list[Step] = []
    strip = 0
    as_bytes = fused = False
    for part in _flatten(decoder):
        step = None if as_bytes or fused else _same_for_all(part)
        match part:
            case _ if step is not None:
                first.append(step)
                later.append(step)
            case {"type": "ByteLevel"} if not as_bytes and not fused:
                first.append(_from_byte_level)
                later.append(_from_byte_level)
                fused = True
            case {"type": "ByteFallback"} if not as_bytes and not fused:
                first.append(_from_byte_fallback)
                later.append(_from_byte_fallback)
                as_bytes = True
            case {"type": "Metaspace", "replacement": str(mark)} if not as_bytes and not fused:
                always = part.get("prepend_scheme", "always") != "never"
                first.append(_replacing(mark, "" if always else " "))
                later.append(_replacing(mark, " "))
            case {"type": "WordPiece", "prefix": str(prefix)} if not as_bytes and not fused:
                clean = _cleaned if part.get("cleanup", True) else _unchanged
                first.append(clean)
                later += [_word_piece(prefix), clean]
            case {"type": "Fuse"}:
                fused = True
            case {"type": "Strip", "content": " ", "start": int(start), "stop": 0} if fused:
                strip += start
            case _:
                return None
    return _rule(first, later, strip)


def looks_back(decoder: dict[str, Any] | None) -> int:
    """Characters at the end of a text that may still change when it goes on, beside the last token.

    Those that changes to the whole text look at together. Of a pattern nobody knows how many.
    """
    held, whole = 0, False
    for part in _flatten(decoder or {}):
        match part:
            case {"type": "Fuse" | "ByteLevel"}:
                whole = True
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if whole:
                held += max(len(old), len(new))
            case {"type": "Replace"} if whole:
                held += PATTERN_LENGTH
            case {"type": "Strip", "stop": int(stop)} if whole:
                held += stop
    return held


def _rule(first: list[Step], later: list[Step], strip: int) -> ByteRule:
    def applied(steps: list[Step]) -> Callable[[str], bytes]:
        def to_bytes(token: str) -> bytes:
            value: str | bytes = token
            for step in steps:
                value = step(value)
            return value.encode("utf-8") if isinstance(value, str) else value

        return to_bytes

    if first == later:
        return ByteRule(applied(later), applied(later), strip)
    return ByteRule(applied(first), applied(later), strip, drops_first_space=True)


def _flatten(decoder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if decoder.get("type") == "Sequence":
        for part in decoder.get("decoders", ()):
            yield from _flatten(part)
    else:
        yield decoder


def _same_for_all(part: dict[str, Any]) -> Step | None:
    """A part that changes text, and that of every token alike."""
    match part:
        case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if old:
            return _replacing(old, new)
        case {"type": "Strip", "content": str(character), "start": int(start), "stop": int(stop)}:
            return _stripping(character, start, stop)
    return None


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


def _replacing(old: str, new: str) -> Step:
    return lambda token: token.replace(old, new) if isinstance(token, str) else token


def _stripping(character: str, start: int, stop: int) -> Step:
    def strip(token: str | bytes) -> str | bytes:
        assert isinstance(token, str)
        begin = min(start, len(token) - len(token.lstrip(character)))
        end = len(token) - min(stop, len(token) - len(token.rstrip(character)))
        return token[begin : max(begin, end)]

    return strip


def _word_piece(prefix: str) -> Step:
    def joined(token: str | bytes) -> str | bytes:
        assert isinstance(token, str)
        return token.removeprefix(prefix) if token.startswith(prefix) else f" {token}"

    return joined


def _cleaned(token: str | bytes) -> str | bytes:
    assert isinstance(token, str)
    for old, new in CLEANED:
        token = token.replace(old, new)
    return token


def _unchanged(token: str | bytes) -> str | bytes:
    return token


def _after_space(token: str | bytes) -> str | bytes:
    assert isinstance(token, str)
    return f" {token}"
