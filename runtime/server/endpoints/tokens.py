"""/tokenize and /detokenize: a text as a model reads it, and back; /tokenizer_info: by what.

vLLM's servers have the same, and lm-evaluation-harness asks them in place of a tokenizer of its
own.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import partial
from typing import Any

from ...model import Model
from ...openai_form import Each
from ..api.answer_schemas import Text, TokenizerInfo, Tokens
from ..api.bodies import OF_MESSAGES, OF_PROMPTS, Chat, Detokenize, Tokenize
from ..api.conversation import read_conversation
from ..call import Call
from ..endpoint import Endpoint
from ..errors import ApiError


async def _tokenize(call: Call) -> None:
    body: Tokenize = call.body
    if (body.prompt is None) == (body.messages is None):
        both = "neither prompt nor messages" if body.prompt is None else "prompt and messages"
        raise ApiError(400, f"found {both} in the body, expected one of them", param="prompt")
    forms = [("prompt", OF_MESSAGES, "messages"), ("messages", OF_PROMPTS, "prompt")]
    for asked, others, with_those in forms:
        for name in others:
            if getattr(body, asked) is not None and getattr(body, name) is not None:
                message = f"found {name} with {asked}, expected it with {with_those}; leave it out"
                raise ApiError(400, message, param=name)
    async with call.service.pool.use(body.model) as engine:
        answer = await call.prepare(partial(_tokens, engine.model, body))
    await call.answer_in_turns(answer)


def _tokens(model: Model, body: Tokenize) -> dict[str, Any]:
    if body.messages is not None:
        chat = Chat(
            messages=body.messages,
            tools=body.tools,
            transcript=body.transcript,
            chat_template_kwargs=body.chat_template_kwargs,
        )
        ids = read_conversation(model, chat, {}).prompt.token_ids
    else:
        special = body.add_special_tokens is not False
        ids = model.tokenizer.encode(body.prompt or "", add_special_tokens=special)
    packed = array("I", ids)  # a ninth of what numbers of Python take, until they are written
    answer: dict[str, Any] = {"tokens": packed, "count": len(packed)}
    if body.texts:
        answer["texts"] = Each(model.tokenizer.token_text, packed)
    return answer


async def _detokenize(call: Call) -> None:
    body: Detokenize = call.body
    async with call.service.pool.use(body.model) as engine:
        answer = await call.prepare(partial(_decoded, engine.model, body))
    await call.answer_in_turns(answer)


def _decoded(model: Model, body: Detokenize) -> dict[str, str]:
    _check_ids(body.tokens, model.session.shape.vocab_size)
    skipped = bool(body.skip_special_tokens)
    text = model.tokenizer.decode(body.tokens, skip_special_tokens=skipped)
    return {"text": text, "prompt": text}  # the latter is vLLM's name


def _check_ids(ids: Sequence[int], count: int) -> None:
    """Raises ApiError for one that is no token."""
    unknown = next((token for token in ids if token >= count), None)
    if unknown is not None:
        raise ApiError(
            400,
            f"tokens has the token id {unknown}, expected 0 to {count - 1}; use ids of this "
            "model's tokenizer",
            param="tokens",
        )


async def _info(call: Call) -> None:
    async with call.service.pool.use(None) as engine:
        await call.answer(await call.prepare(partial(_tokenizer_info, engine.model)))


def _tokenizer_info(model: Model) -> dict[str, Any]:
    def spelled(token: int | None) -> str | None:
        return None if token is None else model.tokenizer.spelling(token)

    template = model.chat_template
    return {
        "bos_token": spelled(model.start_id),
        "eos_token": spelled(min(model.end_ids, default=None)),
        "vocab_size": model.session.shape.vocab_size,
        "model_max_length": model.session.shape.context_length,
        "chat_template": None if template is None else template.source,
    }


TOKENIZE = Endpoint(
    "POST",
    "/tokenize",
    _tokenize,
    "The tokens of a text or a conversation.",
    body=Tokenize,
    answer=Tokens,
)
DETOKENIZE = Endpoint(
    "POST", "/detokenize", _detokenize, "The text of tokens.", body=Detokenize, answer=Text
)
INFO = Endpoint(
    "GET",
    "/tokenizer_info",
    _info,
    "What the first model's texts begin and end with, and its chat template.",
    answer=TokenizerInfo,
)
