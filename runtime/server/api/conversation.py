"""What a chat's body asks for: its messages become a prompt, its tools a form of the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ....export.errors import RequestError
from ....export.tokenizers.beside import NAMES
from ... import openai_form
from ...chat import ToolsUnknownError
from ...messages import Message
from ...model import Model
from ...openai_form import OpenAIRequest
from ...request import ChatPrompt, Request
from ...tool_forms import OURS, Form, call_grammar, check_schemas, form_of
from ...tool_messages import described, with_calls, with_system, without_system
from ...tools import Tools, as_json, read_tools
from ..errors import ApiError
from .bodies import Chat

# Of a message as OpenAI's clients send it back: says nothing that a model reads.
SAYS_NOTHING = frozenset({"refusal", "annotations"})
DEVELOPER, SYSTEM = "developer", "system"
FORMS = ("regex", "choices", "grammar")


@dataclass(frozen=True)
class Conversation:
    """What is to be answered.

    form    the body as ``openai_form`` reads it, its options with those that tools ask for
    tools   what may be called; None: nothing
    calls   how calls are written, where there may be any
    schema  the field that a JSON schema of the answer came from
    """

    prompt: ChatPrompt
    form: OpenAIRequest
    tools: Tools | None = None
    calls: Form | None = None
    schema: str = "json_schema"

    def request(self, model: Model) -> Request:
        """Raises ApiError and RequestError for options that cannot be."""
        try:
            return model.request(self.prompt, **self.form.options)
        except RequestError as error:
            if str(error).startswith("json_schema"):
                message = str(error).replace("json_schema", self.schema, 1)
                raise ApiError(400, message, param=self.schema) from error
            if self.tools is None or not str(error).startswith("grammar"):
                raise
            self._check_schemas(model)
            raise ApiError(400, f"tools: {error}", param="tools") from error

    def _check_schemas(self, model: Model) -> None:
        assert self.tools is not None

        def compiles(schema: Mapping[str, Any]) -> None:
            model.request(self.prompt, json_schema=schema)

        check_schemas(self.tools.callable, compiles)


def read_conversation(model: Model, body: Chat, given: Mapping[str, Any]) -> Conversation:
    """Of ``body``; ``given`` are its fields that ``openai_form`` reads.

    Raises ApiError and RequestError, and ModelFolderError for a template that fails.
    """
    tools = read_tools(body.tools, body.tool_choice, body.parallel_tool_calls)
    template = None if body.transcript else model.chat_template
    source = None if template is None else template.for_tools
    _check_template(body, source, tools)
    form = form_of(source)
    try:
        return _read(model, body, given, source, tools, form)
    except ToolsUnknownError:  # it has the word, but tells the model nothing
        return _read(model, body, given, source, tools, OURS)


def _read(
    model: Model,
    body: Chat,
    given: Mapping[str, Any],
    source: str | None,
    tools: Tools | None,
    form: Form,
) -> Conversation:
    messages = with_calls(_messages(body.messages, source), form)
    asked = openai_form.read_request(openai_form.CHAT, {**given, "messages": messages})
    rendered = partial(_prompt, model, body)
    schema = "response_format.json_schema" if body.response_format else "json_schema"
    if tools is None:
        return Conversation(rendered(asked.messages or []), asked, schema=schema)
    options = _with_grammar(model, asked.options, form, tools)
    prompt = _prompt_with_tools(rendered, asked.messages or [], tools, form)
    return Conversation(prompt, replace(asked, options=options), tools, form, schema)


def _check_template(body: Chat, source: str | None, tools: Tools | None) -> None:
    if source is None and not body.transcript:
        raise ApiError(
            400,
            "messages: the model has no chat template, expected one to answer by: it is a base "
            "model, which continues a text; use /v1/completions, or add transcript: true to have "
            "it continue a script of the conversation",
            param="messages",
            code="no_chat_template",
        )
    if body.transcript and tools is not None:
        raise ApiError(
            400,
            "found tools with transcript, expected them for a model with a chat template; leave "
            "one out",
            param="tools",
        )
    # These are the tokens that a template writes: what a stranger says must not become one.
    for name in body.chat_template_kwargs or {}:
        if name in NAMES:
            raise ApiError(
                400,
                f"chat_template_kwargs has {name}, expected variables of the template other than "
                "its tokens; leave it out",
                param=f"chat_template_kwargs.{name}",
            )


def _prompt(
    model: Model, body: Chat, messages: Sequence[Message], tools: Sequence[Any] | None = None
) -> ChatPrompt:
    return model.chat_prompt(
        messages,
        transcript=bool(body.transcript),
        tools=tools,
        template_args=body.chat_template_kwargs,
    )


def _prompt_with_tools(
    rendered: partial[ChatPrompt], messages: Sequence[Message], tools: Tools, form: Form
) -> ChatPrompt:
    if form.is_told:
        return rendered(messages, [function.tool for function in tools.functions])
    with_tools = with_system(messages, described(tools, form))
    try:
        return rendered(with_tools)
    except RequestError:  # some templates take no system's message
        return rendered(without_system(with_tools))


def _with_grammar(
    model: Model, options: Mapping[str, Any], form: Form, tools: Tools
) -> dict[str, Any]:
    """``options`` with the form that calls have, and that of an answer where one is asked for."""
    other = next((name for name in FORMS if name in options), None)
    if other is not None:
        raise RequestError(
            f"{other} is asked for with tools, expected one of them: calls have a form of their "
            "own; leave one out"
        )
    others = {name: value for name, value in options.items() if name != "json_schema"}
    answer = options.get("json_schema")
    num_tokens = model.session.shape.vocab_size
    return {**others, "grammar": call_grammar(form, tools, model.tokenizer, num_tokens, answer)}


def _messages(messages: Sequence[Any], source: str | None) -> list[dict[str, Any]]:
    """As the engine takes them; what is neither text nor a message is named."""
    checked = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        content = message.get("content")
        if not isinstance(message.get("role"), str) or not isinstance(content, str | list | None):
            raise ApiError(
                400,
                f"{where} is {as_json(message)}, expected an object with role and content; "
                "correct it",
                param=where,
            )
        if isinstance(content, list):
            for place, part in enumerate(content):
                _check_part(f"{where}.content[{place}]", part)
        if message.get("audio") is not None or message.get("function_call") is not None:
            name = "audio" if message.get("audio") is not None else "function_call"
            raise ApiError(
                400,
                f"{where}.{name} is there, expected none: this model reads text, and calls are in "
                "tool_calls; leave it out",
                param=f"{where}.{name}",
            )
        kept = {
            name: value
            for name, value in message.items()
            if name == "content" or (value is not None and name not in SAYS_NOTHING)
        }
        # Where a template knows of no developer, it is who a system's message is from.
        if kept.get("role") == DEVELOPER and DEVELOPER not in (source or ""):
            kept["role"] = SYSTEM
        checked.append(kept)
    return checked


def _check_part(where: str, part: Any) -> None:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return
    raise ApiError(
        400,
        f"{where} is of the type {as_json(kind)}, expected "
        '{"type": "text", "text": ...}: the models here read text, and no images, audio or files; '
        "leave it out",
        param=where,
        code="unsupported_content",
    )
