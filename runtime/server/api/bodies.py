"""What clients send, as types: they say which fields there are, and make the OpenAPI document.

Fields of OpenAI's come first; those after them are options of ``Model.stream`` that OpenAI has not,
under their own names and in its ranges. A null is as good as nothing. What a field means is told by
the docstring of its type, or else by that of ``Model.stream``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from ...limits import MOST_LOGPROBS

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
    stream_options  what a stream has beside its text
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

    @property
    def may_slide(self) -> bool:
        """Whether it may ask for a context that slides; beams cannot."""
        return self.beams is None


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

    prompt: str | list[TokenId | str | Ids] | None = ""
    max_tokens: Count | None = None
    best_of: Texts | None = None
    echo: bool | None = None
    logprobs: Alternatives | None = None
    suffix: str | None = None

    @property
    def may_slide(self) -> bool:
        """As for all; and what is scored has to fit."""
        return super().may_slide and not self.echo


class Chat(Sampling, kw_only=True):
    """A conversation to answer.

    messages               [{"role": "system", "user" or "assistant", "content": text}, …]
    max_completion_tokens  the same as max_tokens
    logprobs               true: that of each token
    top_logprobs           0 to 100: those of so many of the likeliest tokens in its place, too
    response_format        {"type": "text", "json_object" or "json_schema", …}: the form of the text
    tools                  functions that may be called
    tool_choice            none, auto, required, or {"type": "function", "function": {"name": …}}
    parallel_tool_calls    false: one call at most; left out: several where the model can
    modalities             what the answer is of: text
    transcript             true: a base model continues a script of the conversation
    chat_template_kwargs   further variables of the model's chat template
    """

    messages: list[dict[str, Any]]
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: Alternatives | None = None
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[str] | None = None
    transcript: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class Response(Body, kw_only=True):
    """A conversation to answer, by OpenAI's newer interface; nothing of it is kept.

    input                 a text, or messages, calls and what they returned
    instructions          what the system says before them
    max_output_tokens     most tokens to generate
    text                  {"format": {"type": "text", "json_object" or "json_schema", …}}
    tools                 [{"type": "function", "name": …, "parameters": a JSON schema}, …]
    tool_choice           none, auto, required, or {"type": "function", "name": …}
    parallel_tool_calls   false: one call at most
    stream                whether the answer comes piece by piece, as server-sent events
    stream_options        what a stream has beside its text
    include               what else is told: message.output_text.logprobs
    top_logprobs          how many of the likeliest tokens these have
    store                 without effect: nothing is kept
    truncation            "disabled": what is too long is refused
    user, metadata, service_tier, safety_identifier, prompt_cache_key, max_tool_calls  without
                          effect
    background, previous_response_id, conversation, prompt, reasoning  refused: nothing is kept here
    transcript            true: a base model continues a script of the conversation
    chat_template_kwargs  further variables of the model's chat template
    """

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: Positive | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    text: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    include: list[str] | None = None
    top_logprobs: Alternatives | None = None
    store: bool | None = None
    truncation: Literal["disabled", "auto"] | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    max_tool_calls: int | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    # Options of ours.
    seed: Seed | None = None
    stop: ShortText | ShortTexts | None = None
    top_k: Count | None = None
    min_p: ShareOrNone | None = None
    repetition_penalty: Factor | None = None
    max_seconds: Seconds | None = None
    transcript: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class Next(Body, kw_only=True):
    """What may come next after a text, before and after the options.

    prompt      a text, or its token ids; empty: from the token that a text begins with
    top         so many of the likeliest tokens are told apart
    generated   so many of the last tokens of the prompt count as generated, for the penalties
    """

    prompt: str | Ids | None = ""
    top: Alternatives | None = None
    generated: Count | None = None
    temperature: Temperature | None = None
    top_k: Count | None = None
    top_p: Share | None = None
    min_p: ShareOrNone | None = None
    typical_p: Share | None = None
    repetition_penalty: Factor | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    penalty_window: Positive | None = None
    no_repeat_ngram_size: Count | None = None
    logit_bias: dict[TokenKey, Penalty] | None = None
    banned_tokens: Ids | None = None
    banned_strings: ShortTexts | None = None
    min_tokens: Count | None = None
    ignore_eos: bool | None = None


class Compare(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """What models say of a text, given as such or as token ids."""

    models: Annotated[list[str], Meta(min_length=1, max_length=2)]
    text: str | None = None
    token_ids: Ids | None = None


# Of what is tokenized, what says how a prompt, or a conversation, is read.
OF_PROMPTS = ("add_special_tokens",)
OF_MESSAGES = ("tools", "transcript", "chat_template_kwargs")


class Tokenize(Body, kw_only=True):
    """A text, or a conversation, whose tokens are asked for; one of the two.

    prompt              the text
    messages            the conversation, as the model's chat template writes it
    add_special_tokens  of a prompt: whether those are added that the tokenizer puts around a text;
                        left out: they are
    texts               true: the answer has the text of each token, too
    tools, transcript, chat_template_kwargs  of messages: as in /v1/chat/completions
    """

    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    transcript: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool | None = None
    texts: bool | None = None


class Detokenize(Body, kw_only=True):
    """Tokens whose text is asked for.

    tokens               their ids
    skip_special_tokens  true: those that are no text, such as the end of one, are left out
    """

    tokens: Ids
    skip_special_tokens: bool | None = None


class Score(Body, kw_only=True):
    """Texts whose likelihood is asked for: ``continuations`` after a ``context``, or a ``text``.

    context        what comes before; empty: the token a text begins with
    continuations  what may follow; nothing is put between: a word begins with its space
    text           of which every token is scored after those before it
    top            of a text: so many of the likeliest tokens at each place are told, too
    """

    context: str | None = None
    continuations: Annotated[list[str], Meta(min_length=1, max_length=MOST_TEXTS)] | None = None
    text: str | None = None
    top: Alternatives | None = None


class Embeddings(Body, kw_only=True):
    """Texts whose embeddings are asked for, which no model here has.

    input            a text, its token ids, or a list of several of either
    encoding_format  how they would be written
    dimensions       how many numbers they would have
    user             who asks: told to nobody, and without effect
    """

    input: str | list[str | TokenId | Ids]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Positive | None = None
    user: str | None = None


def fields_of(body: msgspec.Struct) -> dict[str, Any]:
    """Those that say something."""
    found = msgspec.structs.asdict(body)
    return {name: value for name, value in found.items() if value is not None}
