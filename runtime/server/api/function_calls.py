"""Calls of functions in an answer, whole and as they come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ... import openai_form
from ...request import Request
from ...sequence import Step
from ...text import Piece, Result
from ...tokenizer import Tokenizer
from ...tool_calls import Arguments, Begun, CallReader, Change, Words
from ...tool_forms import Form

TOOL_CALLS = "tool_calls"


def reader_of(form: Form, request: Request, tokenizer: Tokenizer) -> CallReader:
    """What reads the text of ``request``."""
    return CallReader(form, tokenizer, request.prompt_ids, request.end_ids)


def delta(change: Change) -> dict[str, Any]:
    """As a chunk of a stream tells it."""
    match change:
        case Words():
            return {"content": change.text}
        case Begun():
            call = {"index": change.index, **_call(change, "")}
        case Arguments():
            call = {"index": change.index, "function": {"arguments": change.text}}
    return {TOOL_CALLS: [call]}


def changes_of(form: Form, request: Request, result: Result, tokenizer: Tokenizer) -> list[Change]:
    """All that a text says, once it has ended."""
    reader = reader_of(form, request, tokenizer)
    steps = tuple(Step(token, None, 0.0) for token in result.token_ids)
    return [*reader.add(Piece(result.text, steps)), *reader.finish()]


def message_of(changes: Iterable[Change]) -> dict[str, Any]:
    """The assistant's message that ``changes`` make."""
    words, calls = "", []
    for change in changes:
        match change:
            case Words():
                words += change.text
            case Begun():
                calls.append(_call(change, ""))
            case Arguments():
                calls[change.index]["function"]["arguments"] += change.text
    message: dict[str, Any] = {"role": "assistant", "content": words or None, "refusal": None}
    if not calls:
        message["content"] = words
        return message
    return {**message, TOOL_CALLS: calls}


def finish_reason(reason: str | None, num_calls: int) -> str:
    """Theirs, of ours: a text that comes to its own end with calls ends for them."""
    return TOOL_CALLS if reason == "eos" and num_calls else openai_form.finish_reason(reason)


def _call(begun: Begun, arguments: str) -> dict[str, Any]:
    function = {"name": begun.name, "arguments": arguments}
    return {"id": begun.id, "type": "function", "function": function}


def read(reader: CallReader, piece: Piece | None) -> Iterator[Change]:
    """What a piece adds, or, where it is None, the end of a text."""
    return reader.finish() if piece is None else reader.add(piece)
