"""What a precision loses: perplexity of each model on texts, and how far it parts from the first.

The first model is the reference. All models see the same window side by side; what they say at a
position is compared there and then, and only sums are kept, so that neither memory nor disk grows
with the text. The first window is compared beforehand with itself, by a second forward pass through
the same code: a model is 0 nats from itself, and some nats from itself on another text, or else the
comparison is broken and nothing is reported.

    perplexity        exp of the loss per token, byte or word; windows as in ``text_windows``
    KL                KL(reference ‖ model) in nats, as in ``divergence``
    top-1 agreement   share of positions where both hold the same token for the likeliest
    top-5 overlap     share of the five likeliest tokens that both have in common
    Δp                p(true token) of the model less that of the reference

Standard errors are between windows: see ``clustered``. Every sum is taken in the same order, and
ONNX Runtime's kernels repeat to the bit, so that two runs give equal numbers.

Source of the measures: llama.cpp's ``perplexity --kl-divergence``; perplexity per byte and word as
in lm-evaluation-harness.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..export.errors import NumericsError, RequestError
from ..export.folder import ModelFolder
from ..runtime.session import Session
from ..runtime.tokenizer import Tokenizer
from .divergence import Rows
from .quality_totals import Totals
from .same_tokenizer import check_same_tokenizer
from .text_windows import Window, check_text_file, count_tokens, start_token, text_windows
from .window_scores import WindowScores

DEFAULT_WINDOW = 1024  # tokens, or the context length if that is less
SMALLEST_WINDOW = 3  # so that a model reads two tokens at once: see runtime.generate.chunks

# Called with the share of the texts that is done, and a running value as text.
OnProgress = Callable[[float, str], None]


@dataclass(frozen=True)
class Plan:
    """Texts that are known to be good, and how they are cut."""

    texts: list[Path]
    window: int
    stride: int
    limit: int | None  # tokens of each text
    tokenizer: Tokenizer
    start: int | None  # the token every text begins with

    def windows(self, text: Path) -> Iterator[Window]:
        """The windows of one of the texts."""
        return text_windows(self.tokenizer, self.start, text, self.window, self.stride, self.limit)


def check_texts(
    folders: dict[str, ModelFolder],
    texts: Sequence[Path],
    *,
    window: int | None = None,
    stride: int | None = None,
    limit: int | None = None,
) -> Plan:
    """What ``measure_quality`` would do with the same arguments; runs no model.

    Raises RequestError for a text that is missing, empty, not UTF-8 or shorter than a window, for
    sizes out of range, and for models that do not share a tokenizer.
    """
    if not texts:
        raise RequestError("found no text, expected at least one; give one with --text FILE")
    check_same_tokenizer(folders)
    window, stride = _window_and_stride(folders, window, stride)
    if limit is not None and limit < window:
        raise RequestError(
            f"limit is {limit} tokens, expected at least a window of {window}; raise --limit, or "
            f"give --window {limit}"
        )
    folder = next(iter(folders.values())).path
    tokenizer = Tokenizer.open(folder / "tokenizer.json")
    start = start_token(tokenizer, folder)
    for text in texts:
        check_text_file(text)
        count = count_tokens(tokenizer, start, text, window)
        if count < window:
            advice = f"give a longer text, or --window {count}"
            if count < SMALLEST_WINDOW:
                advice = "give a longer text"
            raise RequestError(
                f"{text}: found {count} tokens, expected at least a window of {window}; {advice}"
            )
    return Plan(list(texts), window, stride, limit, tokenizer, start)


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
            f"length of {name}); give such a --window"
        )
    stride = window // 2 if stride is None else stride
    if not 1 <= stride < window:
        raise RequestError(
            f"stride is {stride} tokens, expected 1 to {window - 1}: the first token of a window "
            "is only context; give such a --stride"
        )
    return window, stride


def measure_quality(
    folders: dict[str, ModelFolder],
    texts: Sequence[Path],
    *,
    window: int | None = None,
    stride: int | None = None,
    limit: int | None = None,
    threads: int,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Evaluates ``folders``, the reference first, on ``texts``; what JSON knows, unknown is None.

    ``window`` None is the context length or 1024 tokens, whichever is less; ``stride`` None is half
    a window; ``limit`` is the most tokens of each text. Raises what ``check_texts`` and ``Session``
    raise, and NumericsError for logits that are not finite and for a comparison that fails the
    self-check.
    """
    plan = check_texts(folders, texts, window=window, stride=stride, limit=limit)
    sessions = {name: Session(folder, threads) for name, folder in folders.items()}
    return evaluate(plan, sessions, on_progress)


def evaluate(
    plan: Plan, sessions: dict[str, Session], on_progress: OnProgress | None = None
) -> dict[str, Any]:
    """As ``measure_quality``, for what ``check_texts`` returned and open models."""
    name, reference = next(iter(sessions.items()))
    self_check = _self_check(name, reference, plan)
    totals = [Totals(name, plan.tokenizer) for name in sessions]
    scores = WindowScores(list(sessions.values()))
    for part, share in _with_shares(plan):
        rows = scores.score([part.inputs] * len(sessions), part.targets)
        for total, found in zip(totals, rows, strict=True):
            _check_finite(total.name, found)
            total.add(part, found, rows[0])
        if on_progress is not None:
            shown = [total.running(False) for total in totals[1:]] or [totals[0].running(True)]
            on_progress(share, ", ".join(shown))
    return {
        "texts": [str(text) for text in plan.texts],
        "tokens": totals[0].num_tokens,
        "bytes": totals[0].num_bytes,
        "words": totals[0].num_words,
        "windows": totals[0].loss.clusters,
        "window": plan.window,
        "stride": plan.stride,
        "limit": plan.limit,
        "start_token": None if plan.start is None else _spelled(plan.tokenizer, plan.start),
        "self_check": self_check,
        "models": [total.result(total is totals[0]) for total in totals],
    }


def _with_shares(plan: Plan) -> Iterator[tuple[Window, float]]:
    """Every window of every text, and the share of the work that is done with it."""
    sizes = [text.stat().st_size for text in plan.texts]
    done = 0
    for text, size in zip(plan.texts, sizes, strict=True):
        tokens = 1
        for window in plan.windows(text):
            tokens += window.num_scored
            share = window.bytes_done / size
            if plan.limit is not None:
                share = max(share, tokens / plan.limit)
            yield window, (done + min(1.0, share) * size) / sum(sizes)
        done += size


def _self_check(name: str, session: Session, plan: Plan) -> dict[str, Any]:
    """Compares a model with itself on the first window, and with itself on another text.

    The other text is the window's, moved on by one token.
    """
    window = next(plan.windows(plan.texts[0]))
    inputs = [window.inputs, window.inputs, np.roll(window.inputs, 1)]
    rows = WindowScores([session] * 3).score(inputs, window.targets)
    _check_finite(name, rows[0])
    itself, moved = (float(found.kl.mean()) for found in rows[1:])
    if itself != 0 or not moved > 0:
        raise NumericsError(
            f"self-check: found KL({name} ‖ {name}) = {itself:.3g} over {window.num_scored} "
            f"tokens, and {moved:.3g} for another text, expected 0 and above 0; the comparison "
            "cannot be trusted: report this, with the model and the output of pocketlm --version"
        )
    return {"model": name, "kl": itself, "tokens": window.num_scored, "kl_other_text": moved}


def _check_finite(name: str, rows: Rows) -> None:
    if not (np.isfinite(rows.loss).all() and np.isfinite(rows.kl).all()):
        raise NumericsError(
            f"{name}: found logits that are NaN or infinite, expected finite ones; the checkpoint "
            "is damaged or the precision overflows: try another precision"
        )


def _spelled(tokenizer: Tokenizer, token_id: int) -> str:
    return tokenizer.token_bytes(token_id, skip_special_tokens=False).decode("utf-8", "replace")
