"""A body of /v1/responses as one of /v1/chat/completions: the same things by other names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...tools import as_json
from ..errors import ApiError
from .bodies import Chat, Response

# Which field of a chat each is; what is missing here has the same name, or no effect.
SAME = [
    *("model", "temperature", "top_p", "parallel_tool_calls", "seed", "stop", "top_k", "min_p"),
    *("repetition_penalty", "max_seconds", "transcript", "chat_template_kwargs"),
]
LOGPROBS = "message.output_text.logprobs"
INCLUDED = (LOGPROBS, "reasoning.encrypted_content")  # of a model without such reasoning: none
TEXTS = ("input_text", "output_text", "text")

# Fields of what is not to be had, and why.
REFUSED = {
    "previous_response_id": "no response is kept here; send the whole conversation as input",
    "conversation": "no conversation is kept here; send all of it as input",
    "prompt": "no prompts are kept here; send its text as input",
    "background": "a response is there when it has been computed; use stream, or wait for it",
    "reasoning": "the models here do not reason apart; leave it out",
}


def chat_of(body: Response) -> Chat:
    """As one answer, since the last events of a stream tell all of it again.

    Raises ApiError (400) that names the field for what is not to be had.
    """
    _check(body)
    given: dict[str, Any] = {name: getattr(body, name) for name in SAME}
    messages = _messages(body.input)
    if body.instructions is not None:
        messages = [{"role": "system", "content": body.instructions}, *messages]
    with_logprobs = LOGPROBS in (body.include or ())
    return Chat(
        **given,
        messages=messages,
        max_tokens=body.max_output_tokens,
        tools=_tools(body.tools),
        tool_choice=_choice(body.tool_choice),
        response_format=_format(body.text),
        logprobs=with_logprobs or None,
        top_logprobs=body.top_logprobs if with_logprobs else None,
    )


def as_responses(error: ApiError) -> ApiError:
    """What is wrong with a chat, in the words of what was sent."""

    def renamed(text: str) -> str:
        for name, other in (
            ("response_format.json_schema", "text.format"),
            ("response_format", "text.format"),
            ("].function.", "]."),
            ("messages", "input"),
            ("max_tokens", "max_output_tokens"),
        ):
            text = text.replace(name, other)
        return text

    error.message = renamed(error.message)
    error.param = None if error.param is None else renamed(error.param)
    return error


def _check(body: Response) -> None:
    for name, why in REFUSED.items():
        if getattr(body, name):
            raise ApiError(400, f"found {name} in the body, expected none: {why}", param=name)
    if body.truncation == "auto":
        raise ApiError(
            400,
            'truncation is "auto", expected "disabled": nothing is left out of a conversation '
            "unasked; shorten the input",
            param="truncation",
        )
    for index, name in enumerate(body.include or ()):
        if name not in INCLUDED:
            raise ApiError(
                400,
                f"include[{index}] is {as_json(name)}, expected {LOGPROBS}; leave it out",
                param=f"include[{index}]",
            )


def _messages(given: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One for each item of an input, but that calls in a row are those of one message."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not given:
        raise ApiError(
            400, "input is empty, expected a text or messages; add the user's", param="input"
        )
    messages: list[dict[str, Any]] = []
    for index, item in enumerate(given):
        where = f"input[{index}]"
        match item.get("type", "message"):
            case "message":
                messages.append(_message(where, item))
            case "function_call":
                if not messages or messages[-1].get("role") != "assistant":
                    messages.append({"role": "assistant", "content": None})
                messages[-1].setdefault("tool_calls", []).append(_call(where, item))
            case "function_call_output":
                messages.append(_returned(where, item))
            case kind:
                raise _wrong(
                    f"{where}.type",
                    kind,
                    "message, function_call or function_call_output: nothing else is known here",
                )
    return messages


def _message(where: str, item: Mapping[str, Any]) -> dict[str, Any]:
    role, content = item.get("role"), item.get("content")
    if not isinstance(role, str):
        raise _wrong(f"{where}.role", role, "user, assistant, system or developer")
    return {"role": role, "content": _text(f"{where}.content", content)}


def _text(where: str, content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _wrong(where, content, "a text, or a list of parts")
    texts = []
    for index, part in enumerate(content):
        found = part if isinstance(part, Mapping) else {}
        kind = found.get("type")
        text = found.get("refusal" if kind == "refusal" else "text")
        if kind not in (*TEXTS, "refusal") or not isinstance(text, str):
            raise _wrong(
                f"{where}[{index}]",
                kind,
                "input_text or output_text: the models here read text, and no images, audio or "
                "files",
            )
        texts.append(text)
    return "".join(texts)


def _call(where: str, item: Mapping[str, Any]) -> dict[str, Any]:
    for name in ("call_id", "name", "arguments"):
        if not isinstance(item.get(name), str):
            raise _wrong(f"{where}.{name}", item.get(name), "a string")
    function = {"name": item["name"], "arguments": item["arguments"]}
    return {"id": item["call_id"], "type": "function", "function": function}


def _returned(where: str, item: Mapping[str, Any]) -> dict[str, Any]:
    call_id = item.get("call_id")
    if not isinstance(call_id, str):
        raise _wrong(f"{where}.call_id", call_id, "the id of a function_call")
    content = _text(f"{where}.output", item.get("output"))
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def _tools(tools: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    if tools is None:
        return None
    functions = []
    for index, tool in enumerate(tools):
        if tool.get("type") != "function":
            raise _wrong(
                f"tools[{index}].type", tool.get("type"), '"function": nothing is built in here'
            )
        function = {name: value for name, value in tool.items() if name != "type"}
        functions.append({"type": "function", "function": function})
    return functions


def _choice(choice: Any) -> Any:
    """A function is named without an object of its own."""
    if isinstance(choice, Mapping) and choice.get("type") == "function" and "name" in choice:
        return {"type": "function", "function": {"name": choice["name"]}}
    return choice


def _format(text: Mapping[str, Any] | None) -> Any:
    given = text or {}
    for name in given:
        if name != "format" and given[name] is not None:
            raise ApiError(
                400,
                f"found text.{name} in the body, expected format alone; leave it out",
                param=f"text.{name}",
            )
    found = given.get("format")
    if not isinstance(found, Mapping) or found.get("type") != "json_schema":
        return found
    schema = {name: value for name, value in found.items() if name != "type"}
    return {"type": "json_schema", "json_schema": schema}


def _wrong(where: str, found: object, expected: str) -> ApiError:
    return ApiError(
        400, f"{where} is {as_json(found)}, expected {expected}; correct it", param=where
    )
