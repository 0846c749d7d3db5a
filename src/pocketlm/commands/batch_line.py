"""A line of a batch: what it asks for, and the line that answers it.

    "text"                                                a prompt
    {"prompt": text or ids, "id": any, options}           with options of ``Model.stream``
    {"messages": [{"role", "content"}], "id", options}    a conversation to answer
    {"custom_id", "method", "url", "body"}                OpenAI's form, see ``openai_form``

    {"digest", "line", "id", "text", "finish_reason", "prompt_tokens", "new_tokens", "seed"}
    {"digest", "line", "id", "error": message}
    {"id", "custom_id", "response": {"status_code", "request_id", "body"}, "error": null}
    {"id", "custom_id", "response": null, "error": {"code", "message", "line"}}

An answer begins with the digest of what it was made of, and every time with the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pocketlm.commands.jsonl import Line
from pocketlm.export.errors import RequestError
from pocketlm.export.strict_json import quoted, shown
from pocketlm.runtime.model import Model
from pocketlm.runtime.openai_form import OPTIONS, OpenAIRequest, biases, read_request, response
from pocketlm.runtime.request import Request
from pocketlm.runtime.text import Result
from pocketlm.runtime.tokenizer import Tokenizer

OPENAI_FIELDS = {"custom_id", "method", "url", "body"}


@dataclass(frozen=True)
class Asked:
    """What a line asks for: a prompt or messages, and options that it has of its own.

    name     {"id": ...} if the line has one
    openai   what it asked for in OpenAI's form, if it did
    """

    prompt: Any = None
    messages: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)
    name: Mapping[str, Any] = field(default_factory=dict)
    openai: OpenAIRequest | None = None

    def request(self, model: Model, options: Mapping[str, Any]) -> Request:
        """For ``model``; ``options`` are for what the line does not say.

        Raises RequestError for a prompt, messages or an option that cannot be.
        """
        prompt = self.prompt
        if self.messages is not None:
            prompt = model.chat_prompt(self.messages)
        return model.request(prompt, **{**options, **self.options})

    def seeded(self, seed: int) -> Asked:
        """With ``seed``, if it has none of its own."""
        return replace(self, options={"seed": seed, **self.options})


def asked_by(line: Line) -> Asked:
    """Raises RequestError for a line that is none of the four forms; asks no model."""
    found = line.parse()
    if isinstance(found, str):
        return Asked(prompt=found)
    if found.keys() & OPENAI_FIELDS:
        return _openai(found)
    given = {name: value for name, value in found.items() if value is not None}
    name = {"id": given.pop("id")} if "id" in given else {}
    prompt, messages = given.pop("prompt", None), given.pop("messages", None)
    if (prompt is None) == (messages is None):
        both = "both prompt and messages" if prompt is not None else "neither prompt nor messages"
        raise RequestError(f'found {both}, expected one, such as {{"prompt": "Once upon a time"}}')
    unknown = [name for name in given if name not in OPTIONS]
    if unknown:
        raise RequestError(
            f"found the field {quoted(unknown[0], 40)}, expected prompt, messages, id or one of "
            f"{', '.join(sorted(OPTIONS))}"
        )
    if "logit_bias" in given:
        given["logit_bias"] = biases(given["logit_bias"])
    return Asked(prompt, messages, given, name)


def _openai(found: Mapping[str, Any]) -> Asked:
    wrong = found.keys() ^ OPENAI_FIELDS
    if wrong:
        raise RequestError(
            f"found {', '.join(sorted(found))[:60]}, expected the fields of OpenAI's form: "
            "custom_id, method, url and body"
        )
    if not isinstance(found["custom_id"], str) or found["method"] != "POST":
        raise RequestError(
            f"found custom_id {shown(found['custom_id'])} and method {shown(found['method'])}, "
            "expected a string and POST"
        )
    asked = read_request(found["url"], found["body"])
    name = {"custom_id": found["custom_id"]}
    return Asked(asked.prompt, asked.messages, asked.options, name, asked)


def as_chat(asked: Asked, system: str | None) -> Asked:
    """A prompt that is text as the user's message after ``system``; messages stay as they are."""
    if asked.messages is not None or asked.openai is not None:
        return asked
    if not isinstance(asked.prompt, str):
        raise RequestError("found token ids with --chat, expected text; leave one of them out")
    told = [] if system is None else [{"role": "system", "content": system}]
    return replace(asked, prompt=None, messages=[*told, {"role": "user", "content": asked.prompt}])


def heads(digest: str) -> Sequence[bytes]:
    """How the answers begin that have this digest."""
    return [f'{{"digest": "{digest}", '.encode(), f'{{"id": "batch_req_{digest}", '.encode()]


def answer(line: Line, asked: Asked, result: Result, tokenizer: Tokenizer, digest: str) -> bytes:
    """The line that answers ``line``, which asked with a seed."""
    if asked.openai is not None:
        body = response(asked.openai, result, tokenizer, digest)
        answered = {"status_code": 200, "request_id": f"req_{digest}", "body": body}
        return _openai_line(asked, digest, answered, None)
    found = {
        "text": result.text,
        "finish_reason": result.finish_reason,
        "prompt_tokens": result.timings.prompt_tokens,
        "new_tokens": result.timings.new_tokens,
        "seed": asked.options["seed"],
    }
    if result.logprobs is not None:
        found |= {"token_ids": result.token_ids, "logprobs": result.logprobs}
    if result.top_logprobs is not None:
        found |= {"top_logprobs": result.top_logprobs}
    return _own_line(line, asked, digest, found)


def failure(line: Line, message: str, digest: str) -> bytes:
    """The line in the place of an answer to ``line``."""
    asked = _named(line)
    if asked.openai is not None:
        error = {"code": "line_failed", "message": message, "line": line.number}
        return _openai_line(asked, digest, None, error)
    return _own_line(line, asked, digest, {"error": message})


def _named(line: Line) -> Asked:
    """The name of a line, whatever else is in it."""
    try:
        found = line.parse()
    except RequestError:
        return Asked()
    if not isinstance(found, dict):
        return Asked()
    if isinstance(custom_id := found.get("custom_id"), str):
        openai = OpenAIRequest(None, None, {}, "")
        return Asked(name={"custom_id": custom_id}, openai=openai)
    return Asked(name={"id": found["id"]} if found.get("id") is not None else {})


def _own_line(line: Line, asked: Asked, digest: str, found: Mapping[str, Any]) -> bytes:
    return _bytes({"digest": digest, "line": line.number, **asked.name, **found})


def _openai_line(asked: Asked, digest: str, answered: Any, error: Any) -> bytes:
    name = f"batch_req_{digest}"
    return _bytes({"id": name, **asked.name, "response": answered, "error": error})


def _bytes(found: Mapping[str, Any]) -> bytes:
    # In ASCII: right for whatever reads it, and no character in it is taken for the end of a line.
    return json.dumps(found, default=list).encode("ascii") + b"\n"
