"""What clients send, as types: they say which fields there are, and make the OpenAPI document.

Fields of OpenAI's come first; those after them are options of ``Model.stream`` that OpenAI has not,
under their own names. A null is as good as nothing.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class Sampling(
    msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True, dict=False
):
    """How a text is generated, alike for all that generate."""

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    user: str | None = None
    # Options of ours.
    max_seconds: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    penalty_window: int | None = None
    no_repeat_ngram_size: int | None = None
    banned_tokens: list[int] | None = None
    banned_strings: list[str] | None = None
    min_tokens: int | None = None
    json_schema: dict[str, Any] | str | None = None
    regex: str | None = None
    choices: list[str] | None = None
    grammar: str | None = None
    ignore_eos: bool | None = None
    context: Literal["error", "stop", "slide"] | None = None
    keep: int | None = None


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What a stream has beside its text."""

    include_usage: bool | None = None


class Completion(Sampling):
    """A text to continue."""

    prompt: str | list[int | str | list[int]] = ""
    best_of: int | None = None
    echo: bool | None = None
    logprobs: int | None = None
    suffix: str | None = None


class Chat(Sampling):
    """A conversation to answer."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None


class Next(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """What may come next after a text, before and after the options.

    top         how many of the likeliest tokens are told apart
    generated   how many of the last tokens of the prompt count as generated
    """

    model: str | None = None
    prompt: str | list[int] = ""
    top: int | None = None
    generated: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    penalty_window: int | None = None
    no_repeat_ngram_size: int | None = None
    logit_bias: dict[str, float] | None = None
    banned_tokens: list[int] | None = None
    banned_strings: list[str] | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None


class Compare(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """What one or two models say of a text, given as such or as token ids."""

    models: list[str]
    text: str | None = None
    token_ids: list[int] | None = None


def fields_of(body: msgspec.Struct) -> dict[str, Any]:
    """Those that say something."""
    found = msgspec.structs.asdict(body)
    return {name: value for name, value in found.items() if value is not None}
