"""The functions that a model may call: what a client says of them, checked.

    {"type": "function", "function": {"name": "weather", "description": ..., "parameters": SCHEMA}}

Source: the API reference of OpenAI, "Create chat completion", ``tools`` and ``tool_choice``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..export.errors import RequestError
from ..export.strict_json import quoted

MOST_FUNCTIONS = 128
NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
FIELDS = frozenset({"name", "description", "parameters", "strict"})
NONE, AUTO, REQUIRED = "none", "auto", "required"


@dataclass(frozen=True)
class Function:
    """One that may be called.

    where    its place in what was sent, for messages
    schema   what its arguments satisfy, a JSON schema of an object
    """

    where: str
    name: str
    description: str
    schema: Mapping[str, Any]

    @property
    def tool(self) -> dict[str, Any]:
        """As chat templates expect it."""
        told = {"name": self.name, "description": self.description, "parameters": self.schema}
        return {"type": "function", "function": told}


@dataclass(frozen=True)
class Tools:
    """The functions of one request.

    functions   all that the model is told of
    callable    those that it may call
    required    whether it must call one
    parallel    whether it may call more than one at once
    """

    functions: Sequence[Function]
    callable: Sequence[Function]
    required: bool = False
    parallel: bool = True


def read_tools(tools: Any, tool_choice: Any = None, parallel: bool | None = None) -> Tools | None:
    """What the fields say; None where there is nothing to call.

    Raises RequestError, whose message begins with the field, for what is none.
    """
    functions = _functions(tools or [])
    if not functions:
        if tool_choice not in (None, NONE, AUTO):
            raise RequestError(
                f"tool_choice is {as_json(tool_choice)}, expected it with tools; add tools, or "
                "leave it out"
            )
        return None
    several = parallel is not False
    if tool_choice in (None, AUTO):
        return Tools(functions, functions, parallel=several)
    if tool_choice == NONE:  # who is told of none writes none as text, either
        return None
    if tool_choice == REQUIRED:
        return Tools(functions, functions, required=True, parallel=several)
    # Who names a function wants one call of it.
    return Tools(functions, [_chosen(functions, tool_choice)], required=True, parallel=False)


def _functions(tools: Any) -> list[Function]:
    if isinstance(tools, str | bytes | Mapping) or not isinstance(tools, Sequence):
        raise RequestError(f"tools is {as_json(tools)}, expected a list of functions; correct it")
    if len(tools) > MOST_FUNCTIONS:
        raise RequestError(
            f"tools has {len(tools)} functions, expected at most {MOST_FUNCTIONS}; leave some out"
        )
    found = [_function(f"tools[{index}]", tool) for index, tool in enumerate(tools)]
    places: dict[str, str] = {}
    for function in found:
        first = places.setdefault(function.name, function.where)
        if first != function.where:
            raise RequestError(
                f"{function.where}.function.name is {function.name}, as of {first}, expected "
                "another name for each; rename one"
            )
    return found


def _function(where: str, tool: Any) -> Function:
    kind = tool.get("type") if isinstance(tool, Mapping) else None
    if kind != "function":
        raise RequestError(
            f'{where}.type is {as_json(kind)}, expected "function": other tools are not to be had '
            "here; leave it out"
        )
    found = tool.get("function")
    if not isinstance(found, Mapping):
        raise RequestError(
            f"{where}.function is {as_json(found)}, expected an object with name and parameters"
        )
    where_found = f"{where}.function"
    unknown = [name for name in found if name not in FIELDS and found[name] is not None]
    if unknown:
        raise RequestError(
            f"{where_found} has the field {quoted(unknown[0], 40)}, expected "
            f"{', '.join(sorted(FIELDS))}; leave it out"
        )
    name, description = found.get("name"), found.get("description") or ""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise RequestError(
            f"{where_found}.name is {as_json(name)}, expected 1 to 64 of a-z, A-Z, 0-9, _ and -"
        )
    if not isinstance(description, str):
        raise RequestError(
            f"{where_found}.description is {as_json(description)}, expected a string"
        )
    if not isinstance(found.get("strict") or False, bool):
        raise RequestError(
            f"{where_found}.strict is {as_json(found['strict'])}, expected a boolean"
        )
    return Function(where, name, description, _schema(where_found, found.get("parameters")))


def _schema(where: str, parameters: Any) -> dict[str, Any]:
    """Of an object; a function takes no arguments but those that it names."""
    if parameters is None:
        parameters = {"properties": {}}
    if not isinstance(parameters, Mapping):
        raise RequestError(
            f"{where}.parameters is {as_json(parameters)}, expected a JSON schema of an object"
        )
    schema = {"type": "object", **parameters}
    if schema["type"] != "object":
        raise RequestError(
            f'{where}.parameters has the type {as_json(schema["type"])}, expected "object": '
            "arguments have names"
        )
    if "properties" in schema and not {"additionalProperties", "patternProperties"} & set(schema):
        schema["additionalProperties"] = False
    return schema


def _chosen(functions: Sequence[Function], tool_choice: Any) -> Function:
    found = tool_choice if isinstance(tool_choice, Mapping) else {}
    named = found.get("function")
    name = named.get("name") if isinstance(named, Mapping) else None
    if found.get("type") != "function" or not isinstance(name, str):
        raise RequestError(
            f"tool_choice is {as_json(tool_choice)}, expected none, auto, required or "
            '{"type": "function", "function": {"name": ...}}; correct it'
        )
    for function in functions:
        if function.name == name:
            return function
    raise RequestError(
        f"tool_choice is {quoted(name, 64)}, expected one of the tools: "
        f"{', '.join(function.name for function in functions)}"
    )


def as_json(value: object) -> str:
    """As a message shows it."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}..."
