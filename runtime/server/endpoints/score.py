"""/score: how likely a model finds texts that are there already."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from ...cancellation import Cancellation, Cancelled
from ...model import Model
from ...openai_form import LEAST_LOGPROB, told_logprob
from ...scoring import Score as Found
from ..api.answer_schemas import Scored
from ..api.bodies import Score
from ..api.details import token_entries
from ..api.generation import bytes_of_alternatives, scored_steps
from ..call import Call
from ..endpoint import Endpoint
from ..errors import ApiError


async def _score(call: Call) -> None:
    body: Score = call.body
    _check(body)
    score = _text if body.text is not None else _continuations
    pool = call.service.pool
    async with pool.use(body.model) as engine:
        most = engine.model.session.shape.context_length
        num_tokens = min(len(body.text or ""), most)
        call.hold(bytes_of_alternatives(num_tokens, body.top or 0, "top"))
        with engine.room(1):
            answer = await engine.alone.call(partial(score, engine.model, body))
    await call.answer_in_turns({"model": pool.name_of(body.model), **answer})


def _check(body: Score) -> None:
    """Raises ApiError for what is neither of the two forms."""
    others = [name for name in ("context", "continuations") if getattr(body, name) is not None]
    if body.text is not None and others:
        raise ApiError(
            400,
            f"found {others[0]} with text, expected context and continuations or a text; leave "
            "one out",
            param=others[0],
        )
    if body.text is None and body.continuations is None:
        raise ApiError(
            400,
            "found no continuations, expected them after a context; add them",
            param="continuations",
        )
    if body.text is None and body.top is not None:
        raise ApiError(400, "found top without text, expected both; leave it out", param="top")


def _continuations(model: Model, body: Score, cancellation: Cancellation) -> dict[str, Any]:
    """Of each continuation; raises Cancelled between two."""
    scorer = model.new_scorer()
    pairs = [scorer.encode(body.context or "", text) for text in body.continuations or ()]
    scores: list[Found] = []
    for pair in pairs:
        if cancellation.cancelled:
            raise Cancelled
        scores += scorer.score_pairs([pair])
    return {"scores": [_entry(score) for score in scores]}


def _entry(score: Found) -> dict[str, Any]:
    return {
        "loglikelihood": _sum(score.loglikelihood, len(score.token_ids)),
        "mean": told_logprob(score.mean),
        "is_greedy": score.is_greedy,
        "token_ids": list(score.token_ids),
        "logprobs": [told_logprob(logprob) for logprob in score.logprobs],
    }


def _sum(loglikelihood: float, count: int) -> float:
    """As JSON has it, of so many tokens."""
    return loglikelihood if math.isfinite(loglikelihood) else count * LEAST_LOGPROB


def _text(model: Model, body: Score, cancellation: Cancellation) -> dict[str, Any]:
    """Of each token."""
    if cancellation.cancelled:
        raise Cancelled
    found = model.logprobs(body.text or "", top=body.top or 0)
    return {
        "loglikelihood": _sum(float(found.logprobs.sum()), len(found.token_ids)),
        "tokens": token_entries(scored_steps(found), model.tokenizer),
    }


ENDPOINT = Endpoint(
    "POST",
    "/score",
    _score,
    "How likely texts are: continuations of a context, or each token of a text.",
    body=Score,
    answer=Scored,
)
