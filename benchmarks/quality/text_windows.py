"""A text file goes in, windows of token ids come out; neither is ever held as a whole.

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
the beginning. The first token follows the start token, which is never scored itself; where a
tokenizer has none, the text's first token is not scored. Source of the strided window: "Perplexity
of fixed-length models" in the documentation of transformers.

Text that spells a special token is read as that token. Bytes are those of the file; words are the
parts between runs of whitespace, len(re.split(r"\\s+", text)), as in lm-evaluation-harness.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...export.errors import RequestError
from ...runtime.generation_config import GenerationConfig
from ...runtime.tokenizer import Tokenizer

BLOCK_SIZE = 1 << 16  # bytes read at once
PIECE_SIZE = 1 << 14  # characters encoded at once, at least
CONTEXT_SIZE = 256  # characters beside a cut that decide whether it may be there

BREAK = re.compile(r"(?<=\S)(?=\s)|(?<=\s)(?=\S)|(?<=\w)(?=[。！？])")
# Whether a character below U+3001 is whitespace; none is above.
SPACES = np.array([chr(code).isspace() for code in range(0x3001)])

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Tokens:
    """Successive tokens of a text, with the bytes and words up to the end of each: (n,)."""

    ids: Integers
    bytes: Integers
    words: Integers

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> Tokens:
        return Tokens(self.ids[part], self.bytes[part], self.words[part])

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(
            np.concatenate([self.ids, other.ids]),
            np.concatenate([self.bytes, other.bytes]),
            np.concatenate([self.words, other.words]),
        )


@dataclass(frozen=True)
class Window:
    """Tokens of which the last ``num_scored`` are scored here, for the first time."""

    ids: Integers
    num_scored: int
    num_bytes: int  # of the scored tokens, as are the words
    num_words: int
    bytes_done: int  # of the text, up to the window's end

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
    path: Path,
    window: int,
    stride: int,
    limit: int | None = None,
) -> Iterator[Window]:
    """Windows of the first ``limit`` tokens (None: all) of a text, the start token included.

    ``stride`` is from 1 to ``window`` - 1. A text shorter than a window gives one, if there is a
    token to score. Raises RequestError for a file that cannot be read or is not UTF-8.
    """
    held = _tokens([], [], [])
    known = 1  # tokens of ``held`` that were scored, or are the first
    for tokens in _limited(text_tokens(tokenizer, start, path), limit):
        held += tokens
        while len(held) >= window:
            yield _window(held[:window], known)
            held, known = held[stride:], window - stride
    if len(held) > known:
        yield _window(held, known)


def _window(tokens: Tokens, known: int) -> Window:
    def count(totals: Integers) -> int:
        return int(totals[-1] - totals[known - 1])

    return Window(
        tokens.ids,
        len(tokens) - known,
        count(tokens.bytes),
        count(tokens.words),
        int(tokens.bytes[-1]),
    )


def _limited(pieces: Iterator[Tokens], limit: int | None) -> Iterator[Tokens]:
    for tokens in pieces:
        yield tokens[:limit]
        if limit is not None and (limit := limit - len(tokens)) <= 0:
            return


def count_tokens(tokenizer: Tokenizer, start: int | None, path: Path, enough: int) -> int:
    """Tokens of a text, the start token included; the rest is not read once there are enough."""
    count = 0
    for tokens in text_tokens(tokenizer, start, path):
        count += len(tokens)
        if count >= enough:
            break
    return count


def start_token(tokenizer: Tokenizer, folder: Path) -> int | None:
    """The id a text of this model folder begins with; None if its tokenizer has none.

    It is the one the tokenizer puts first, or else what an empty prompt begins with.
    """
    ids, plain = (tokenizer.encode("a", add_special_tokens=special) for special in (True, False))
    if ids[: len(plain)] != plain:
        return ids[0]
    return GenerationConfig.read(folder / "generation_config.json").start_id


def text_tokens(tokenizer: Tokenizer, start: int | None, path: Path) -> Iterator[Tokens]:
    """The tokens of a text in one go, piece by piece, after ``start`` if there is one."""
    if start is not None:
        yield _tokens([start], [0], [0])
    num_bytes, num_words, after_space = 0, 1, False
    for context, piece in text_pieces(tokenizer, read_text(path)):
        ids, ends = tokenizer.encode_with_ends(context + piece)
        skipped = len(tokenizer.encode(context, add_special_tokens=False))
        codes = np.frombuffer(piece.encode("utf-32-le"), np.uint32)
        spaces = SPACES[np.minimum(codes, len(SPACES) - 1)] & (codes < len(SPACES))
        sizes = 1 + (codes > 0x7F) + (codes > 0x7FF) + (codes > 0xFFFF)  # bytes in UTF-8
        begins = spaces & ~np.concatenate([[after_space], spaces[:-1]])
        bytes_before = num_bytes + np.concatenate([[0], np.cumsum(sizes)])
        words_before = num_words + np.concatenate([[0], np.cumsum(begins)])
        if len(ids) > skipped:
            at = np.clip(np.array(ends[skipped:]) - len(context), 0, len(piece))
            at = np.maximum.accumulate(at)
            at[-1] = len(piece)
            yield _tokens(ids[skipped:], bytes_before[at], words_before[at])
        num_bytes, num_words = int(bytes_before[-1]), int(words_before[-1])
        after_space = bool(spaces[-1])


def _tokens(ids: object, num_bytes: object, num_words: object) -> Tokens:
    return Tokens(*(np.array(values, np.int64) for values in (ids, num_bytes, num_words)))


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


def check_text_file(path: Path) -> None:
    """Raises the RequestError that ``read_text`` would end with."""
    for _ in read_text(path):
        pass


def read_text(path: Path) -> Iterator[str]:
    """A file as it is, in blocks; RequestError if it cannot be read, is empty or not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    done, line = 0, 1
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK_SIZE):
                pending = len(decoder.getstate()[0])
                try:
                    yield decoder.decode(block)
                except UnicodeDecodeError as error:
                    raise _not_utf8(path, error, done - pending, line) from error
                done += len(block)
                line += block.count(b"\n")
            try:
                decoder.decode(b"", final=True)
            except UnicodeDecodeError as error:
                raise _not_utf8(path, error, done - len(error.object), line) from error
    except OSError as error:
        raise RequestError(
            f"{path}: cannot be read ({error.strerror or error}), expected a text file; "
            "check path and permissions"
        ) from error
    if done == 0:
        raise RequestError(f"{path}: found an empty file, expected a text; give another")


def _not_utf8(path: Path, error: UnicodeDecodeError, before: int, line: int) -> RequestError:
    line += error.object[: error.start].count(b"\n")
    return RequestError(
        f"{path}: found the byte {error.object[error.start]:#04x} at {before + error.start} "
        f"(line {line}), expected UTF-8 text; convert it, for instance with: "
        "iconv -f latin1 -t utf-8"
    )
