"""A conversation with calls of functions, as OpenAI's clients send it, made what a template takes.

Templates that know of functions want a call's arguments as an object, not as text; those that do
not are told in words what there is to call, what was called and what came of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..export.errors import RequestError
from .messages import ASSISTANT, Message, joined
from .tool_calls import ID_CHARACTERS, ID_LENGTH
from .tool_forms import Form
from .tools import Tools, as_json

SYSTEM, TOOL, USER = "system", "tool", "user"


@dataclass(frozen=True)
class _Call:
    """Of an assistant's message; ``arguments`` as an object, or text that is none."""

    id: str
    name: str
    arguments: Any


def with_calls(messages: Sequence[Message], form: Form) -> list[dict[str, Any]]:
    """``messages`` with calls and what they returned as a template of ``form`` has them.

    Raises RequestError, whose message begins with the field, for calls that are none.
    """
    names: dict[str, str] = {}
    told: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        calls = _calls(f"messages[{index}]", message)
        names |= {call.id: call.name for call in calls}
        if calls:
            told.append(_calling(message, calls, form))
        elif message.get("role") == TOOL:
            name = message.get("name") or names.get(str(message.get("tool_call_id")), "")
            if form.is_told:
                told.append(_returned(message, name))
            else:
                text = f"The function {name} returned: {joined(message.get('content'))}"
                if index and messages[index - 1].get("role") == TOOL:  # the user's turn is one
                    text = f"{told.pop()['content']}\n{text}"
                told.append({"role": USER, "content": text})
        else:
            told.append({name: message[name] for name in message if name != "tool_calls"})
    return told


def described(tools: Tools, form: Form) -> str:
    """What a model is told of functions whose template tells it nothing."""
    functions = "\n".join(json.dumps(function.tool["function"]) for function in tools.functions)
    shape = f'{form.head}NAME{form.middle}{{"ARGUMENT": VALUE}}{form.tail}'
    use = "Use one of them" if tools.required else "Use them if required"
    return (
        f"You are a helpful assistant with access to these functions. {use}:\n{functions}\n"
        f"To use a function, reply with JSON only: {shape}"
    )


def with_system(messages: Sequence[Message], text: str) -> list[dict[str, Any]]:
    """``messages`` with ``text`` at the end of the system's, or as such."""
    first, *rest = [dict(message) for message in messages]
    if first.get("role") != SYSTEM:
        return [{"role": SYSTEM, "content": text}, first, *rest]
    return [{**first, "content": f"{joined(first.get('content'))}\n\n{text}"}, *rest]


def without_system(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """``messages`` with what the system says before what the first user does."""
    first, *rest = [dict(message) for message in messages]
    for index, message in enumerate(rest):
        if message.get("role") == USER:
            text = f"{joined(first.get('content'))}\n\n{joined(message.get('content'))}"
            rest[index] = {**message, "content": text}
            return rest
    return [first, *rest]


def _calls(where: str, message: Message) -> list[_Call]:
    given = message.get("tool_calls") or []
    if not given:
        return []
    if message.get("role") != ASSISTANT or not isinstance(given, list):
        raise RequestError(f"{where}.tool_calls is {as_json(given)}, expected an assistant's calls")
    return [_call(f"{where}.tool_calls[{index}]", call) for index, call in enumerate(given)]


def _call(where: str, call: Any) -> _Call:
    function = call.get("function") if isinstance(call, Mapping) else None
    found = function if isinstance(function, Mapping) else {}
    name, arguments = found.get("name"), found.get("arguments", "{}")
    if not isinstance(name, str) or not isinstance(arguments, str | Mapping):
        raise RequestError(
            f'{where} is {as_json(call)}, expected {{"id": ..., "type": "function", "function": '
            '{"name": ..., "arguments": "{...}"}}'
        )
    return _Call(str(call.get("id") or ""), name, _as_object(arguments))


def _as_object(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        found = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return found if isinstance(found, dict) else arguments


def _calling(message: Message, calls: Sequence[_Call], form: Form) -> dict[str, Any]:
    said = message.get("content")
    if form.is_told:
        told = [
            {
                "type": "function",
                "id": _short(call.id),
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in calls
        ]
        return {**message, "content": "" if said is None else said, "tool_calls": told}
    lines = [
        f"{form.head}{call.name}{form.middle}{_text(call.arguments)}{form.tail}" for call in calls
    ]
    words = joined(said)
    return {"role": ASSISTANT, "content": "\n".join([words, *lines] if words else lines)}


def _returned(message: Message, name: str) -> dict[str, Any]:
    added = {"name": name} if name else {}
    if isinstance(message.get("tool_call_id"), str):
        added["tool_call_id"] = _short(message["tool_call_id"])
    return {**message, **added}


def _text(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _short(call_id: str) -> str:
    """An id of ours as it is; of another's kind one of ours, the same each time."""
    if len(call_id) == ID_LENGTH and call_id.isascii() and call_id.isalnum():
        return call_id
    number = int.from_bytes(hashlib.sha256(call_id.encode("utf-8", "replace")).digest())
    digits = []
    for _ in range(ID_LENGTH):
        number, digit = divmod(number, len(ID_CHARACTERS))
        digits.append(ID_CHARACTERS[digit])
    return "".join(digits)
