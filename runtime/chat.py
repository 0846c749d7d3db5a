"""Messages in, token ids out: a conversation as the model was trained to read it.

A message is {"role": "system", "user" or "assistant", "content": text}. A model folder's template
says how messages become text; a base model has none and can be given a script of the conversation
instead, which it continues as it would any other text:

    User: Why is the sky blue?
    Assistant:

Whatever a message spells stays text: see ``quoting``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from ..export.errors import RequestError
from ..export.strict_json import shown
from .chat_template import ChatTemplate
from .quoted_texts import quoting
from .quoting import HIDING
from .tokenizer import Tokenizer

Message: TypeAlias = Mapping[str, str]

SPEAKERS = {"user": "User", "assistant": "Assistant"}
TRANSCRIPT_STOPS = tuple(f"\n{speaker}:" for speaker in SPEAKERS.values())


@dataclass(frozen=True)
class ChatPrompt:
    """What a model reads before it answers, and how to tell that it has answered."""

    token_ids: list[int]
    end_ids: frozenset[int] = frozenset()  # beside those the model has anyway
    stop: tuple[str, ...] = ()


def template_ids(
    template: ChatTemplate, tokenizer: Tokenizer, messages: Sequence[Message], max_characters: int
) -> list[int]:
    """``messages`` as ``template`` writes them; it also writes the token a text begins with.

    Raises RequestError for messages that are none, that the template refuses, or that are longer
    than ``max_characters``; ModelFolderError for a template that fails.
    """

    def write(messages: Sequence[Message]) -> str:
        return template.render(messages, max_characters=max_characters)

    return _encode(tokenizer, messages, write, max_characters, add_special_tokens=False)


def transcript_ids(
    tokenizer: Tokenizer, messages: Sequence[Message], max_characters: int
) -> list[int]:
    """``messages`` as a script, for a model without a template. Raises RequestError likewise."""
    return _encode(tokenizer, messages, _script, max_characters, add_special_tokens=True)


def _script(messages: Sequence[Message]) -> str:
    lines = []
    for message in messages:
        speaker = SPEAKERS.get(message["role"])
        content = message["content"].strip()
        lines.append(f"{speaker}: {content}\n" if speaker else f"{content}\n\n")
    return "".join(lines) + f"{SPEAKERS['assistant']}:"


def _encode(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    write: Callable[[Sequence[Message]], str],
    max_characters: int,
    *,
    add_special_tokens: bool,
) -> list[int]:
    check_messages(messages, max_characters)
    limits: dict[str, Any] = {
        "add_special_tokens": add_special_tokens,
        "max_characters": max_characters,
    }
    hide, encode = quoting(tokenizer, [message["content"] for message in messages])
    hidden = [{**message, "content": hide(message["content"])} for message in messages]
    return encode(write(hidden), **limits)


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
        where = f"messages[{index}]"
        if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
            raise RequestError(
                f"{where} is {shown(message)}, expected an object with role and content alone; "
                "leave other fields out"
            )
        # A template writes roles between special tokens, so that they may not be any text.
        if not isinstance(message["role"], str) or not message["role"].isidentifier():
            raise RequestError(
                f"{where} has the role {shown(message['role'])}, expected a word such as system, "
                "user or assistant"
            )
        if not isinstance(message["content"], str):
            raise RequestError(
                f"{where} has content of type {type(message['content']).__name__}, expected a "
                "string; join the parts of a text"
            )
    length = sum(len(message["content"]) for message in messages)
    if length > max_characters:
        raise RequestError(
            f"messages have {length:,} characters, expected at most {max_characters:,}, more than "
            "fit the context; shorten them, or leave the oldest out"
        )


def answer_end_ids(template: ChatTemplate, tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens with which an answer ends: ``eos_token``, and what the template puts after one.

    Published files often name only the end of a text, not that of a turn. Raises ModelFolderError
    for a template that fails.
    """
    answer = chr(HIDING)
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
    try:
        text = template.render(turns, max_characters=100_000, add_generation_prompt=False)
    except RequestError:  # it takes other conversations only
        text = ""
    after = text.rpartition(answer)[2].lstrip()
    ends = set(tokenizer.encode(after, add_special_tokens=False)[:1]) & tokenizer.special_ids
    eos = tokenizer.id_of(template.tokens.get("eos_token", ""))
    return frozenset(ends if eos is None else {*ends, eos})
