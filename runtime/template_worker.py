"""The process in which chat templates run: one JSON object per line in, one per line out.

A template is a program by whoever published the model. jinja2's sandbox keeps it from Python's
internals, but lets it loop and allocate; here the kernel limits its memory, and the process that
asks kills this one when it takes too long. Windows and macOS do not limit a process's memory so:
there the time and the length of the text are the limits.

    ready    {} when everything is imported, or {"missing": name} without jinja2
    request  {"template": text, "variables": {...}, "max_characters": n}
    reply    {"text": text}, or {"failed": one of the kinds below, "detail": text}

Nothing but jinja2 and the standard library is imported, so that it starts quickly. The environment
is the one for which templates are written, that of ``apply_chat_template`` in transformers: blocks
trimmed, ``break`` and ``continue``, the tag ``generation``, the functions ``raise_exception`` and
``strftime_now``, and a ``tojson`` that escapes nothing for HTML.
"""

from __future__ import annotations

import contextlib
import datetime
import faulthandler
import json
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.ext import Extension
    from jinja2.nodes import Node
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

REFUSED = "refused"  # the template called raise_exception
BROKEN = "broken"  # it is no template, or does what cannot work
TOO_LONG = "too long"  # the text has more than max_characters
MEMORY = "memory"  # there was no memory left

FLAG = "--pocketlm-template-worker"  # the first argument of a frozen application's executable
LARGEST_DETAIL = 500  # characters of a message that a template may have written


class Refusal(Exception):
    """What ``raise_exception`` raises."""


class TooLong(Exception):
    """The text outgrew its limit."""


def serve(seconds: float, num_bytes: int) -> None:
    """Answers requests from stdin on stdout until stdin ends.

    A request that takes ``seconds`` ends the process. The one that asks need not rely on it: this
    is for the case that it is gone.
    """
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # what prints by mistake must not be taken for a reply

    def reply(value: dict[str, Any]) -> None:
        replies.write(json.dumps(value).encode() + b"\n")
        replies.flush()

    try:
        _environment()
    except ModuleNotFoundError as error:
        return reply({"missing": error.name})
    limit_memory(num_bytes)
    reply({})
    for line in requests:
        faulthandler.dump_traceback_later(seconds, exit=True)  # needs no turn of the interpreter
        reply(answer(json.loads(line)))
        faulthandler.cancel_dump_traceback_later()


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The reply to one request."""
    try:
        return {"text": _render(**request)}
    except Refusal as error:
        return {"failed": REFUSED, "detail": str(error)[:LARGEST_DETAIL]}
    except TooLong:
        return {"failed": TOO_LONG, "detail": ""}
    except MemoryError:
        return {"failed": MEMORY, "detail": ""}
    except Exception as error:
        line = getattr(error, "lineno", None)
        place = f" in line {line}" if line else ""
        detail = f"{type(error).__name__}{place}: {error}"
        return {"failed": BROKEN, "detail": detail[:LARGEST_DETAIL]}


def _render(template: str, variables: dict[str, Any], max_characters: int) -> str:
    parts = []
    left = max_characters
    for part in _compiled(template).generate(variables):
        left -= len(part)
        if left < 0:
            raise TooLong
        parts.append(part)
    return "".join(parts)


@lru_cache(1)
def _compiled(template: str) -> Template:
    return _environment().from_string(template)


@lru_cache(1)
def _environment() -> ImmutableSandboxedEnvironment:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _generation_tag()],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _now
    return environment


def _generation_tag() -> type[Extension]:
    """``{% generation %}`` marks, for training, what the model says; here it changes nothing."""
    from jinja2.ext import Extension
    from jinja2.nodes import Scope

    class Generation(Extension):
        tags = {"generation"}

        def parse(self, parser: Parser) -> Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return Scope(body, lineno=line)

    return Generation


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: object) -> NoReturn:
    raise Refusal(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def limit_memory(num_bytes: int) -> None:
    """Of what is allocated, not of address space: mapped files alone may take more of that."""
    try:
        import resource
    except ImportError:  # Windows
        return
    with contextlib.suppress(ValueError, OSError):  # a lower limit was set from outside
        resource.setrlimit(resource.RLIMIT_DATA, (num_bytes, num_bytes))
