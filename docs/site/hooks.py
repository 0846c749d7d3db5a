"""What the pages leave to the code: ``<!-- api -->`` and ``<!-- commands -->`` are filled in.

mkdocs calls ``on_page_markdown``. ``<!-- api -->`` becomes the docstrings of what ``import
pocketlm`` offers, ``<!-- commands -->`` the help of every verb. Docstrings are written for
``help``: an indented paragraph is code, and names in a column of their own become a table.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import pocketlm
from pocketlm.cli import VERBS

OPENING = ("load", "load_async")
ENTRY = re.compile(r"(\w[\w, ]*?)  +(\S.*)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The hook: a page with what the code says of itself."""
    makers: dict[str, Callable[[], str]] = {"api": api, "commands": commands}
    for name, make in makers.items():
        if (marker := f"<!-- {name} -->") in markdown:
            markdown = markdown.replace(marker, make())
    return markdown


# Commands -----------------------------------------------------------------------------------------


def commands() -> str:
    """A section for each verb: its help, as a terminal of 84 columns shows it."""
    return "\n\n".join(f"## {verb}\n\n```console\n{help_of(verb)}\n```" for verb in VERBS)


def help_of(verb: str) -> str:
    import click

    command = importlib.import_module(f"pocketlm.commands.{verb}").command
    context = click.Context(command, info_name=f"pocketlm {verb}", terminal_width=84)
    text: str = command.get_help(context)
    return text


# Python -------------------------------------------------------------------------------------------


def api() -> str:
    """A section for each public name: functions, then classes, then errors."""
    public = [name for name in pocketlm.__all__ if not name.startswith("_")]
    values = {name: getattr(pocketlm, name) for name in public}
    errors = [name for name in public if _is_error(values[name])]
    classes = [name for name in public if name not in (*OPENING, *errors)]
    classes.sort(key=lambda name: name != "Model")
    parts = ["## Opening a model", *(_function(name, values[name]) for name in OPENING)]
    for name in classes:
        parts += [f"## {name}", *_class(name, values[name])]
    parts.append("## Errors and warnings")
    for name in errors:
        bases = values[name].__mro__[1].__name__
        parts.append(f"### {name}\n\n*a {bases}*\n\n{docstring(values[name])}")
    return "\n\n".join(parts)


def _is_error(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, BaseException)


def _class(name: str, owner: type[Any]) -> Iterator[str]:
    yield docstring(owner)
    for member, value in vars(owner).items():
        if member.startswith("_"):
            continue
        if inspect.isfunction(value) and value.__doc__:
            yield _function(f"{name}.{member}", value)
        elif isinstance(value, classmethod):
            yield _function(f"{name}.{member}", value.__func__)
        elif doc := _property_doc(value):
            yield f"### {name}.{member}\n\n*property*\n\n{doc}"


def _property_doc(value: Any) -> str:
    is_property = isinstance(value, property) or hasattr(value, "attrname")
    return docstring(value) if is_property else ""


def _function(name: str, function: Any) -> str:
    return f"### {name}\n\n```python\n{signature(name, function)}\n```\n\n{docstring(function)}"


def signature(name: str, function: Any) -> str:
    """As it would be written; with a parameter a line where it is long."""
    found = inspect.signature(function)
    parts, keywords = [], False
    for key, value in found.parameters.items():
        if value.kind is value.KEYWORD_ONLY and not keywords:
            parts.append("*")
        keywords |= value.kind in (value.KEYWORD_ONLY, value.VAR_POSITIONAL)
        if key not in ("self", "cls"):
            parts.append(_parameter(value))
    start = ("async " if _is_async(function) else "") + name.rpartition(".")[2]
    returned = found.return_annotation
    arrow = "" if returned is inspect.Signature.empty else f" -> {returned}"
    if len(line := f"{start}({', '.join(parts)}){arrow}") <= 90:
        return line
    body = "".join(f"    {part},\n" for part in parts)
    return f"{start}(\n{body}){arrow}"


def _parameter(value: inspect.Parameter) -> str:
    stars = "*" * (value.kind is value.VAR_POSITIONAL) + "**" * (value.kind is value.VAR_KEYWORD)
    text = f"{stars}{value.name}"
    if value.annotation is not value.empty:
        text += f": {value.annotation}"
    if value.default is value.empty:
        return text
    plain = isinstance(value.default, int | float | tuple | None)
    equals = " = " if ":" in text else "="
    if isinstance(value.default, str):
        return text + equals + json.dumps(value.default)
    return text + equals + (repr(value.default) if plain else "...")


def _is_async(function: Any) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def docstring(value: Any) -> str:
    """Of a function or class, as Markdown."""
    doc = inspect.getdoc(value)
    return "\n\n".join(map(_paragraph, doc.split("\n\n"))) if doc else ""


def _paragraph(text: str) -> str:
    lines = text.splitlines()
    if all(line.startswith("    ") for line in lines):
        code = textwrap.dedent(text)
        if not ENTRY.fullmatch(code.splitlines()[0]):
            return f"```python\n{code}\n```"
        lines = code.splitlines()
    if ENTRY.fullmatch(lines[0]):
        return _table(lines)
    return _inline(text)


def _table(lines: list[str]) -> str:
    """Names in a column of their own, and what is said of each."""
    rows: list[list[str]] = []
    for line in lines:
        if (entry := ENTRY.fullmatch(line)) and not line.startswith(" "):
            rows.append([entry[1], entry[2]])
        elif re.match(r'"\w+"  +\S', line.strip()):  # a value of it, in a column of its own
            value, _, meaning = line.strip().partition("  ")
            rows[-1][1] += f"\n`{value}` {meaning.strip()}"
        else:
            rows[-1][1] += f" {line.strip()}"
    cells = [(f"`{names}`", _inline(said).replace("\n", "<br>")) for names, said in rows]
    body = "\n".join(f"| {name} | {said.replace('|', chr(92) + '|')} |" for name, said in cells)
    return f"| | |\n|---|---|\n{body}"


def _inline(text: str) -> str:
    """Code between single backticks, and nothing that Markdown or HTML would take for its own."""
    pieces = re.split(r"(``?[^`]+``?)", text)
    for i, piece in enumerate(pieces):
        if i % 2:
            pieces[i] = f"`{piece.strip('`')}`"
        else:
            pieces[i] = re.sub(r"([*_<\[\]])", r"\\\1", piece)
    return "".join(pieces)
