"""Texts, windows and documents that are known to be good, before any model runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...export.errors import RequestError
from ...export.folder import ModelFolder
from ...runtime.scoring import start_token
from ...runtime.tokenizer import Tokenizer
from .documents import Text, check_files, read_documents
from .same_tokenizer import check_same_tokenizer
from .text_windows import Window, text_windows

DEFAULT_WINDOW = 1024  # tokens, or the context length if that is less
SMALLEST_WINDOW = 3  # so that a model reads two tokens at once: see runtime.chunks
SMALLEST_LIMIT = 2  # one to score, after another
# Between fewer documents an error would itself be off by more than 1/√(2 · 29) = 13 %.
MANY_DOCUMENTS = 30


@dataclass(frozen=True)
class QualityPlan:
    """Texts that are known to be good, and how they are cut."""

    texts: list[Text]
    window: int
    stride: int
    limit: int | None  # tokens of each text
    split: str | None  # what stands between the documents of a text
    tokenizer: Tokenizer
    start: int | None  # the token every document begins with

    def windows(self, text: Text) -> Iterator[Window]:
        """The windows of one of the texts, document by document."""
        documents = read_documents(text.path, self.split)
        sizes = (self.window, self.stride, self.limit)
        return text_windows(self.tokenizer, self.start, documents, *sizes)

    def all_windows(self) -> Iterator[tuple[int, Window]]:
        """Those of all texts, each with its text's number."""
        for number, text in enumerate(self.texts):
            yield from ((number, window) for window in self.windows(text))

    def has_many_documents(self) -> bool:
        """Whether there are so many that errors are best taken between them."""
        if self.limit is None or all(text.documents == 1 for text in self.texts):
            return sum(text.documents for text in self.texts) >= MANY_DOCUMENTS
        reached = {(number, window.document) for number, window in self.all_windows()}
        return len(reached) >= MANY_DOCUMENTS


def check_texts(
    folders: dict[str, ModelFolder],
    texts: Sequence[Path],
    *,
    window: int | None = None,
    stride: int | None = None,
    limit: int | None = None,
    split: str | None = None,
) -> QualityPlan:
    """What ``measure_quality`` would do with the same arguments; runs no model.

    Raises RequestError for a text that is missing, empty or not UTF-8, for texts with nothing to
    score or nothing to ``split``, for sizes out of range, and for models that do not share a
    tokenizer.
    """
    checked = check_files(texts, split)
    check_same_tokenizer(folders)
    window, stride = _window_and_stride(folders, window, stride)
    if limit is not None and limit < SMALLEST_LIMIT:
        raise RequestError(
            f"limit is {limit} tokens, expected at least {SMALLEST_LIMIT}; raise it or leave it out"
        )
    folder = next(iter(folders.values()))
    tokenizer = Tokenizer.open(folder.path / "tokenizer.json")
    start = start_token(tokenizer, folder)
    plan = QualityPlan(checked, window, stride, limit, split, tokenizer, start)
    if not any(part.num_bytes or not part.lost_bytes for _, part in plan.all_windows()):
        raise RequestError(
            f"{', '.join(map(str, texts)):.200}: found no token to score, expected a character "
            "that this model's tokenizer has a token for, and one before it; give another text"
        )
    return plan


def _window_and_stride(
    folders: dict[str, ModelFolder], window: int | None, stride: int | None
) -> tuple[int, int]:
    name, folder = min(folders.items(), key=lambda item: item[1].shape.context_length)
    context = folder.shape.context_length
    if window is None:
        window = min(context, DEFAULT_WINDOW)
    if not SMALLEST_WINDOW <= window <= context:
        raise RequestError(
            f"window is {window} tokens, expected {SMALLEST_WINDOW} to {context} (the context "
            f"length of {name}); give such a window"
        )
    stride = window // 2 if stride is None else stride
    if not 1 <= stride < window:
        raise RequestError(
            f"stride is {stride} tokens, expected 1 to {window - 1}: the first token of a window "
            "is only context; give such a stride"
        )
    return window, stride
