"""What a model knows by heart: a text goes in, how far it goes on from passages of it comes out.

Passages of P + C tokens are taken from a text at even distances. The model is given the first P
tokens of each (with what its tokenizer puts before a text) and goes on greedily for C. Against the
C tokens that follow in the text:

    exact match     tokens, and characters, before the first difference
    edit distance   insertions, deletions and substitutions of tokens that make one of the other,
                    per token of the text: 0 is word for word, 1 has no token in its place

What a continuation has in common with the text by chance is measured too: each one is compared
with what follows the next passage. Sources: Carlini et al., "Quantifying Memorization Across
Neural Language Models" (2023), whose prompts and continuations of 50 tokens are the default;
Levenshtein (1966), by the recurrence of Wagner and Fischer (1974).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...export.errors import RequestError
from ...export.folder import ModelFolder
from ...runtime.decode import generate
from ...runtime.request import GREEDY, Request
from ...runtime.session import Session
from ...runtime.shared_beginning import shared_beginning
from ...runtime.tokenizer import Tokenizer
from ..quality.documents import check_regular, read_text
from ..quality.measure import OnProgress
from ..quality.same_tokenizer import check_same_tokenizer
from ..quality.text_windows import text_tokens
from ..quality.unread import without_token
from ..session_variant import PLAIN, Variant
from ..tasks.measure import mean, share_of

PassageProgress = Callable[[int, float], None]  # passages done, tokens matched on average
MEASURES = ("exact_match_tokens", "exact_match_characters", "edit_distance")


@dataclass(frozen=True, kw_only=True)
class RecitationOptions:
    """How many passages there are, and how long they are."""

    passages: int = 50
    prompt_tokens: int = 50
    continuation_tokens: int = 50

    def __post_init__(self) -> None:
        """Raises RequestError for a number below 1."""
        for name in ("passages", "prompt_tokens", "continuation_tokens"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise RequestError(f"{name} is {value!r:.40}, expected an integer from 1 up")


@dataclass(frozen=True)
class Passage:
    """A piece of a text: what the model is given, and what follows in the text."""

    position: float  # of its beginning, as a share of the text's tokens
    prompt_ids: list[int]
    true_ids: list[int]


@dataclass(frozen=True)
class Book:
    """A text file, and the passages of it that a model is to recite."""

    path: Path
    passages: list[Passage]
    without_token: dict[str, Any]


def read_books(
    folders: dict[str, ModelFolder], paths: Sequence[Path], options: RecitationOptions
) -> list[Book]:
    """The passages of text files, which are the same for all models; runs none of them.

    Raises RequestError for a text that is missing, empty, not UTF-8 or too short, for models that
    do not share a tokenizer, and for passages longer than the context length of one.
    """
    check_same_tokenizer(folders)
    tokenizer = Tokenizer.open(next(iter(folders.values())).path / "tokenizer.json")
    before = len(_beginning(tokenizer))
    length = before + options.prompt_tokens + options.continuation_tokens
    for name, folder in folders.items():
        if length > folder.shape.context_length:
            raise RequestError(
                f"found passages of {length} tokens, expected at most "
                f"{folder.shape.context_length} (the context length of {name}); ask for fewer "
                "tokens in a prompt or a continuation"
            )
    return [read_book(path, tokenizer, options) for path in paths]


def measure_recitation(
    folders: dict[str, ModelFolder],
    books: Sequence[Book],
    *,
    threads: int,
    variants: Mapping[str, Variant] | None = None,
    on_progress: OnProgress | None = None,
) -> list[dict[str, Any]]:
    """What each model recites of each text, as JSON: an entry per text. One model is open at once.

    Raises what ``Session`` raises.
    """
    found: list[dict[str, Any]] = [
        {
            "file": str(book.path),
            "prompt_tokens": len(book.passages[0].prompt_ids),
            "continuation_tokens": len(book.passages[0].true_ids),
            "without_token": book.without_token,
            "models": [],
        }
        for book in books
    ]
    total = len(folders) * sum(len(book.passages) for book in books)
    done = 0
    for name, folder in folders.items():
        session = (variants or {}).get(name, PLAIN).open(folder, threads)
        tokenizer = Tokenizer.open(folder.path / "tokenizer.json")
        for book, entry in zip(books, found, strict=True):
            what = f"{book.path.name}, {name}: tokens matched"
            progress = share_of(on_progress, done, total, what, "{:.1f}")
            continuations = recite(book.passages, session, tokenizer, progress)
            done += len(book.passages)
            compared = compare(book.passages, continuations, tokenizer)
            entry["models"].append({"model": name, **compared})
    return found


def passages(ids: Sequence[int], options: RecitationOptions, name: str) -> list[Passage]:
    """Passages that do not overlap, at even distances from the beginning of a text to its end.

    There are fewer than asked for where the text has no room for so many. Raises RequestError,
    with ``name`` for the text, where it has room for none.
    """
    length = options.prompt_tokens + options.continuation_tokens
    room = len(ids) - length
    if room < 0:
        raise RequestError(
            f"{name}: found {len(ids)} tokens, expected {length} or more (a prompt of "
            f"{options.prompt_tokens} and a continuation of {options.continuation_tokens}); give a "
            "longer text or ask for fewer tokens"
        )
    count = min(options.passages, len(ids) // length)
    starts = [round(i * room / max(1, count - 1)) for i in range(count)]
    return [
        Passage(
            start / len(ids),
            list(ids[start : start + options.prompt_tokens]),
            list(ids[start + options.prompt_tokens : start + length]),
        )
        for start in starts
    ]


def check_book(path: Path) -> None:
    """Raises the RequestError that reading a text would end with."""
    check_regular(path)
    for _ in read_text(path):
        pass


def read_book(path: Path, tokenizer: Tokenizer, options: RecitationOptions) -> Book:
    """The passages of a text file. Raises RequestError for one that is not UTF-8 or too short.

    What has no token is read past: its characters are in no passage.
    """
    ids: list[int] = []
    unread = without_token(0, 0, 0)
    for tokens in text_tokens(tokenizer, None, read_text(path)):
        ids += tokens.ids.tolist()
        lost = int(tokens.lost_bytes[-1])
        unread = without_token(int(tokens.lost_characters[-1]), lost, lost + int(tokens.bytes[-1]))
    if not ids:
        raise RequestError(
            f"{path}: found no character with a token in this tokenizer, expected some; give "
            "another text"
        )
    name = str(path)
    if unread["characters"]:
        name += f" ({unread['characters']:,} characters of it have no token)"
    return Book(path, passages(ids, options, name), unread)


def recite(
    found: Sequence[Passage],
    session: Session,
    tokenizer: Tokenizer,
    progress: PassageProgress = lambda done, matched: None,
) -> list[list[int]]:
    """The model's own continuation of every passage: as many tokens as follow in the text."""
    before = _beginning(tokenizer)
    continuations: list[list[int]] = []
    matched = 0
    for passage in found:
        request = Request([*before, *passage.prompt_ids], GREEDY, len(passage.true_ids))
        continuations.append([step.token for step in generate(session, request)])
        matched += shared_beginning(continuations[-1], passage.true_ids)
        progress(len(continuations), matched / len(continuations))
    return continuations


def _beginning(tokenizer: Tokenizer) -> list[int]:
    """What the tokenizer puts before a text: nothing for GPT-2, a token for Llama."""
    return tokenizer.encode("")


def compare(
    found: Sequence[Passage], continuations: Sequence[Sequence[int]], tokenizer: Tokenizer
) -> dict[str, Any]:
    """How close continuations are to the text: means over the passages, and each one, as JSON."""
    rows = [
        _compare_one(passage, continuation, tokenizer)
        for passage, continuation in zip(found, continuations, strict=True)
    ]
    following = [*found[1:], found[0]]
    chance = [
        _compare_one(passage, continuation, tokenizer)
        for passage, continuation in zip(following, continuations, strict=True)
    ]
    return {
        **{name: _mean(rows, name) for name in MEASURES},
        "longest": max(row["exact_match_tokens"] for row in rows),
        "complete": mean(np.array([row["edit_distance"] == 0 for row in rows])),
        # A single passage has no other to be compared with.
        "chance": {name: _mean(chance, name) for name in MEASURES} if len(rows) > 1 else None,
        "passages": rows,
    }


def _mean(rows: Sequence[dict[str, Any]], name: str) -> dict[str, float | None]:
    return mean(np.array([row[name] for row in rows], float))


def _compare_one(
    passage: Passage, continuation: Sequence[int], tokenizer: Tokenizer
) -> dict[str, Any]:
    said = _text(tokenizer, passage, continuation)
    true = _text(tokenizer, passage, passage.true_ids)
    return {
        "position": passage.position,
        "exact_match_tokens": shared_beginning(continuation, passage.true_ids),
        "exact_match_characters": len(os.path.commonprefix([said, true])),
        "edit_distance": edit_distance(continuation, passage.true_ids) / len(passage.true_ids),
        "prompt": tokenizer.decode(passage.prompt_ids),
        "true": true,
        "continuation": said,
    }


def _text(tokenizer: Tokenizer, passage: Passage, ids: Sequence[int]) -> str:
    """The text that ``ids`` add to the passage's prompt."""
    detokenizer = tokenizer.detokenizer(after=passage.prompt_ids)
    return "".join(detokenizer.add(token) for token in ids) + detokenizer.finish()


def edit_distance(first: Sequence[int], second: Sequence[int]) -> int:
    """Fewest insertions, deletions and substitutions that make ``second`` of ``first``.

    One row of Wagner and Fischer's table at a time. In a row each distance may come from the one
    before it plus 1; less its own index that is a running minimum.
    """
    index = np.arange(len(second) + 1)
    row = index
    others = np.array(second, np.int64)
    for i, token in enumerate(first, start=1):
        best = np.empty_like(row)
        best[0] = i
        best[1:] = np.minimum(row[1:] + 1, row[:-1] + (others != token))
        row = np.minimum.accumulate(best - index) + index
    return int(row[-1])
