"""What clients send, as types: they say which fields there are, and make the OpenAPI document.

Fields of OpenAI's come first; those after them are options of ``Model.stream`` that OpenAI has not,
under their own names and in its ranges. A null is as good as nothing. What a field means is told by
the docstring of its type, or else by that of ``Model.stream``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from ..limits import MOST_LOGPROBS

# What JSON's readers have in common, and more than any model or machine can use.
LARGEST = 2**53 - 1
MOST_TOKENS = 1_000_000_000
MOST_TEXTS = 128  # of one prompt, as OpenAI's

Count = Annotated[int, Meta(ge=0, le=MOST_TOKENS)]
Positive = Annotated[int, Meta(ge=1, le=MOST_TOKENS)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Seed = Annotated[int, Meta(ge=0, le=LARGEST)]
Texts = Annotated[int, Meta(ge=1, le=MOST_TEXTS)]
Seconds = Annotated[float, Meta(ge=0)]
Temperature = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(gt=0, le=1)]
ShareOrNone = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-100, le=100)]
Factor = Annotated[float, Meta(gt=0)]
Alternatives = Annotated[int, Meta(ge=0, le=MOST_LOGPROBS)]
TokenKey = Annotated[str, Meta(pattern="^[0-9]{1,10}$")]
ShortText = Annotated[str, Meta(min_length=1, max_length=4096)]
ShortTexts = Annotated[list[ShortText], Meta(max_length=64)]
Ids = list[TokenId]

# msgspec knows no two kinds of list at one place; a list of ids is one prompt, any other several.
_PROMPTS: dict[str, Any] = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}},
        {
            "type": "array",
            "items": {
                "anyOf": [
                    {"type": "string"},
                    {
                        "type": "array",
                        "items": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1},
                    },
                ]
            },
        },
        {"type": "null"},
    ]
}
Prompt = Annotated[str | list[TokenId | str | Ids] | None, Meta(extra_json_schema=_PROMPTS)]


class Body(
    msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True, dict=False
):
    """What is posted; a field that is not known is refused.

    model   the name of one of /v1/models; left out: the first of them
    """

    model: str | None = None


class Sampling(Body, kw_only=True):
    """How a text is generated, alike for all that generate.

    n               texts after each prompt; their seeds count up from ``seed``
    stream          whether the text comes piece by piece, as server-sent events
    user            who asks: told to nobody, and without effect
    metadata        without effect
    store           without effect: nothing is kept
    service_tier    without effect
    safety_identifier  without effect
    prompt_cache_key   without effect: what prompts begin with alike is found anyway
    logit_bias      numbers added to the logits of tokens, by their ids; -100 all but bans one
    seed            the same one and the same settings give the same text; left out: a fresh one
    details         true: the answer has token ids, what ended the text, timings, and the model
    lookup          true: guess that the text goes on as it did when it last said the same words; it
                    runs alone then, in turns with others
    draft           the name of a smaller model here with the same tokens, whose guesses are
                    computed at once; the text runs alone then, in turns with others
    reproducible    true: the same tokens in whatever company, also where the server is not set so
    beams           follow so many beginnings, and answer with the likeliest texts that are found
    length_penalty  of beams: above 1 favours long texts, 0 the likeliest
    """

    max_tokens: Positive | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: dict[TokenKey, Penalty] | None = None
    seed: Seed | None = None
    stop: ShortText | ShortTexts | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Texts | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    # Options of ours.
    details: bool | None = None
    max_seconds: Seconds | None = None
    top_k: Count | None = None
    min_p: ShareOrNone | None = None
    typical_p: Share | None = None
    repetition_penalty: Factor | None = None
    penalty_window: Positive | None = None
    no_repeat_ngram_size: Count | None = None
    banned_tokens: Ids | None = None
    banned_strings: ShortTexts | None = None
    min_tokens: Count | None = None
    json_schema: dict[str, Any] | str | None = None
    regex: str | None = None
    choices: list[str] | None = None
    grammar: str | None = None
    ignore_eos: bool | None = None
    context: Literal["error", "stop", "slide"] | None = None
    keep: Count | None = None
    lookup: bool | None = None
    draft: str | None = None
    reproducible: bool | None = None
    beams: Annotated[int, Meta(ge=1, le=64)] | None = None
    length_penalty: Annotated[float, Meta(ge=-10, le=10)] | None = None


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What a stream has beside its text.

    include_usage        true: a last event tells how many tokens there were
    include_obfuscation  without effect: nothing is padded
    """

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Completion(Sampling, kw_only=True):
    """Texts to continue.

    prompt      a text, its token ids, or a list of several of either; empty: from the token that a
                text begins with
    max_tokens  most tokens to generate; 0: none, to score a prompt by ``echo`` and ``logprobs``
    best_of     so many texts are generated after each prompt, of which the ``n`` with the highest
                mean logprob are told
    echo        true: the answer begins with the prompt, and with its logprobs if they are asked for
    logprobs    0 to 100: that of each token, and those of so many of the likeliest in its place
    suffix      what would come after the gap: these models fill none
    """

    prompt: Prompt = ""
    max_tokens: Count | None = None
    best_of: Texts | None = None
    echo: bool | None = None
    logprobs: Alternatives | None = None
    suffix: Annotated[str | None, Meta(extra_json_schema={"maxLength": 0})] = None


class Chat(Sampling, kw_only=True):
    """A conversation to answer.

    messages               [{"role": "system", "user" or "assistant", "content": text}, …]
    max_completion_tokens  the same as max_tokens
    logprobs               true: that of each token
    top_logprobs           0 to 100: those of so many of the likeliest tokens in its place, too
    response_format        {"type": "text", "json_object" or "json_schema", …}: the form of the text
    tools                  functions that may be called
    tool_choice            which of them is
    """

    messages: list[dict[str, Any]]
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: Alternatives | None = None
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None


def fields_of(body: msgspec.Struct) -> dict[str, Any]:
    """Those that say something."""
    found = msgspec.structs.asdict(body)
    return {name: value for name, value in found.items() if value is not None}
