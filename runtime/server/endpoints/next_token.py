"""/next: what may come next after a text, and what the sampling options cut off of it."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from typing import Any

from ...cancellation import Cancellation
from ...model import Model
from ...next_token import NextTokens, next_logits, next_tokens
from ...openai_form import biases
from ...sampling import SamplingOptions
from ..api.answer_schemas import NextTokens as Answer
from ..api.bodies import Next, fields_of
from ..call import Call
from ..endpoint import Endpoint
from ..errors import ApiError

SHOWN = 20  # tokens told apart unless asked otherwise
OURS = ("model", "prompt", "top", "generated")
# What the answer says of how tokens are chosen: where nobody does, the model's own.
OPTIONS = [field.name for field in fields(SamplingOptions) if field.name != "seed"]


async def _next(call: Call) -> None:
    body: Next = call.body
    async with call.service.pool.use(body.model) as engine:
        with engine.room(1):
            found = await engine.alone.call(partial(_answer, engine.model, body))
    name = call.service.pool.name_of(body.model)
    # It repeats options, of which a token's bias may be one of many thousands.
    await call.answer_in_turns({"object": "next", "model": name, **found})


def _answer(model: Model, body: Next, cancellation: Cancellation) -> dict[str, Any]:
    """The answer; raises ApiError and RequestError for a body that cannot be."""
    count = SHOWN if body.top is None else body.top
    given = {name: value for name, value in fields_of(body).items() if name not in OURS}
    if "logit_bias" in given:
        given["logit_bias"] = biases(given["logit_bias"])
    request = model.request(body.prompt or "", max_tokens=1, **given)
    length = len(request.prompt_ids)
    generated = body.generated or 0
    if generated > length:
        raise ApiError(
            400,
            f"generated is {generated}, expected 0 to {length} (the prompt); lower it",
            param="generated",
        )
    logits = next_logits(model.session, request, model.prefix_cache, cancellation)
    found = next_tokens(logits, request, count, length - generated)
    chosen = {name: getattr(request.sampling, name) for name in OPTIONS}
    if (bias := chosen["logit_bias"]) is not None:
        chosen["logit_bias"] = {str(token): value for token, value in bias.items()}
    return {
        "prompt_token_ids": list(request.prompt_ids),
        "options": chosen,
        **_distribution(model, found),
    }


def _distribution(model: Model, found: NextTokens) -> dict[str, Any]:
    ids = found.token_ids.tolist()
    tokens = [
        {
            "id": token,
            "text": model.tokenizer.token_text(token),
            "ends": token in model.end_ids,
            "probability": probability,
            "left": left,
        }
        for token, probability, left in zip(
            ids, found.probabilities.tolist(), found.left.tolist(), strict=True
        )
    ]
    others = {
        "count": found.num_others,
        "probability": found.others,
        "left": found.others_left,
    }
    return {"tokens": tokens, "others": others, "num_left": found.num_left}


ENDPOINT = Endpoint(
    "POST",
    "/next",
    _next,
    "Tells what may come next after a text, before and after the sampling options.",
    body=Next,
    answer=Answer,
)
