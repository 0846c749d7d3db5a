"""Text in, token ids out, and back: tokenizer.json through the ``tokenizers`` library.

Encoding is the library's. Decoding is ours and goes by bytes: every token stands for a fixed run
of bytes, a text is the UTF-8 reading of their concatenation, and what a stream holds back is never
more than an unfinished character. The bytes follow from the ``decoder`` section of the file:

    ByteLevel                          each character names a byte (GPT-2's printable alphabet)
    Sequence of Replace, ByteFallback, "▁" is a space, <0xE2> is a byte, the rest is UTF-8
      Fuse, Strip (at the start)         (sentencepiece, Llama)
    Fuse, or none                      UTF-8 of the token, nothing put in between

Other decoders (WordPiece, CTC, ...) rewrite text depending on the neighbours and are refused.

Sources: ``bytes_to_unicode`` in the GPT-2 repository's encoder.py; the decoders of the tokenizers
library, with which decoding agrees on all valid UTF-8.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from ..export.errors import ModelFolderError, RequestError
from ..export.memory import exhausted, is_exhaustion
from ..export.tokenizers.byte_alphabet import byte_alphabet
from .quoting import PlainTwin, Quotation

MAX_CHARACTERS = 16 * 131072
"""Longest text ``encode`` takes unless told: 16 characters per token of a long context.

The library (0.23) takes linear time: with GPT-2's vocabulary about 0.6 s per million Latin letters
and 1.7 s per million Chinese ones, in one run or in words. Pass less where that is too long.
"""

KNOWN_DECODERS = "ByteLevel, Fuse, none, or a Sequence of Replace, ByteFallback, Fuse and Strip"


class Tokenizer:
    """The tokenizer of a model folder; open it with ``Tokenizer.open``."""

    def __init__(self, library: tokenizers.Tokenizer, path: Path) -> None:
        self._library = library
        self._path = path
        with self._library_errors("reading the decoder"):
            state = None if library.decoder is None else library.decoder.__getstate__()
            added = library.get_added_tokens_decoder()
        self._to_bytes, self._strip = _read_decoder(json.loads(state) if state else None, path)
        self._bytes: dict[int, bytes] = {}
        special = {token_id: token for token_id, token in added.items() if token.special}
        self.special_ids: frozenset[int] = frozenset(special)
        self.special_spellings: tuple[str, ...] = tuple(
            token.content for token in special.values() if token.content
        )

    @staticmethod
    def open(path: str | Path) -> Tokenizer:
        """Opens a tokenizer.json. Truncation, padding and BPE dropout set in it are switched off.

        Raises ModelFolderError for a file that cannot be read or has a decoder unknown to us.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelFolderError(
                f"{path}: cannot be read ({error}), expected a tokenizer.json in UTF-8; "
                "export the checkpoint again"
            ) from error
        with _library_errors(path, "reading it"):
            library = tokenizers.Tokenizer.from_str(text)
            library.no_truncation()
            library.no_padding()
            if getattr(library.model, "dropout", None) is not None:
                library.model.dropout = None
        return Tokenizer(library, path)

    def encode(
        self,
        text: str,
        *,
        add_special_tokens: bool = True,
        max_characters: int = MAX_CHARACTERS,
    ) -> list[int]:
        """Token ids of ``text``, with the special tokens the file's post-processor adds.

        Text that spells a special token, such as "<|endoftext|>", becomes that token: text from
        strangers goes through a ``Quotation`` and ``encode_quoting``. Raises RequestError for a
        text with more than ``max_characters`` or with lone surrogates, which have no UTF-8.
        """
        self._check_text(text, max_characters)
        with self._library_errors("encoding a text"):
            ids: list[int] = self._library.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def encode_with_ends(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids of ``text``, none added, and the character of ``text`` each of them ends at.

        Several tokens of one character end at the same place, and a tokenizer may leave whitespace
        out, so that an end may lie before the one before it.
        """
        self._check_text(text, len(text))
        with self._library_errors("encoding a text"):
            encoding = self._library.encode(text, add_special_tokens=False)
            return encoding.ids, [end for _, end in encoding.offsets]

    def encode_quoting(
        self,
        text: str,
        quotation: Quotation,
        *,
        add_special_tokens: bool = True,
        max_characters: int = MAX_CHARACTERS,
    ) -> list[int]:
        """As ``encode``; what ``quotation`` hid in ``text`` is encoded as the text that it was."""
        self._check_text(quotation.restore(text), max_characters)
        with self._library_errors("encoding a text"):
            return self._plain_twin.encode(text, quotation.restore, add_special_tokens)

    @cached_property
    def _plain_twin(self) -> PlainTwin:
        """Made when a text first spells a special token: most never do."""
        return PlainTwin(self._library)

    def _check_text(self, text: str, max_characters: int) -> None:
        if not isinstance(text, str):
            raise RequestError(
                f"text is of type {type(text).__name__}, expected a string; decode bytes first"
            )
        if len(text) > max_characters:
            raise RequestError(
                f"text has {len(text)} characters, expected at most {max_characters}; "
                "shorten it, or send it in parts"
            )
        surrogate = _surrogate(text)
        if surrogate is not None:
            raise RequestError(
                f"text has the lone surrogate U+{ord(text[surrogate]):04X} at character "
                f"{surrogate}, expected Unicode text; remove it, or join it with its pair"
            )

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of ``ids``; bytes that are not UTF-8 become U+FFFD.

        Ids without a token, as a model with a padded vocabulary may produce, add nothing.
        Raises RequestError for a negative id.
        """
        joined = b"".join(
            self.token_bytes(token_id, skip_special_tokens=skip_special_tokens) for token_id in ids
        )
        return _strip_start(joined, self._strip)[0].decode("utf-8", errors="replace")

    def detokenizer(
        self, after: Sequence[int] = (), *, skip_special_tokens: bool = True
    ) -> Detokenizer:
        """The same, one token at a time. ``after``: ids before the first, whose text is known.

        A sentencepiece text loses the space before its first word; the text that continues a
        prompt must not, and that is what ``after=prompt_ids`` is for.
        """
        detokenizer = Detokenizer(self, skip_special_tokens=skip_special_tokens)
        for token_id in after:
            detokenizer.add(token_id)
        return detokenizer

    def token_bytes(self, token_id: int, *, skip_special_tokens: bool = True) -> bytes:
        """The bytes a token adds to a text; none for an id without a token, or a special one."""
        if skip_special_tokens and token_id in self.special_ids:
            return b""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._find_bytes(token_id)
        return known

    def id_of(self, text: str) -> int | None:
        """Id of the token that is spelled so in tokenizer.json, such as "<|endoftext|>"."""
        if _surrogate(text) is not None:
            return None
        with self._library_errors("looking up a token"):
            return self._library.token_to_id(text)

    @cached_property
    def vocab_size(self) -> int:
        """Largest id + 1; there may be ids below without a token."""
        with self._library_errors("listing the vocabulary"):
            ids = self._library.get_vocab(with_added_tokens=True).values()
        return max(ids, default=-1) + 1

    @property
    def strips_leading_spaces(self) -> int:
        """How many spaces at the start of a text decoding drops: 1 for sentencepiece."""
        return self._strip

    def _find_bytes(self, token_id: int) -> bytes:
        if token_id < 0:
            raise RequestError(
                f"token id {token_id}, expected 0 or above; use ids that encode or the model gave"
            )
        if token_id >= 2**32:  # more than the library's ids can be
            return b""
        with self._library_errors("looking up a token"):
            content = self._library.id_to_token(int(token_id))
        return b"" if content is None else self._to_bytes(content)

    def _library_errors(self, doing: str) -> AbstractContextManager[None]:
        return _library_errors(self._path, doing)


class Detokenizer:
    """Token ids in, printable pieces of text out; from ``Tokenizer.detokenizer``.

    The pieces join to what ``Tokenizer.decode`` gives for all ids. No piece has half a character;
    at most the three bytes of an unfinished one are held back.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._strip = tokenizer.strips_leading_spaces
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token_id: int) -> str:
        """The text that this token completes; "" when it ends inside a character."""
        added = self._tokenizer.token_bytes(token_id, skip_special_tokens=self._skip_special_tokens)
        if self._strip and added:
            added, self._strip = _strip_start(added, self._strip)
        return self._decoder.decode(added)

    def finish(self) -> str:
        """The rest: U+FFFD for a character that was never finished, else ""."""
        return self._decoder.decode(b"", final=True)


def _surrogate(text: str) -> int | None:
    """Where a lone surrogate, which has no UTF-8, first stands."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return error.start
    return None


def _strip_start(text: bytes, spaces: int) -> tuple[bytes, int]:
    """Drops up to ``spaces`` leading spaces; also returns how many may still follow."""
    stripped = text.lstrip(b" ") if spaces else text
    dropped = min(spaces, len(text) - len(stripped))
    rest = text[dropped:]
    return rest, 0 if rest else spaces - dropped


# ---- the decoder section ----


def _read_decoder(decoder: dict[str, Any] | None, path: Path) -> tuple[Callable[[str], bytes], int]:
    """The function token -> bytes, and how many spaces to strip at the start of a text."""
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
                raise ModelFolderError(
                    f"{path}: decoder has the part {found[:200]}, expected {KNOWN_DECODERS}; "
                    "this tokenizer is not supported"
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


@contextmanager
def _library_errors(path: Path, doing: str) -> Iterator[None]:
    """Turns every failure of the library into a ModelFolderError that names the file.

    A panic in it arrives as PyO3's PanicException, which derives from BaseException alone and
    cannot be imported; KeyboardInterrupt, SystemExit and others of that kind pass through.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if isinstance(error, Exception) and is_exhaustion(error):
            raise exhausted(f"{path}: {doing}") from error
        raise ModelFolderError(
            f"{path}: {doing} failed ({type(error).__name__}: {str(error)[:300]}), expected a "
            "tokenizer.json of the tokenizers library; export the checkpoint again"
        ) from error
