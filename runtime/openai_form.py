"""OpenAI's form: a request's body becomes options of ``Model.stream``, a result the answer's body.

    /v1/chat/completions   {"messages": [{"role", "content"}], "max_completion_tokens", ...}
    /v1/completions        {"prompt", "max_tokens", ...}

A field that would change the answer and is not known here is refused, not passed over. A null is as
good as nothing. Of fields that OpenAI has not, those of ``Model.stream`` are taken as they are.
"response_format" is the option ``json_schema``, whether its schema is "strict" or not.

Source: the API reference of OpenAI, "Create chat completion" and "Create completion".
"""

from __future__ import annotations

import codecs
import inspect
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..export.errors import RequestError
from ..export.strict_json import quoted
from .model import Model
from .sequence import Step
from .text import Result, Timings
from .tokenizer import Tokenizer

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"

# What a request may say of its own: the options of a text that can be written in JSON.
OPTIONS = frozenset(inspect.signature(Model.stream).parameters) - {
    *("self", "prompt", "cancellation", "cache", "prompt_cache"),
    *("reproducible", "lookup", "draft"),
}

# What is the same with us, or stands for it.
RENAMED = {"max_completion_tokens": "max_tokens"}
# Says who asks, or how it is to be run: nothing that an answer depends on.
WITHOUT_EFFECT = {"model", "user", "metadata", "store", "service_tier", "stream_options"}
WITHOUT_EFFECT |= {"safety_identifier", "prompt_cache_key", "parallel_tool_calls"}
# Fields that may say only what is so anyway.
ONLY: dict[str, Any] = {"n": 1, "best_of": 1, "stream": False, "echo": False, "suffix": ""}
ONLY |= {"tools": [], "tool_choice": "none", "modalities": ["text"]}
# Of a "response_format" of the type "json_schema", what is in its field of that name.
SCHEMA_FIELDS: dict[str, tuple[type[Any], str]]
SCHEMA_FIELDS = {"name": (str, "a string"), "description": (str, "a string")}
SCHEMA_FIELDS |= {"schema": (Mapping, "a JSON schema"), "strict": (bool, "true or false")}
LEAST_LOGPROB = -9999.0
# Of ours, what ended a text -> of theirs; a limit of any kind is "length".
FINISH_REASONS = {"eos": "stop", "stop": "stop"}


@dataclass(frozen=True)
class OpenAIRequest:
    """What a body asks for.

    prompt, messages   one of them; the other is None
    options            keyword arguments of ``Model.stream``
    model              the name that was asked for, which an answer repeats
    """

    prompt: Any
    messages: list[Any] | None
    options: dict[str, Any]
    model: str


def read_request(url: object, body: object) -> OpenAIRequest:
    """The request to ``url`` with this ``body``.

    Raises RequestError for another address, and for a field that is missing or not to be had. What
    an option may be is left to the model.
    """
    if url not in (CHAT, COMPLETION):
        raise RequestError(f"found the url {_shown(url)}, expected {CHAT} or {COMPLETION}")
    if not isinstance(body, Mapping):
        raise RequestError(f"found the body {_shown(body)}, expected an object with the request")
    given = {name: value for name, value in body.items() if value is not None}
    field = "messages" if url == CHAT else "prompt"
    if field not in given:
        raise RequestError(f"found no {field} in the body, expected it at {url}")
    asked, model = given.pop(field), given.get("model", "")
    logprobs = _logprobs(given, chat=url == CHAT)
    options = {} if logprobs is None else {"logprobs": logprobs}
    options |= _form(given)
    _check_renamed(given)
    for name, value in given.items():
        _check_only(name, value)
        if name not in WITHOUT_EFFECT and name not in ONLY:
            options[RENAMED.get(name, name)] = value
    unknown = [name for name in options if name not in OPTIONS]
    if unknown:
        raise RequestError(
            f"found {quoted(unknown[0], 40)} in the body, expected a field that is known here; "
            "leave it out"
        )
    if "logit_bias" in options:
        options["logit_bias"] = biases(options["logit_bias"])
    if url == CHAT:
        return OpenAIRequest(None, _messages(asked), options, str(model))
    return OpenAIRequest(asked, None, options, str(model))


def _check_renamed(given: Mapping[str, Any]) -> None:
    for theirs, ours in RENAMED.items():
        if theirs in given and given.get(ours, given[theirs]) != given[theirs]:
            raise RequestError(
                f"found {ours} and {theirs}, expected one of them: they say the same; leave one out"
            )


def biases(asked: Any) -> Any:
    """With whole numbers for the keys of logit_bias, which JSON has as strings."""
    if not isinstance(asked, Mapping):
        return asked
    wrong = [key for key in asked if not (key.isascii() and key.isdigit() and len(key) < 20)]
    if wrong:
        raise RequestError(
            f"found {quoted(wrong[0], 40)} in logit_bias, expected token ids, such as "
            '{"50256": -100}'
        )
    return {int(key): value for key, value in asked.items()}


def _shown(value: object) -> str:
    return json.dumps(value)[:60]


def _check_only(name: str, value: object) -> None:
    if name in ONLY and value != ONLY[name]:
        raise RequestError(
            f"found {name} {_shown(value)} in the body, expected {_shown(ONLY[name])}; leave it out"
        )


def _logprobs(given: dict[str, Any], *, chat: bool) -> Any:
    """Of a chat "logprobs" says whether, "top_logprobs" how many; of a completion the former both.

    Takes them out of ``given``.
    """
    asked, top = given.pop("logprobs", None), given.pop("top_logprobs", None) if chat else None
    if not chat:
        # 0 asks for those of the tokens themselves, and False for none.
        return asked
    if asked is not None and not isinstance(asked, bool):
        raise RequestError(f"found logprobs {_shown(asked)} in the body, expected true or false")
    if top is not None and not asked:
        raise RequestError("found top_logprobs without logprobs, expected both; add logprobs true")
    return asked if top is None else top


def _form(given: dict[str, Any]) -> dict[str, Any]:
    """The option that "response_format", which is taken out of ``given``, stands for."""
    asked = given.pop("response_format", None)
    if asked is None:
        return {}
    if not isinstance(asked, Mapping):
        raise _wrong("response_format", asked, "an object with its type")
    kind = asked.get("type")
    if kind not in ("text", "json_object", "json_schema"):
        raise _wrong("response_format.type", kind, "text, json_object or json_schema")
    known = {"type", "json_schema"} if kind == "json_schema" else {"type"}
    _check_fields("response_format", asked, known)
    if kind == "text":
        return {}
    if "json_schema" in given:
        raise RequestError(
            "found response_format and json_schema in the body, expected one of them; leave one out"
        )
    return {"json_schema": {"type": "object"} if kind == "json_object" else _schema(asked)}


def _schema(asked: Mapping[str, Any]) -> Any:
    where, found = "response_format.json_schema", asked.get("json_schema")
    if not isinstance(found, Mapping):
        raise _wrong(where, found, "an object with name and schema")
    _check_fields(where, found, SCHEMA_FIELDS)
    for field, (kind, expected) in SCHEMA_FIELDS.items():
        value = found.get(field)
        if not isinstance(value, kind) and (value is not None or field in ("name", "schema")):
            raise _wrong(f"{where}.{field}", value, expected)
    return found["schema"]


def _check_fields(where: str, found: Mapping[str, Any], known: Collection[str]) -> None:
    unknown = [name for name, value in found.items() if name not in known and value is not None]
    if unknown:
        raise RequestError(
            f"found {quoted(unknown[0], 40)} in {where} of the body, expected "
            f"{', '.join(sorted(known))}; leave it out"
        )


def _wrong(where: str, found: object, expected: str) -> RequestError:
    told = "no" if found is None else _shown(found)
    place = where if found is None else f"for {where}"
    return RequestError(f"found {told} {place} in the body, expected {expected}; correct it")


def _messages(messages: Any) -> Any:
    """With a text for each content that is a list of texts; what is wrong is told by others."""
    if not isinstance(messages, list):
        return messages
    return [
        {**message, "content": _text(message["content"])}
        if isinstance(message, Mapping) and isinstance(message.get("content"), list)
        else message
        for message in messages
    ]


def _text(parts: list[Any]) -> str:
    for part in parts:
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
            raise RequestError(f"found {_shown(part)} in a message, expected text; leave it out")
    return "".join(part["text"] for part in parts)


def response(asked: OpenAIRequest, result: Result, tokenizer: Tokenizer, name: str) -> Any:
    """The body of the answer; its id is made of ``name``, and its time is none."""
    chat = asked.messages is not None
    return {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{name}",
        "object": "chat.completion" if chat else "text_completion",
        "created": 0,  # the same request has the same answer, whenever it is made
        "model": asked.model,
        "choices": [choice(result, tokenizer, chat=chat)],
        "usage": usage([[result.timings]]),
    }


@dataclass(frozen=True)
class Echo:
    """A prompt that comes before its completion, with the logprobs of its tokens."""

    text: str = ""
    steps: Sequence[Step] = ()


def choice(
    result: Result,
    tokenizer: Tokenizer,
    *,
    chat: bool,
    index: int = 0,
    echo: Echo = Echo(),  # noqa: B008  (it is frozen)
    end_ids: Collection[int] | None = None,
) -> dict[str, Any]:
    """One text of an answer; ``end_ids`` are the tokens that are no text, if they are known."""
    told: dict[str, Any] = {"index": index}
    if chat:
        told["message"] = {"role": "assistant", "content": result.text, "refusal": None}
    else:
        told["text"] = echo.text + result.text
    tokens = token_logprobs([*echo.steps, *_spelled_steps(result, end_ids)], tokenizer)
    told["logprobs"] = None if result.logprobs is None else logprobs_of(tokens, chat=chat)
    told["finish_reason"] = finish_reason(result.finish_reason)
    return told


def finish_reason(reason: str | None) -> str:
    """Theirs, of ours."""
    return FINISH_REASONS.get(reason or "", "length")


def usage(groups: Sequence[Sequence[Timings]]) -> dict[str, Any]:
    """The tokens of several texts after each of several prompts, which are counted once."""
    prompt = sum(group[0].prompt_tokens for group in groups)
    new = sum(timings.new_tokens for group in groups for timings in group)
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


@dataclass(frozen=True)
class Each:
    """A list in JSON, of what ``make`` makes of each of ``items`` when it is written.

    The alternatives of a text's tokens take megabytes as objects; so they are never all there. With
    ``json.dumps(..., default=list)`` it is written as the list that it stands for.
    """

    make: Callable[[Any], Any]
    items: Sequence[Any]

    def __iter__(self) -> Iterator[Any]:
        return map(self.make, self.items)


@dataclass(frozen=True)
class Token:
    """A token's bytes and logprob, and those of the likeliest in its place as they are asked for.

    The first of a prompt comes after nothing and has no logprob.
    """

    step: Step
    tokenizer: Tokenizer

    @property
    def spelling(self) -> bytes:
        return self._spelling(self.step.token)

    @property
    def text(self) -> str:
        return _spelled(self.spelling)

    @property
    def logprob(self) -> float | None:
        return None if self.step.logprob is None else told_logprob(self.step.logprob)

    @property
    def top(self) -> list[tuple[bytes, float]]:
        return [(self._spelling(other), told_logprob(value)) for other, value in self.step.top]

    def _spelling(self, token: int) -> bytes:
        return self.tokenizer.token_bytes(token, skip_special_tokens=False)


class Offsets:
    """Where the tokens of a text begin in it, in characters, as they come.

    A token in the midst of a character begins where that does.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._length = 0

    def of(self, tokens: Iterable[Token]) -> list[int]:
        """Of the next ones."""
        found = []
        for token in tokens:
            found.append(self._length)
            self._length += len(self._decoder.decode(token.spelling))
        return found


def _spelled(spelling: bytes) -> str:
    return spelling.decode("utf-8", "replace")


def _spelled_steps(result: Result, end_ids: Collection[int] | None) -> list[Step]:
    """Those that are text, where logprobs were asked for.

    A form that is complete ends a text without a token of its own for that.
    """
    if result.logprobs is None:
        return []
    steps = list(steps_of(result))
    if steps and result.finish_reason == "eos":
        if end_ids is None or steps[-1].token in end_ids:
            steps.pop()
    return steps


def steps_of(result: Result) -> Iterator[Step]:
    """All of its tokens."""
    count = len(result.token_ids)
    logprobs: Sequence[float | None] = result.logprobs or [None] * count
    tops = result.tops or [()] * count
    for token, logprob, top in zip(result.token_ids, logprobs, tops, strict=True):
        yield Step(token, logprob, 0.0, top=top)


def token_logprobs(steps: Iterable[Step], tokenizer: Tokenizer) -> list[Token]:
    """Of steps that have their logprob."""
    return [Token(step, tokenizer) for step in steps]


def told_logprob(logprob: float) -> float:
    """As JSON has it, which has no infinity: of a token that cannot come."""
    return max(logprob, LEAST_LOGPROB)


def logprobs_of(
    tokens: Sequence[Token], *, chat: bool, offsets: Offsets | None = None
) -> dict[str, Any]:
    """The "logprobs" of a choice; ``offsets`` are those of its text, where some came before."""
    if chat:
        return {"content": chat_logprobs(tokens), "refusal": None}
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": Each(_top, tokens),
        "text_offset": (offsets or Offsets()).of(tokens),
    }


def chat_logprobs(tokens: Sequence[Token]) -> Each:
    """The "content" of a chat's."""
    return Each(_chat_entry, tokens)


def _chat_entry(token: Token) -> dict[str, Any]:
    def entry(spelling: bytes, logprob: float | None) -> dict[str, Any]:
        return {"token": _spelled(spelling), "logprob": logprob, "bytes": list(spelling)}

    told = entry(token.spelling, token.logprob)
    return told | {"top_logprobs": [entry(*other) for other in token.top]}


def _top(token: Token) -> dict[str, float] | None:
    """By their texts, of which the likeliest token of each; the one that was chosen among them."""
    if token.logprob is None:
        return None
    found: dict[str, float] = {}
    for spelling, value in token.top:
        found.setdefault(_spelled(spelling), value)
    if token.top:
        found.setdefault(token.text, token.logprob)
    return found
