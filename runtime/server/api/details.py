"""What a request with ``details`` gets beside OpenAI's form: tokens, ends, timings, the model.

Each choice, or chunk of one, has its "tokens"; the whole answer, or the last chunk, its "details".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from ...circumstances import circumstances_of
from ...model import Model
from ...openai_form import Each, told_logprob
from ...sequence import Step
from ...text import Timings
from ...tokenizer import Tokenizer


def token_entries(steps: Sequence[Step], tokenizer: Tokenizer) -> Each:
    """Each token by id and text, end tokens included; ``logprob`` is null unless asked for."""

    def named(token: int, logprob: float | None) -> dict[str, Any]:
        finite = None if logprob is None else told_logprob(logprob)
        return {"id": token, "text": tokenizer.token_text(token), "logprob": finite}

    def entry(step: Step) -> dict[str, Any]:
        return named(step.token, step.logprob) | {"top": [named(*other) for other in step.top]}

    return Each(entry, steps)


def details_of(
    model: Model, prompts: Sequence[Sequence[int]], ends: Iterable[tuple[str | None, Timings]]
) -> dict[str, Any]:
    """Of an answer with the texts that ended so; one prompt is told as it is, several as a list."""
    ids = [list(prompt) for prompt in prompts]
    return {
        "prompt_token_ids": ids[0] if len(ids) == 1 else ids,
        "choices": [
            {"finish_reason": reason, "timings": timings_told(timings)} for reason, timings in ends
        ],
        "model": model_told(model),
    }


def timings_told(timings: Timings) -> dict[str, Any]:
    """All of them, and their rates."""
    rates = {"prefill_rate": timings.prefill_rate, "decode_rate": timings.decode_rate}
    return asdict(timings) | rates


def model_told(model: Model) -> dict[str, Any]:
    """What it is, and how it is computed."""
    told = asdict(circumstances_of(model))
    del told["path"]
    context_length = model.session.shape.context_length
    return told | {"context_length": context_length, "end_ids": sorted(model.end_ids)}
