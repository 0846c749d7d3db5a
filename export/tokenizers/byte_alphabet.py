"""GPT-2's alphabet: one printable character for each byte, so that merges can be text.

Printable Latin-1 stands for itself, the rest for U+0100 onwards. Source: ``bytes_to_unicode`` in
the GPT-2 repository's encoder.py.
"""

from __future__ import annotations


def byte_alphabet() -> list[str]:
    """The character of each byte."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def byte_level(*, use_regex: bool) -> dict[str, object]:
    """The part of tokenizer.json that spells bytes in the alphabet, or reads them back."""
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def split_by(pattern: str) -> dict[str, object]:
    """A pre-tokenizer that cuts a text by ``pattern`` and spells the words in the alphabet."""
    return {
        "type": "Sequence",
        "pretokenizers": [
            {
                "type": "Split",
                "pattern": {"Regex": pattern},
                "behavior": "Isolated",
                "invert": False,
            },
            byte_level(use_regex=False),
        ],
    }
