"""A document goes in, windows of token ids come out; neither is ever held as a whole.

The text is encoded in pieces. A piece ends where whitespace begins or ends, or before a full stop
of scripts that put no space after it, at a place where the tokens before it are the same whether or
not the text goes on; the next piece is encoded with what is before it, whose tokens are then
dropped. So the ids are those of the text in one go: tokenizers split a text at such places before
they merge (GPT-2's and Llama 3's regular expressions look one character ahead), or merge nothing
across them (sentencepiece).

    tokens    0 1 2 3 4 5 6 7 8 9       window W = 6, stride S = 3
    window 0  . 1 2 3 4 5               the tokens with a number are scored there
    window 1        . . . 6 7 8
    window 2              . . . 9       the rest of the text

Every token is scored once, in the first window that has it: after at least W - S tokens, except at
the beginning. A document shorter than a window is a window of its own length. The first token
follows the start token, which is never scored itself; where a tokenizer has none, the document's
first token is not scored. Source of the strided window: "Perplexity of fixed-length models" in the
documentation of transformers.

Text that spells a special token is read as that token. Bytes are those of the text; words are the
parts between runs of whitespace, len(re.split(r"\\s+", text)), as in lm-evaluation-harness. A
character without a token was not read: it counts among neither, but among what is lost.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.lost_characters import kept_characters
from ...runtime.tokenizer import Tokenizer

PIECE_SIZE = 1 << 14  # characters encoded at once, at least
CONTEXT_SIZE = 256  # characters beside a cut that decide whether it may be there

BREAK = re.compile(r"(?<=\S)(?=\s)|(?<=\s)(?=\S)|(?<=\w)(?=[。！？])")
# Whether a character below U+3001 is whitespace; none is above.
SPACES = np.array([chr(code).isspace() for code in range(0x3001)])

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Tokens:
    """Successive tokens of a document, with what there is of it up to the end of each: (n,)."""

    ids: Integers
    bytes: Integers
    words: Integers
    lost_characters: Integers  # without a token
    lost_bytes: Integers  # of these, not among the bytes

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> Tokens:
        return Tokens(*(values[part] for values in self._arrays()))

    def __add__(self, other: Tokens) -> Tokens:
        pairs = zip(self._arrays(), other._arrays(), strict=True)
        return Tokens(*map(np.concatenate, pairs))

    def _arrays(self) -> list[Integers]:
        return [getattr(self, field.name) for field in fields(self)]


@dataclass(frozen=True)
class Window:
    """Tokens of which the last ``num_scored`` are scored here, for the first time."""

    ids: Integers
    num_scored: int
    num_bytes: int  # of the scored tokens, as are words and what is lost
    num_words: int
    lost_characters: int
    lost_bytes: int
    bytes_done: int  # of the file's documents, up to the window's end
    document: int = 0  # its number in the file

    @property
    def inputs(self) -> Integers:
        """The ids to feed: all but the last, which is only predicted."""
        return self.ids[:-1]

    @property
    def targets(self) -> Integers:
        """The scored ids; the last rows of logits predict them."""
        return self.ids[-self.num_scored :]


def text_windows(
    tokenizer: Tokenizer,
    start: int | None,
    documents: Iterable[Iterator[str]],
    window: int,
    stride: int,
    limit: int | None = None,
) -> Iterator[Window]:
    """Windows of the first ``limit`` tokens (None: all) of documents, start tokens included.

    ``stride`` is from 1 to ``window`` - 1. A document is in blocks; one shorter than a window gives
    one, if there is a token to score, else none. Raises what reading the documents raises.
    """
    done = 0
    for number, blocks in enumerate(documents):
        tokens, num_scored, before = text_tokens(tokenizer, start, blocks), 0, done
        for found in _windows(_limited(tokens, limit), window, stride):
            num_scored += found.num_scored
            done = before + found.bytes_done
            yield replace(found, bytes_done=done, document=number)
        # One token is left to come before others, and is never scored.
        if limit is not None and (limit := limit - num_scored - 1) < 2:
            return


def _windows(pieces: Iterator[Tokens], window: int, stride: int) -> Iterator[Window]:
    held = _tokens([])
    known = 1  # tokens of ``held`` that were scored, or are the first
    lost = 0, 0  # characters and bytes before the window, which begin with the document
    for tokens in pieces:
        held += tokens
        while len(held) >= window:
            yield _window(held[:window], known, lost)
            lost = int(held.lost_characters[window - 1]), int(held.lost_bytes[window - 1])
            held, known = held[stride:], window - stride
    if len(held) > known:
        yield _window(held, known, lost)


def _window(tokens: Tokens, known: int, lost: tuple[int, int]) -> Window:
    def count(totals: Integers) -> int:
        return int(totals[-1] - totals[known - 1])

    return Window(
        tokens.ids,
        len(tokens) - known,
        count(tokens.bytes),
        count(tokens.words),
        int(tokens.lost_characters[-1]) - lost[0],
        int(tokens.lost_bytes[-1]) - lost[1],
        int(tokens.bytes[-1] + tokens.lost_bytes[-1]),
    )


def _limited(pieces: Iterator[Tokens], limit: int | None) -> Iterator[Tokens]:
    for tokens in pieces:
        yield tokens[:limit]
        if limit is not None and (limit := limit - len(tokens)) <= 0:
            return


def text_tokens(tokenizer: Tokenizer, start: int | None, blocks: Iterator[str]) -> Iterator[Tokens]:
    """The tokens of a document in one go, piece by piece, after ``start`` if there is one."""
    counts = _Counts()
    held = _tokens([] if start is None else [start])
    for context, piece in text_pieces(tokenizer, blocks):
        ids, ends = tokenizer.encode_with_ends(context + piece)
        skipped = len(tokenizer.encode(context, add_special_tokens=False))
        ids, ends = ids[skipped:], [max(0, end - len(context)) for end in ends[skipped:]]
        kept = kept_characters(tokenizer, piece, ids, ends)
        if kept is not None:
            ends = _ends_of_kept(tokenizer, ids, piece, kept)
        tokens = counts.tokens(ids, ends, piece, kept)
        if ids:
            if len(held):
                yield held
            held = tokens
    if len(held):
        yield counts.closing(held)


def _ends_of_kept(
    tokenizer: Tokenizer, ids: Sequence[int], text: str, kept: NDArray[np.bool_]
) -> list[int]:
    """The character of ``text`` at which each token ends, by the bytes that it stands for.

    The library's own ends are shifted by what its tokenizer drops.
    """
    sizes = [
        0 if i == tokenizer.unknown_id else len(tokenizer.token_bytes(i, skip_special_tokens=False))
        for i in ids
    ]
    places = np.flatnonzero(kept)
    num_bytes = np.cumsum([0, *(len(text[place].encode()) for place in places)])
    last = np.searchsorted(num_bytes[:-1], np.cumsum(sizes))
    found: list[int] = np.concatenate([[0], places + 1])[np.minimum(last, len(places))].tolist()
    return found


class _Counts:
    """Bytes, words and lost characters of a document so far."""

    def __init__(self) -> None:
        self._bytes, self._words, self._after_space = 0, 1, False
        self._lost_characters = self._lost_bytes = 0

    def tokens(
        self, ids: Sequence[int], ends: Sequence[int], text: str, kept: NDArray[np.bool_] | None
    ) -> Tokens:
        """The tokens of the next piece of text, which each end at a character of it."""
        kept = np.ones(len(text), bool) if kept is None else kept
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        sizes = 1 + (codes > 0x7F) + (codes > 0x7FF) + (codes > 0xFFFF)  # bytes in UTF-8
        spaces = SPACES[np.minimum(codes, len(SPACES) - 1)] & (codes < len(SPACES))
        begins = np.zeros(len(text), bool)
        begins[kept] = spaces[kept] & ~np.concatenate([[self._after_space], spaces[kept]])[:-1]
        num_bytes = _running(self._bytes, sizes * kept)
        num_words = _running(self._words, begins)
        characters = _running(self._lost_characters, ~kept)
        lost_bytes = _running(self._lost_bytes, sizes * ~kept)
        self._bytes, self._words = int(num_bytes[-1]), int(num_words[-1])
        self._lost_characters, self._lost_bytes = int(characters[-1]), int(lost_bytes[-1])
        if kept.any():
            self._after_space = bool(spaces[kept][-1])
        at = np.maximum.accumulate(np.clip(np.array(ends, np.int64), 0, len(text)))
        at[-1:] = len(text)
        return _tokens(ids, num_bytes[at], num_words[at], characters[at], lost_bytes[at])

    def closing(self, tokens: Tokens) -> Tokens:
        """A document's last tokens; what is lost after the last one counts as before its end."""
        tokens.lost_characters[-1:] = self._lost_characters
        tokens.lost_bytes[-1:] = self._lost_bytes
        return tokens


def _running(before: int, values: NDArray[Any]) -> Integers:
    """(n + 1,): the sum before each of the n values, and after the last one."""
    return before + np.concatenate([[0], np.cumsum(values)])


def _tokens(ids: Sequence[int], *counts: Integers) -> Tokens:
    """Tokens with their four counts, all 0 unless given."""
    arrays = counts or [np.zeros(len(ids), np.int64) for _ in range(4)]
    return Tokens(np.array(ids, np.int64), *(values.astype(np.int64) for values in arrays))


def text_pieces(tokenizer: Tokenizer, blocks: Iterator[str]) -> Iterator[tuple[str, str]]:
    """(end of what was before, piece): see above for where a text may be cut."""
    context = text = ""
    searched = PIECE_SIZE
    for block in blocks:
        text += block
        while True:
            cut, searched = _find_cut(tokenizer, text, searched)
            if cut is None:
                break
            yield context, text[:cut]
            context, text = text[max(0, cut - CONTEXT_SIZE) : cut], text[cut:]
            searched = PIECE_SIZE
    if text:
        yield context, text


def _find_cut(tokenizer: Tokenizer, text: str, first: int) -> tuple[int | None, int]:
    """The first good cut from ``first`` on, if there is one; and up to where was looked."""
    last = len(text) - CONTEXT_SIZE
    for match in BREAK.finditer(text, first):
        cut = match.start()
        if cut > last:
            break
        before, after = text[max(0, cut - CONTEXT_SIZE) : cut], text[cut : cut + CONTEXT_SIZE]
        if after.isspace() or before.isspace():
            continue
        ids = tokenizer.encode(before, add_special_tokens=False)
        if tokenizer.encode(before + after, add_special_tokens=False)[: len(ids)] == ids:
            return cut, cut
    return None, max(first, last + 1)
