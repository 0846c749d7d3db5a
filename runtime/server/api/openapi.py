"""The OpenAPI document: what is served, made of the table of endpoints and the types of bodies.

Source: the OpenAPI Specification 3.1.1.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec

from ...model import Model
from ..endpoint import Endpoint
from .answer_schemas import Error
from .bodies import OF_MESSAGES, OF_PROMPTS, Body, StreamOptions

REFERENCE = "#/components/schemas/{name}"
JSON, EVENTS = "application/json", "text/event-stream"

EVENT: dict[str, Any] = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
    "description": "One of the events; its data is JSON, or [DONE] at the end.",
}
STATUS = {
    400: "The request is not to be had as it is.",
    401: "There is no valid key.",
    403: "The Host or Origin is not one that may ask.",
    404: "There is no model of that name.",
    408: "The body did not arrive in time.",
    413: "The body is too long.",
    415: "The body is no JSON.",
    429: "There is too much to do: try again after Retry-After.",
    500: "The server failed.",
    501: "Something that is needed is not installed.",
    503: "The server or the model cannot answer now: try again after Retry-After.",
}
ANY = (403, 500, 503)
OF_BODIES = (400, 404, 408, 413, 415, 429, 501)

_ID: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
_IDS: dict[str, Any] = {"type": "array", "items": _ID}
_TEXT: dict[str, Any] = {"type": "string"}
_SEVERAL: dict[str, Any] = {"type": "array", "items": {"anyOf": [_TEXT, _IDS]}}
_MESSAGES: dict[str, Any] = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "properties": {
            "role": {"type": "string"},
            "content": {"anyOf": [_TEXT, {"type": "array"}, {"type": "null"}]},
        },
        "required": ["role"],
    },
    "examples": [[{"role": "user", "content": "How are you?"}]],
}


def _with(name: str, schema: dict[str, Any], without: list[str]) -> dict[str, Any]:
    """An object with that field, and ``without`` those."""
    absent = {other: {"type": "null"} for other in without}
    return {"properties": {name: schema, **absent}, "required": [name]}


# What msgspec's types cannot say: two kinds of list at one place, and a field that is refused.
TRUER: dict[str, dict[str, Any]] = {
    "Completion": {
        "prompt": {"anyOf": [_TEXT, _IDS, _SEVERAL, {"type": "null"}]},
        "suffix": {"anyOf": [{"type": "string", "maxLength": 0}, {"type": "null"}]},
    },
    "Chat": {"messages": _MESSAGES},
    "Tokenize": {"messages": {"anyOf": [_MESSAGES, {"type": "null"}]}},
    "Embeddings": {"input": {"anyOf": [_TEXT, _IDS, _SEVERAL]}},
}

# And which fields go together.
TOGETHER: dict[str, dict[str, Any]] = {
    "Score": {
        "anyOf": [
            _with("continuations", {"type": "array"}, without=["text", "top"]),
            _with("text", {"type": "string"}, without=["context", "continuations"]),
        ]
    },
    "Tokenize": {
        "anyOf": [
            _with("prompt", {"type": "string"}, without=["messages", *OF_MESSAGES]),
            _with("messages", {"type": "array"}, without=["prompt", *OF_PROMPTS]),
        ]
    },
}


def document(
    endpoints: Sequence[Endpoint], names: Sequence[str], *, with_key: bool
) -> dict[str, Any]:
    """Of ``endpoints``, where models of these ``names`` are served; ``with_key``: for a key."""
    kinds = [kind for one in endpoints for kind in (one.body, one.answer) if kind is not None]
    _, schemas = msgspec.json.schema_components([*kinds, Error], ref_template=REFERENCE)
    for kind in _bodies(kinds):
        _explain(schemas[kind.__name__], kind, names)
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        operation = _operation(endpoint, names, with_key)
        paths.setdefault(_plain(endpoint.path), {})[endpoint.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "pocketlm", "version": _version()},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}] if with_key else [],
    }


def _operation(endpoint: Endpoint, names: Sequence[str], with_key: bool) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": _name(endpoint),
        "summary": endpoint.summary,
        "responses": {"200": _answer(endpoint)},
    }
    parameters = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "enum": [*names]},
        }
        for name in re.findall(r"{(\w+)", endpoint.path)
    ]
    codes = [*ANY, *(OF_BODIES if endpoint.body else ()), *((404,) if parameters else ())]
    if endpoint.is_open:
        operation["security"] = []
    elif with_key:
        codes.append(401)
    if parameters:
        operation["parameters"] = parameters
    if endpoint.body is not None:
        schema = {"$ref": REFERENCE.format(name=endpoint.body.__name__)}
        operation["requestBody"] = {"required": True, "content": {JSON: {"schema": schema}}}
    for code in sorted(codes):
        operation["responses"][str(code)] = _error(code)
    return operation


def _answer(endpoint: Endpoint) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    if endpoint.answer is not None:
        schema = {"$ref": REFERENCE.format(name=endpoint.answer.__name__)}
    content: dict[str, Any] = {endpoint.answers_in: {"schema": schema}}
    if endpoint.answers_in != JSON:
        content = {endpoint.answers_in: {"schema": {"type": "string"}}}
    if endpoint.streams:
        content[EVENTS] = {"schema": EVENT}
    return {"description": endpoint.summary, "content": content}


def _error(code: int) -> dict[str, Any]:
    schema = {"$ref": REFERENCE.format(name=Error.__name__)}
    return {"description": STATUS[code], "content": {JSON: {"schema": schema}}}


def _plain(path: str) -> str:
    """A path without the converters of its parameters: {name:path} is {name}."""
    return re.sub(r":\w+}", "}", path)


def _name(endpoint: Endpoint) -> str:
    """By which generated clients call it: "post_v1_completions"."""
    words = re.findall(r"\w+", _plain(endpoint.path))
    return "_".join([endpoint.method.lower(), *words])


def _bodies(kinds: Sequence[type]) -> Iterator[type[msgspec.Struct]]:
    """Those that are posted, and what is in them."""
    for kind in kinds:
        if issubclass(kind, Body):
            yield kind
    yield StreamOptions


def _explain(schema: dict[str, Any], kind: type[msgspec.Struct], names: Sequence[str]) -> None:
    """Says of each field what it means, and what msgspec cannot say of its values."""
    descriptions = meanings(kind)
    schema |= TOGETHER.get(kind.__name__, {})
    for name, field in schema["properties"].items():
        if name in ("model", "draft"):
            field["anyOf"] = [{"type": "string", "enum": [*names]}, {"type": "null"}]
        if truer := TRUER.get(kind.__name__, {}).get(name):
            field.pop("type", None)
            field.pop("items", None)
            field |= truer
        if name in descriptions:
            field["description"] = descriptions[name]


def meanings(kind: type[msgspec.Struct]) -> dict[str, str]:
    """Of each field of a body: by its docstring, or else by that of ``Model.stream``."""
    found = _table(Model.stream)
    for ancestor in reversed(kind.__mro__):
        found |= _table(ancestor)
    return {name: found[name] for name in kind.__struct_fields__ if name in found}


def _table(of: object) -> dict[str, str]:
    """The names that a docstring explains: "name   what it is", gone on with on deeper lines."""
    text = inspect.getdoc(of) or ""
    entry = r"^([a-z_]+(?:, [a-z_]+)*) {2,}(\S.*(?:\n {4,}.*)*)"
    return {
        name: " ".join(meaning.replace("``", "`").split())
        for names, meaning in re.findall(entry, text, re.MULTILINE)
        for name in names.split(", ")
    }


def _version() -> str:
    try:
        return version("pocketlm")
    except PackageNotFoundError:  # a frozen application may have left it out
        return "0"
