"""What a conversation may be made of, and the texts in it.

    {"role": "user", "content": "Why is the sky blue?"}
    {"role": "user", "content": [{"type": "text", "text": "Why is the sky blue?"}]}
    {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {...}}]}
    {"role": "tool", "content": "22 degrees", "name": "weather", "tool_call_id": "a1"}

Fields and tools go to the chat template as they are: what it makes of them is up to it. Source:
``apply_chat_template`` of transformers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from ..export.errors import ContextLengthError, RequestError
from ..export.strict_json import shown

Message: TypeAlias = Mapping[str, Any]

ASSISTANT = "assistant"
OTHER_FIELDS = frozenset({"name", "tool_calls", "tool_call_id", "reasoning_content", "thinking"})


def check_messages(messages: Any, max_characters: int) -> None:
    """Raises RequestError unless ``messages`` are a conversation of at most ``max_characters``."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise RequestError(
            f"messages is of type {type(messages).__name__}, expected a list of "
            '{"role": ..., "content": ...}; put a single message into a list'
        )
    if not messages:
        raise RequestError("messages is empty, expected at least one message; add the user's")
    for index, message in enumerate(messages):
        _check_message(f"messages[{index}]", message)
    length = sum(
        len(text)
        for message in messages
        for name, value in message.items()
        if name != "role"
        for text in texts_of(value)
    )
    if length > max_characters:
        raise ContextLengthError(
            f"messages have {length:,} characters, expected at most {max_characters:,}, more than "
            "fit the context; shorten them, or leave the oldest out"
        )


def _check_message(where: str, message: Any) -> None:
    known = {"role", "content", *OTHER_FIELDS}
    is_one = isinstance(message, Mapping) and "role" in message and message.keys() <= known
    if not is_one or ("content" not in message and not message.get("tool_calls")):
        raise RequestError(
            f"{where} is {shown(message)}, expected an object with role and content, and of other "
            f"fields only {', '.join(sorted(OTHER_FIELDS))}; leave others out"
        )
    # A template writes roles between special tokens, so that they may not be any text.
    if not isinstance(message["role"], str) or not message["role"].isidentifier():
        raise RequestError(
            f"{where} has the role {shown(message['role'])}, expected a word such as system, "
            "user or assistant"
        )
    _check_content(where, message.get("content"), bool(message.get("tool_calls")))
    _check_json(where, {name: message[name] for name in message if name in OTHER_FIELDS})


def _check_content(where: str, content: Any, may_be_none: bool) -> None:
    if isinstance(content, str) or (content is None and may_be_none):
        return
    if not isinstance(content, list):
        raise RequestError(
            f"{where} has content of type {type(content).__name__}, expected a string, or a list "
            'of parts such as {"type": "text", "text": ...}'
        )
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(part.get("text"), str) or len(part) != 2:
            raise RequestError(
                f"{where} has the part {shown(part if kind is None else kind)}, expected parts "
                '{"type": "text", "text": ...} alone: the model reads text; leave images and other '
                "things out"
            )


def check_tools(tools: Any, max_characters: int) -> list[Any] | None:
    """``tools`` as a list, None for none; RequestError for what describes no functions."""
    if tools is None:
        return None
    if isinstance(tools, (str, bytes, Mapping)) or not isinstance(tools, Sequence):
        raise RequestError(
            f"tools is of type {type(tools).__name__}, expected a list of "
            '{"type": "function", "function": {"name": ..., "parameters": ...}}'
        )
    for index, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise RequestError(
                f"tools[{index}] is {shown(tool)} of type {type(tool).__name__}, expected an "
                'object {"type": "function", "function": ...}; describe the function as JSON'
            )
    _check_json("tools", list(tools))
    if sum(map(len, texts_of(tools))) > max_characters:
        raise ContextLengthError(
            f"tools have more than {max_characters:,} characters, more than fit the context; "
            "describe fewer of them, or more briefly"
        )
    return list(tools) or None


def _check_json(where: str, value: Any) -> None:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"{where} has what is no JSON ({error}), expected plain JSON") from error


def joined(content: Any) -> str:
    """The text of a message: of its parts, put side by side."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content)
    return content or ""


def texts_of(value: Any) -> Iterator[str]:
    """Every string in ``value``, names of fields included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from texts_of(name)
            yield from texts_of(inner)
    elif isinstance(value, Sequence):
        for inner in value:
            yield from texts_of(inner)


def change_texts(value: Any, change: Callable[[str], str]) -> Any:
    """``value`` with every string in it changed, names of fields included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(name): change_texts(inner, change) for name, inner in value.items()}
    if isinstance(value, Sequence):
        return [change_texts(inner, change) for inner in value]
    return value
