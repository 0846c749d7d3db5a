"""What a precision loses: perplexity on texts, and how far each model diverges from the first.

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

Standard errors are between windows, or where there are many between documents: see ``clustered``.
Every sum is taken in the same order, and ONNX Runtime's kernels repeat to the bit, so that two runs
give equal numbers.

Source of the measures: llama.cpp's ``perplexity --kl-divergence``; perplexity per byte and word as
in lm-evaluation-harness.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ...export.errors import NumericsError
from ...export.folder import ModelFolder
from ...runtime.session import Session
from ..session_variant import PLAIN, Variant
from .divergence import Rows
from .plan import QualityPlan, check_texts
from .reading import Reading
from .totals import Totals
from .window_scores import WindowScores

CANDIDATES = 32  # windows of which the longest is the self-check's

# Called with the share of the texts that is done, and a running value as text.
OnProgress = Callable[[float, str], None]


def measure_quality(
    folders: dict[str, ModelFolder],
    texts: Sequence[Path],
    *,
    window: int | None = None,
    stride: int | None = None,
    limit: int | None = None,
    split: str | None = None,
    threads: int,
    variants: Mapping[str, Variant] | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Evaluates ``folders``, the reference first, on ``texts``; what JSON knows, unknown is None.

    A text is one document, or as many as ``split`` divides it into; NAME.jsonl has one a line, in
    the field "text". Every document begins anew, with the model's start token; shorter ones than a
    window are windows of their own length. ``window`` None is the context length or 1024 tokens,
    whichever is less; ``stride`` None is half a window; ``limit`` is the most tokens of each text.

    Raises what ``check_texts`` and ``Session`` raise, and NumericsError for logits that are not
    finite and for a comparison that fails the self-check.
    """
    plan = check_texts(folders, texts, window=window, stride=stride, limit=limit, split=split)
    sessions = {
        name: (variants or {}).get(name, PLAIN).open(folder, threads)
        for name, folder in folders.items()
    }
    return evaluate(plan, sessions, on_progress)


def evaluate(
    plan: QualityPlan, sessions: dict[str, Session], on_progress: OnProgress | None = None
) -> dict[str, Any]:
    """As ``measure_quality``, for what ``check_texts`` returned and open models."""
    name, reference = next(iter(sessions.items()))
    self_check = _self_check(name, reference, plan)
    totals = [Totals(name, plan.tokenizer) for name in sessions]
    scores = WindowScores(list(sessions.values()))
    many, reading = plan.has_many_documents(), Reading(plan)
    for part in reading:
        rows = scores.score([part.inputs] * len(sessions), part.targets)
        for total, found in zip(totals, rows, strict=True):
            _check_finite(total.name, found)
            total.add(part, found, rows[0], more=many and reading.goes_on)
        if on_progress is not None:
            shown = [total.running(False) for total in totals[1:]] or [totals[0].running(True)]
            on_progress(reading.share, ", ".join(shown))
    return {
        "texts": [str(text.path) for text in plan.texts],
        "tokens": totals[0].num_tokens,
        "bytes": totals[0].num_bytes,
        "words": totals[0].num_words,
        **reading.result(),
        "clusters": "documents" if many else "windows",
        "window": plan.window,
        "stride": plan.stride,
        "limit": plan.limit,
        "split": plan.split,
        "start_token": None if plan.start is None else plan.tokenizer.token_text(plan.start),
        "self_check": self_check,
        "models": [total.result(total is totals[0]) for total in totals],
    }


def _self_check(name: str, session: Session, plan: QualityPlan) -> dict[str, Any]:
    """Compares a model with itself on a window, the longest of the first, and on another text.

    The other text has the next token in place of every token.
    """
    windows = islice((window for _, window in plan.all_windows()), CANDIDATES)
    window = max(windows, key=lambda window: window.num_scored)
    other = (window.inputs + 1) % session.shape.vocab_size
    rows = WindowScores([session] * 3).score([window.inputs, window.inputs, other], window.targets)
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
