"""/compare: what one model, or two, say of every token of a text."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from ...cancellation import Cancellation
from ...comparing import Comparison, compare
from ...model import Model
from ...openai_form import told_logprob
from ...scoring import Scorer
from ..api.answer_schemas import Compared
from ..api.bodies import Compare
from ..call import Call
from ..endpoint import Endpoint
from ..errors import ApiError
from ..models.pool import Pool


async def _compare(call: Call) -> None:
    names = call.body.models
    for name in names:
        _check_served(call.service.pool, name)
    async with AsyncExitStack() as stack:
        engines = {}
        # In one order for all, so that of two requests neither waits for what the other has.
        for name in sorted(set(names)):
            engines[name] = await stack.enter_async_context(call.service.pool.use(name))
            stack.enter_context(engines[name].room(1))
        models = {name: engines[name].model for name in names}
        answer = await engines[names[0]].alone.call(partial(_answer, models, call.body))
    await call.answer_in_turns({"object": "comparison", "models": names, **answer})


def _check_served(pool: Pool, name: str) -> None:
    """Raises ApiError (404) for a model that there is not."""
    try:
        pool.find(name)
    except ApiError as error:
        error.param = "models"
        raise


def _answer(models: dict[str, Model], body: Compare, cancellation: Cancellation) -> dict[str, Any]:
    """The answer; raises ApiError and RequestError for a body that cannot be."""
    _check_alike(models)
    compared = [models[name] for name in body.models]
    text = body.token_ids if body.text is None else body.text
    if text is None or None not in (body.text, body.token_ids):
        raise ApiError(
            400,
            "found text and token_ids, or neither, expected one of them; give one",
            param="text",
        )
    most = min(model.session.shape.context_length for model in compared)
    ids = list(compared[0].request(text, max_tokens=1).prompt_ids)
    if not 2 <= len(ids) <= most:
        raise ApiError(
            400,
            f"the text has {len(ids)} tokens, expected 2 to {most} (the context length); give "
            "another text",
            param="token_ids" if body.text is None else "text",
        )
    found = compare([Scorer(model.session) for model in compared], ids, cancellation)
    kl = None if found.kl is None else float(found.kl.mean())
    return {"tokens": _entries(compared[0], ids, found), "mean_kl": kl}


def _check_alike(models: dict[str, Model]) -> None:
    """Raises ApiError for two models of which one has other tokens."""
    if len(models) < 2:
        return
    (first, a), (second, b) = models.items()
    if _differ(a, b):
        raise ApiError(
            400,
            f"the tokenizers of {first} and {second} differ, expected the same tokens in both; "
            "compare models that were made from one checkpoint",
            param="models",
        )


def _differ(a: Model, b: Model) -> bool:
    """Whether a token of one is another text with the other."""
    count = a.session.shape.vocab_size
    if count != b.session.shape.vocab_size:
        return True
    one, other = (model.folder.files["tokenizer.json"].sha256 for model in (a, b))
    return one != other and a.tokenizer.all_bytes(count) != b.tokenizer.all_bytes(count)


def _entries(model: Model, ids: list[int], found: Comparison) -> list[dict[str, Any]]:
    """Of each token; the first comes after nothing, so that there is no saying how likely it is.

    Joined, the texts are the text: half a character is told with its other half.
    """
    detokenizer = model.tokenizer.detokenizer()
    texts = [detokenizer.add(token) for token in ids]
    texts[-1] += detokenizer.finish()
    none = [None] * len(found.logprobs)
    entries: list[dict[str, Any]] = [
        {"id": ids[0], "text": texts[0], "logprobs": none, "best": none, "kl": None}
    ]
    for place, token in enumerate(ids[1:]):
        best = found.best[:, place].tolist()
        entries.append(
            {
                "id": token,
                "text": texts[place + 1],
                "logprobs": [told_logprob(value) for value in found.logprobs[:, place].tolist()],
                "best": [
                    {"id": other, "text": model.tokenizer.token_text(other)} for other in best
                ],
                "kl": None if found.kl is None else float(found.kl[place]),
            }
        )
    return entries


ENDPOINT = Endpoint(
    "POST",
    "/compare",
    _compare,
    "Tells how likely one model, or two, find every token of a text, and how far they differ.",
    body=Compare,
    answer=Compared,
)
