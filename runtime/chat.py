"""Messages in, token ids out: a conversation as the model was trained to read it.

A message is {"role": "system", "user" or "assistant", "content": text}; ``messages`` says what else
there may be. A model folder's template says how messages become text; a base model has none and can
be given a script of the conversation instead, which it continues as it would any other text:

    User: Why is the sky blue?
    Assistant:

Where the last message is the assistant's, the answer goes on with it. Whatever a message or a tool
spells stays text: see ``quoting``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from ..export.errors import PocketLMError, RequestError
from ..export.tokenizers.beside import NAMES
from .chat_template import ChatTemplate
from .messages import (
    ASSISTANT,
    Message,
    change_texts,
    check_messages,
    check_tools,
    joined,
    texts_of,
)
from .quoted_texts import num_markers, spell_markers
from .quoting import HIDING, NAMING, Quotation
from .tokenizer import Tokenizer

SPEAKERS = {"user": "User", "assistant": "Assistant"}
TRANSCRIPT_STOPS = tuple(f"\n{speaker}:" for speaker in SPEAKERS.values())

# Ends the text of a message that is to be gone on with; the space tells whether spaces were cut off
# there. The last of the characters that hide something, of which nobody needs that many.
GOING_ON = chr(NAMING - 1)


class ToolsUnknownError(RequestError):
    """The model's chat template writes nothing of the tools that were given."""


Write = Callable[[Sequence[Message], Any], str]  # messages, and what else there is -> text


def template_ids(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    max_characters: int,
    tools: Sequence[Mapping[str, Any]] | None = None,
    template_args: Mapping[str, Any] | None = None,
) -> list[int]:
    """``messages`` as ``template`` writes them; it also writes the token a text begins with.

    ``tools`` are the functions that the model may call, ``template_args`` further variables of the
    template. Raises RequestError for messages that are none, that the template refuses, or that
    are longer than ``max_characters``, and for tools or variables that it has no use for;
    ModelFolderError for a template that fails.
    """
    check_messages(messages, max_characters)
    tools = check_tools(tools, max_characters)
    given = template.check_args(template_args)
    # A variable such as eos_token is a token; others may hold a stranger's text, as documents do.
    tokens = {name: value for name, value in given.items() if name in NAMES}
    others = {"args": {name: given[name] for name in given if name not in NAMES}}

    def rendered(messages: Sequence[Message], others: Any, goes_on: bool) -> str:
        return template.render(
            messages,
            max_characters=max_characters,
            add_generation_prompt=not goes_on,
            tools=others["tools"],
            args=tokens | others["args"],
        )

    def write(messages: Sequence[Message], others: Any) -> str:
        if not _goes_on(messages):
            return rendered(messages, others, False)
        last = messages[-1]
        marked = [*messages[:-1], {**last, "content": f"{joined(last['content'])}{GOING_ON} "}]
        text, found, after = rendered(marked, others, True).rpartition(GOING_ON)
        if not found:
            raise RequestError(
                f"{template.where}: the chat template leaves out what the assistant's last message "
                "says, expected it at the end, to go on with it; end with the user's message"
            )
        return text if after.startswith(" ") else text.rstrip()

    def quoted(tools: Any) -> tuple[str, Callable[..., list[int]]]:
        return _quoted(tokenizer, messages, others | {"tools": tools}, partial(_with_parts, write))

    text, encode = quoted(tools)
    if tools is not None and text == quoted(None)[0]:
        raise ToolsUnknownError(
            f"{template.where}: the chat template writes nothing of tools, expected one of a model "
            "that was trained to call them; leave tools out"
        )
    return encode(text, add_special_tokens=False, max_characters=max_characters)


def transcript_ids(
    tokenizer: Tokenizer, messages: Sequence[Message], max_characters: int
) -> list[int]:
    """``messages`` as a script, for a model without a template. Raises RequestError likewise."""
    check_messages(messages, max_characters)
    text, encode = _quoted(tokenizer, messages, None, lambda messages, _: _script(messages))
    return encode(text, add_special_tokens=True, max_characters=max_characters)


def refuse_template_options(tools: object, template_args: object) -> None:
    """Raises RequestError for what a script of the conversation has no place for."""
    for name, given in (("tools", tools), ("template_args", template_args)):
        if given:
            raise RequestError(
                f"found {name} with transcript, expected them for a model with a chat template; "
                "leave them out"
            )


def _script(messages: Sequence[Message]) -> str:
    lines = []
    for message in messages:
        speaker = SPEAKERS.get(message["role"])
        content = joined(message["content"]).strip()
        lines.append(f"{speaker}: {content}\n" if speaker else f"{content}\n\n")
    if _goes_on(messages):
        return "".join(lines).removesuffix("\n")
    return "".join(lines) + f"{SPEAKERS[ASSISTANT]}:"


def _goes_on(messages: Sequence[Message]) -> bool:
    last = messages[-1]
    return last["role"] == ASSISTANT and not last.get("tool_calls")


def _with_parts(write: Write, messages: Sequence[Message], others: Any) -> str:
    """With contents of several parts as they are, or joined where the template takes texts only."""
    as_texts = [
        {**message, "content": joined(message["content"])}
        if isinstance(message.get("content"), list)
        else message
        for message in messages
    ]
    if as_texts == list(messages):
        return write(messages, others)
    try:
        text = write(messages, others)
    except PocketLMError:
        return write(as_texts, others)
    # A list that was printed as Python prints it.
    return write(as_texts, others) if "'type': 'text'" in text else text


def _quoted(
    tokenizer: Tokenizer, messages: Sequence[Message], others: Any, write: Write
) -> tuple[str, Callable[..., list[int]]]:
    """The text of a conversation with what it spells hidden, and what encodes it."""
    messages = [_in_one_part(tokenizer, message) for message in messages]
    quotation = Quotation(tokenizer.marker_spellings)
    hides = spell_markers(tokenizer, texts_of([messages, others]))
    if hides:
        text = _with_hidden(tokenizer, quotation, messages, others, write)
    else:
        text = write(messages, others)
    apart = _with_edges_hidden(quotation, messages, others, write)
    if apart is not None and quotation.restore(apart) == quotation.restore(text):
        if quotation.count(apart) < quotation.count(text):
            hides, text = True, apart
    if not hides:
        return text, tokenizer.encode
    return text, partial(tokenizer.encode_quoting, quotation=quotation)


def _with_edges_hidden(
    quotation: Quotation, messages: Sequence[Message], others: Any, write: Write
) -> str | None:
    """The text without a character of a stranger's that a marker could begin or end with.

    With fewer markers in it, a template made one of what it had cut, joined or changed. None where
    nothing is hidden, or the template misses it.
    """
    edges = {end for marker in quotation.spellings for end in (marker[0], marker[-1])}
    edges = {end for end in edges if not f"a{end}".isidentifier()}  # roles are words
    if not any(end in text for text in texts_of([messages, others]) for end in edges):
        return None

    def hide(text: str) -> str:
        return quotation.hide(text, [*quotation.spellings, *edges])

    try:
        return write(
            [change_texts(message, hide) for message in messages], change_texts(others, hide)
        )
    except PocketLMError:
        return None


def _with_hidden(
    tokenizer: Tokenizer,
    quotation: Quotation,
    messages: Sequence[Message],
    others: Any,
    write: Write,
) -> str:
    """The text with the markers hidden that messages spell, as far as the template allows."""

    def hidden(heard: Collection[str] = ()) -> str:
        some = [marker for marker in tokenizer.marker_spellings if marker not in heard]
        told = [
            change_texts(message, lambda text: quotation.hide(text, some))
            if message["role"] == ASSISTANT
            else change_texts(message, quotation.hide)
            for message in messages
        ]
        return write(told, change_texts(others, quotation.hide))

    text = hidden()
    try:
        plain = write(messages, others)
    except PocketLMError:
        return text
    if quotation.restore(text) == plain:
        return text
    # The template looks for tokens in what the model has said, such as the end of its thoughts.
    said = [*texts_of([message for message in messages if message["role"] == ASSISTANT])]
    heard = {
        marker
        for marker in set(tokenizer.marker_spellings).difference(tokenizer.special_spellings)
        if any(marker in text for text in said)
    }
    if quotation.restore(hidden(heard)) != plain:
        return text
    for marker in sorted(heard):
        if quotation.restore(hidden(heard - {marker})) == plain:  # not for this one
            heard.remove(marker)
    return hidden(heard)


def _in_one_part(tokenizer: Tokenizer, message: Message) -> Message:
    """``message`` in one part where parts spell a marker together that none of them spells."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    text = joined(content)
    if num_markers(tokenizer, [text]) <= num_markers(tokenizer, texts_of(content)):
        return message
    return {**message, "content": [{"type": "text", "text": text}]}


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
