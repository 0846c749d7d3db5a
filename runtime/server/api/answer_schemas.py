"""What clients get, as types: they make the OpenAPI document, and nothing is made of them.

An answer may have more than what is told here, such as "details".
"""

from __future__ import annotations

from typing import Any

import msgspec


class Health(msgspec.Struct):
    """That the server answers, and, where there is no key, the state of each model."""

    status: str
    models: dict[str, str] | None = None


class ServedModel(msgspec.Struct):
    """A model that may be asked for; more is told of what is known of it."""

    id: str
    object: str
    created: int
    owned_by: str
    state: str
    open: bool


class ServedModels(msgspec.Struct):
    """All of them."""

    object: str
    data: list[ServedModel]


class Usage(msgspec.Struct):
    """Tokens that a request took."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Choice(msgspec.Struct):
    """A text after a prompt."""

    index: int
    text: str
    finish_reason: str
    logprobs: dict[str, Any] | None = None


class Completed(msgspec.Struct):
    """Texts that were continued."""

    id: str
    object: str
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class ChatChoice(msgspec.Struct):
    """An answer to a conversation."""

    index: int
    message: dict[str, Any]
    finish_reason: str
    logprobs: dict[str, Any] | None = None


class Answered(msgspec.Struct):
    """Answers to a conversation."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Responded(msgspec.Struct):
    """An answer to a conversation, by OpenAI's newer interface."""

    id: str
    object: str
    created_at: int
    status: str
    model: str
    output: list[dict[str, Any]]
    usage: dict[str, Any] | None


class Tokens(msgspec.Struct):
    """The tokens of a text."""

    tokens: list[int]
    count: int
    texts: list[str] = []


class Text(msgspec.Struct):
    """The text of tokens."""

    text: str
    prompt: str


class TokenizerInfo(msgspec.Struct):
    """How a model's texts begin and end."""

    bos_token: str | None
    eos_token: str | None
    vocab_size: int
    model_max_length: int
    chat_template: str | None


class Scored(msgspec.Struct):
    """How likely texts are: of each continuation a score, of a text each of its tokens."""

    model: str
    scores: list[dict[str, Any]] = []
    tokens: list[dict[str, Any]] = []
    loglikelihood: float = 0.0


class NextTokens(msgspec.Struct):
    """What may come next after a text."""

    object: str
    model: str
    prompt_token_ids: list[int]
    options: dict[str, Any]
    tokens: list[dict[str, Any]]
    others: dict[str, float]
    num_left: int


class Compared(msgspec.Struct):
    """What models say of each token of a text."""

    object: str
    models: list[str]
    tokens: list[dict[str, Any]]
    mean_kl: float | None


class Recipes(msgspec.Struct):
    """Prompts to begin with."""

    object: str
    data: list[dict[str, Any]]


class WrongField(msgspec.Struct):
    """What went wrong, and what is to be done about it."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(msgspec.Struct):
    """An answer that is none."""

    error: WrongField
