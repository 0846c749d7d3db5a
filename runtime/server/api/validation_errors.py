"""What is wrong with a body: msgspec's word for it, told as all other errors are.

"Expected `int | null`, got `str` - at `$.max_tokens`"  ->
found max_tokens "8", expected an integer; correct it, or leave it out
"""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Mapping
from typing import Any

import msgspec

from ..errors import ApiError

LONGEST = 60  # characters that are shown of a value

WORDS = {
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "",  # a null is as good as nothing: nobody need hear of it
}
UNITS = {"str": "characters", "array": "entries", "object": "fields"}
SIGNS = {">=": "at least", "<=": "at most", ">": "more than", "<": "less than"}

# Fields that somebody may well look for in the other kind of body.
ELSEWHERE = {
    "Completion": {
        "messages": "expected prompt here: a conversation is answered at /v1/chat/completions; "
        "post it there, or leave messages out"
    },
    "Chat": {
        "prompt": "expected messages here: a text is continued at /v1/completions; post it there, "
        "or leave prompt out"
    },
}


def wrong(
    error: msgspec.ValidationError,
    body: Mapping[str, Any],
    kind: type[msgspec.Struct],
    start: int = 0,
) -> ApiError:
    """The error (400) of a ``body`` that is no ``kind``, with the field that it is about.

    Of that, ``body`` may have a piece that begins with its entry ``start``.
    """
    for name, said in ELSEWHERE.get(kind.__name__, {}).items():
        if name in body:
            return ApiError(400, f"found {name} in the body, {said}", param=name)
    problem, _, place = str(error).partition(" - at ")
    path = place.rpartition("$")[2].strip("`.").replace("[...]", "")
    if name := _after("unknown field ", problem):
        param = f"{path}.{name}" if path else name
        message = f"found the field {param!r:.80}, expected one that is known here; leave it out"
        return ApiError(400, message, param=param, code="unknown_parameter")
    if name := _after("missing required field ", problem):
        param = f"{path}.{name}" if path else name
        return ApiError(400, f"found no {param}, expected it in the body; add it", param=param)
    if not path:
        return ApiError(400, f"found the body, expected {_expected(problem, kind, '')}; correct it")
    keys = "keys: " if place.startswith("`key`") else ""
    where = re.sub(r"\[(\d+)\]", lambda index: f"[{start + int(index[1])}]", path, count=1)
    return ApiError(
        400,
        f"found {where} {_shown(_at(body, path))}, expected {keys}"
        f"{_expected(problem, kind, path)}; "
        "correct it, or leave it out",
        param=path.partition("[")[0],
    )


def _after(words: str, problem: str) -> str:
    return problem.partition(words)[2].strip("`")


def _expected(problem: str, kind: type[msgspec.Struct], path: str) -> str:
    """Of "Expected `int | str`, got `bool`", "Expected `int` >= 1" and their like."""
    match = re.match(r"Expected `([^`]*)`( of length| matching regex)?(.*)", problem, re.DOTALL)
    if match is None:
        return _choices(kind, path) or f"another value: {problem[:1].lower()}{problem[1:]}"
    kinds, of, rest = match.groups()
    expected = " or ".join(filter(None, (WORDS.get(kind, kind) for kind in kinds.split(" | "))))
    bound = rest.partition(", got ")[0].strip()
    if of == " matching regex":
        return f"{expected} that matches {bound}"
    if not bound:
        return _choices(kind, path) or expected
    sign, _, number = bound.partition(" ")
    bound = f"{SIGNS.get(sign, sign)} {number.removesuffix('.0')}"
    return f"{expected} of {bound} {UNITS[kinds]}" if of else f"{expected}, {bound}"


def _choices(kind: type[msgspec.Struct], path: str) -> str:
    """Those of a field that is one of several words; "" for any other."""
    found = typing.get_type_hints(kind).get(path)
    for part in typing.get_args(found):
        if typing.get_origin(part) is typing.Literal:
            return f"one of {', '.join(typing.get_args(part))}"
    return ""


def _at(body: Any, path: str) -> Any:
    """What ``body`` has at the place ``path``, or what holds it, where that has no name."""
    found = body
    for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
        try:
            found = found[int(index)] if index else found[name]
        except (KeyError, IndexError, TypeError):
            break
    return found


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
