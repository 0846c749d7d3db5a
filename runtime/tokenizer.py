"""Text in, token ids out, and back: tokenizer.json through the ``tokenizers`` library.

Encoding is the library's. Decoding is ours and goes by bytes where every token stands for a fixed
run of bytes (``export.tokenizers.token_bytes``): then what a stream holds back is never more than
an unfinished character. Elsewhere it is the library's, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property, partial
from pathlib import Path

import tokenizers

from ..export.errors import ModelFolderError, RequestError
from ..export.tokenizers import read_tokenizer_file
from ..export.tokenizers.opening import decoding, library_errors, open_library
from .detokenizer import ByteDetokenizer, Detokenizer, TextDetokenizer
from .encoding import encoded
from .quoting import PlainTwin, Quotation

MAX_CHARACTERS = 16 * 131072
"""Longest text ``encode`` takes unless told: 16 characters per token of a long context.

The library (0.23) takes linear time: with GPT-2's vocabulary about 0.6 s per million Latin letters
and 1.7 s per million Chinese ones, in one run or in words. Pass less where that is too long.
"""


class Tokenizer:
    """The tokenizer of a model folder; open it with ``Tokenizer.open``."""

    def __init__(self, library: tokenizers.Tokenizer, path: Path) -> None:
        self._library = library
        self._path = path
        self._rule, self._looks_back = decoding(library, path, ModelFolderError)
        with self._library_errors("listing the added tokens"):
            added = library.get_added_tokens_decoder()
        self._bytes: dict[int, bytes] = {}
        special = {token_id: token for token_id, token in added.items() if token.special}
        self.special_ids: frozenset[int] = frozenset(special)
        self.added_ids: frozenset[int] = frozenset(added)
        self.special_tokens: dict[int, str] = {
            token_id: token.content for token_id, token in special.items() if token.content
        }
        self.special_spellings: tuple[str, ...] = tuple(self.special_tokens.values())
        # Those of spaces and line breaks alone are words of any text.
        markers = {
            token_id: token.content
            for token_id, token in added.items()
            if token.content.strip("\u2581 \n\t") or token_id in self.special_tokens
        }
        self.marker_ids: frozenset[int] = frozenset(markers)
        self.marker_spellings: tuple[str, ...] = tuple(markers.values())
        self._twin: PlainTwin | None = None

    @staticmethod
    def open(path: str | Path) -> Tokenizer:
        """Opens a tokenizer.json. Truncation, padding and BPE dropout set in it are switched off.

        Raises ModelFolderError for a file that cannot be read or run.
        """
        path = Path(path)
        data = read_tokenizer_file(path, ModelFolderError)
        return Tokenizer(open_library(data, path, ModelFolderError), path)

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
            return encoded(self._library, text, add_special_tokens).ids

    def encode_with_ends(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids of ``text``, none added, and the character of ``text`` each of them ends at.

        Several tokens of one character end at the same place, and a tokenizer may leave whitespace
        out, so that an end may lie before the one before it.
        """
        self._check_text(text, len(text))
        with self._library_errors("encoding a text"):
            encoding = encoded(self._library, text, add_special_tokens=False)
            return encoding.ids, [end for _, end in encoding.offsets]

    def encode_quoting(
        self,
        text: str,
        quotation: Quotation,
        *,
        add_special_tokens: bool = True,
        max_characters: int = MAX_CHARACTERS,
    ) -> list[int]:
        """As ``encode``; what ``quotation`` hid in ``text`` is encoded as the text that it was.

        Raises RequestError likewise, and where that cannot be: see ``PlainTwin``.
        """
        self._check_text(quotation.restore(text), max_characters)
        with self._library_errors("encoding a text"):
            twin = self._plain_twin(text)
            found = twin.encode(text, quotation.restore, add_special_tokens)
        return twin.known(found, add_special_tokens)

    def _plain_twin(self, text: str) -> PlainTwin:
        """The twin for what ``text`` itself writes; made when a text first spells a marker."""
        written = {
            spelling
            for spelling in set(self.marker_spellings).difference(self.special_spellings)
            if spelling in text
        }
        if self._twin is None or not written <= self._twin.written:
            before = self._twin.written if self._twin is not None else ()
            self._twin = PlainTwin(self._library, written.union(before))
        return self._twin

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
        detokenizer = self.detokenizer(skip_special_tokens=skip_special_tokens)
        if self._rule is None:
            return self._decoded(list(ids), skip_special_tokens)
        return "".join([*map(detokenizer.add, ids), detokenizer.finish()])

    def detokenizer(
        self, after: Sequence[int] = (), *, skip_special_tokens: bool = True
    ) -> Detokenizer:
        """The same, one token at a time. ``after``: ids before the first, whose text is known.

        A sentencepiece text loses the space before its first word; the text that continues a
        prompt must not, and that is what ``after=prompt_ids`` is for.
        """
        rule = self._rule
        if rule is None:
            return TextDetokenizer(
                partial(self._decoded, skip_special_tokens=skip_special_tokens),
                lambda token_id: self._is_text(token_id, skip_special_tokens),
                self._is_byte,
                self._looks_back,
                after,
            )

        def bytes_of(token_id: int, first: bool) -> bytes | None:
            if not first:
                return self.token_bytes(token_id, skip_special_tokens=skip_special_tokens)
            if not self._is_text(token_id, skip_special_tokens):
                return None
            spelled = self._spelling_or_refuse(token_id)
            return None if spelled is None else rule.first(spelled)

        detokenizer = ByteDetokenizer(bytes_of, rule.strip, rule.drops_first_space)
        detokenizer.follow(after)
        return detokenizer

    def _decoded(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """By the library alone."""
        known = [
            int(token_id) for token_id in ids if self._spelling_or_refuse(token_id) is not None
        ]
        if not known:  # some decoders panic
            return ""
        with self._library_errors("decoding tokens"):
            return self._library.decode(known, skip_special_tokens=skip_special_tokens)

    def _is_text(self, token_id: int, skip_special_tokens: bool) -> bool:
        skipped = skip_special_tokens and token_id in self.special_ids
        return not skipped and self._spelling_or_refuse(token_id) is not None

    def _is_byte(self, token_id: int) -> bool:
        """Whether it may be one of several bytes that are a character together."""
        spelled = self._spelling_or_refuse(token_id)
        return spelled is not None and spelled.startswith("<0x") and len(spelled) == 6

    def token_bytes(self, token_id: int, *, skip_special_tokens: bool = True) -> bytes:
        """The bytes a token adds to a text; none for an id without a token, or a special one."""
        if skip_special_tokens and token_id in self.special_ids:
            return b""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._find_bytes(token_id)
        return known

    def token_text(self, token_id: int) -> str:
        """A token as it is told by itself: U+FFFD for half a character, special ones as spelled."""
        return self.token_bytes(token_id, skip_special_tokens=False).decode("utf-8", "replace")

    def all_bytes(self, num_tokens: int) -> list[bytes]:
        """``token_bytes`` of the ids 0 to ``num_tokens`` - 1, all at once.

        Raises RequestError where tokens do not stand for bytes of their own.
        """
        if self._rule is None:
            raise RequestError(
                f"{self._path}: its decoder makes of a token what its neighbours ask for, expected "
                "tokens that stand for bytes, which a form of output, banned strings and a draft "
                "need; leave them out"
            )
        with self._library_errors("listing the vocabulary"):
            ids = self._library.get_vocab(with_added_tokens=True)
        found = [b""] * num_tokens
        for content, token_id in ids.items():
            if token_id < num_tokens and token_id not in self.special_ids:
                found[token_id] = self._rule.later(content)
        return found

    def id_of(self, text: str) -> int | None:
        """Id of the token that is spelled so in tokenizer.json, such as "<|endoftext|>"."""
        if _surrogate(text) is not None:
            return None
        with self._library_errors("looking up a token"):
            return self._library.token_to_id(text)

    def spelling(self, token_id: int) -> str | None:
        """How the token is spelled in tokenizer.json; None for an id without one."""
        with self._library_errors("looking up a token"):
            return self._library.id_to_token(token_id)

    @cached_property
    def vocab_size(self) -> int:
        """Largest id + 1; there may be ids below without a token."""
        with self._library_errors("listing the vocabulary"):
            ids = self._library.get_vocab(with_added_tokens=True).values()
        return max(ids, default=-1) + 1

    @cached_property
    def unknown_id(self) -> int | None:
        """The token for what has none; None for a tokenizer without such a token."""
        with self._library_errors("looking up a token"):
            model = self._library.model
            if isinstance(model, tokenizers.models.Unigram):
                found: int | None = json.loads(model.__getstate__())["unk_id"]
                return found
            name = getattr(model, "unk_token", None)
            return None if name is None else self._library.token_to_id(name)

    @property
    def strips_leading_spaces(self) -> int:
        """How many spaces at the start of a text decoding drops: 1 for sentencepiece."""
        return self.detokenizer().strips_leading_spaces

    def _find_bytes(self, token_id: int) -> bytes:
        content = self._spelling_or_refuse(token_id)
        return b"" if content is None else self._bytes_of(token_id, content)

    def _bytes_of(self, token_id: int, content: str) -> bytes:
        if self._rule is not None:
            return self._rule.later(content)
        return self._decoded([token_id], skip_special_tokens=False).encode("utf-8")

    def _spelling_or_refuse(self, token_id: int) -> str | None:
        if token_id < 0:
            raise RequestError(
                f"token id {token_id}, expected 0 or above; use ids that encode or the model gave"
            )
        # More than 32 bits are more than the library's ids can be.
        return self.spelling(int(token_id)) if token_id < 2**32 else None

    def _library_errors(self, doing: str) -> AbstractContextManager[None]:
        return library_errors(doing, self._path, ModelFolderError)


def _surrogate(text: str) -> int | None:
    """Where a lone surrogate, which has no UTF-8, first stands."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return error.start
    return None
