r"""How a model writes a call of a function, and the grammar that holds it to that.

Which form a model was trained to write is seen from its chat template, which shows it:

    Hermes, Qwen, SmolLM3   <tool_call>\n{"name": "f", "arguments": {...}}\n</tool_call>
    Mistral                 [TOOL_CALLS][{"name": "f", "arguments": {...}}]
    Mistral, from 2025      [TOOL_CALLS]f[ARGS]{...}
    Granite 3               <|tool_call|>[{"name": "f", "arguments": {...}}]
    Llama 3                 {"name": "f", "parameters": {...}}
    others                  {"name": "f", "arguments": {...}}

A template of the last kind says nothing of functions: they are described in words of ours.

Source: the chat templates that are published with these models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ..export.errors import RequestError
from .constraint import json_rule
from .tokenizer import Tokenizer
from .tools import Function, Tools

MOST_CALLS = 32  # at once: a small model may never come to an end


@dataclass(frozen=True)
class Form:
    """A call is ``head`` name ``middle`` arguments ``tail``.

    begin, end   stand before the first and after the last
    between      stands between two; None where there is never more than one
    marker       what ``begin`` begins with, and no other text has; "" where a text is either words
                 or a call
    is_spaced    whether a space may stand behind the marker
    is_told      whether the chat template describes functions, calls and what they returned
    """

    begin: str
    head: str
    middle: str
    tail: str
    between: str | None = None
    end: str = ""
    marker: str = ""
    is_spaced: bool = False
    is_told: bool = True

    def markers(self) -> list[str]:
        """What may be a token of its own."""
        return re.findall(
            r"</?tool_call>|<\|tool_call\|>|\[[A-Z_]+\]", f"{self.begin} {self.middle} {self.tail}"
        )


HERMES = Form(
    begin="<tool_call>\n",
    head='{"name": "',
    middle='", "arguments": ',
    tail="}\n</tool_call>",
    between="\n<tool_call>\n",
    marker="<tool_call>",
)
MISTRAL = Form(
    begin="[TOOL_CALLS][",
    head='{"name": "',
    middle='", "arguments": ',
    tail="}",
    between=", ",
    end="]",
    marker="[TOOL_CALLS]",
    is_spaced=True,
)
GRANITE = replace(MISTRAL, begin="<|tool_call|>[", marker="<|tool_call|>")
MISTRAL_ARGS = Form(
    begin="[TOOL_CALLS]",
    head="",
    middle="[ARGS]",
    tail="",
    between="[TOOL_CALLS]",
    marker="[TOOL_CALLS]",
)
LLAMA = Form(begin="", head='{"name": "', middle='", "parameters": ', tail="}")
PLAIN = Form(begin="", head='{"name": "', middle='", "arguments": ', tail="}")
OURS = replace(PLAIN, is_told=False)


def form_of(template: str | None) -> Form:
    """That of a model with this chat template."""
    if template is None or not re.search(r"\btools\b", template):
        return OURS
    if "<tool_call>" in template:
        return HERMES
    if "[TOOL_CALLS]" in template:
        return MISTRAL_ARGS if "[ARGS]" in template else MISTRAL
    if "<|tool_call|>" in template:
        return GRANITE
    if re.search(r"""\\?"parameters\\?"\s*:""", template) or "<|python_tag|>" in template:
        return LLAMA
    return PLAIN


def call_grammar(
    form: Form,
    tools: Tools,
    tokenizer: Tokenizer,
    num_tokens: int,
    answer: Mapping[str, Any] | None = None,
) -> str:
    """A Lark grammar of what may be written: words or calls; calls alone where they are required.

    Words may be any, or JSON by the schema ``answer``. ``num_tokens`` are those that the model
    scores: the tokenizer may have more. Raises RequestError for a schema where a
    call cannot be told from it.
    """
    spelled = _Spelled(form, tokenizer, num_tokens)
    calls = _calls(form, tools, spelled)
    space = '" "? ' if form.is_spaced else ""
    rest = f"{space}{spelled.of(form.begin.removeprefix(form.marker))} calls"
    begun = f"{spelled.of(form.marker)} {rest}"
    if tools.required:
        start = begun
    elif answer is not None:
        if not form.marker:
            raise RequestError(
                "response_format has a JSON schema beside tools, expected one of them: this model "
                "writes calls as JSON, too; leave one out, or set tool_choice"
            )
        start = f"answer | {begun}"
    elif not form.marker:
        start = "WORDS? | SPACE? calls"
    elif spelled.is_token(form.marker):
        start = f"words | words {begun}"
    else:
        start = f"WORDS? | UP_TO {rest}"
    rules = [f"start: {start}", *calls]
    if answer is not None:
        rules.append(f"answer: {json_rule(answer)}")
    elif not tools.required:
        rules += _words(form, spelled)
    return "\n".join(rules)


def _calls(form: Form, tools: Tools, spelled: _Spelled) -> list[str]:
    several = tools.parallel and form.between is not None
    between = f" ({spelled.of(form.between or '')} call){{0,{MOST_CALLS - 1}}}" if several else ""
    rules = [f"calls: call{between} {spelled.of(form.end)}"]
    names = []
    for index, function in enumerate(tools.callable):
        names.append(f"call_{index}")
        head, tail = spelled.of(f"{form.head}{function.name}{form.middle}"), spelled.of(form.tail)
        with _naming(function):
            rules.append(f"call_{index}: {head} {json_rule(function.schema)} {tail}")
    return [*rules, f"call: {' | '.join(names)}"]


def _words(form: Form, spelled: _Spelled) -> list[str]:
    """What is no call: in "words" also with the tokens between which a model thinks."""
    if not form.marker:
        return [r"SPACE: /[ \t\r\n]+/", r"WORDS: /[ \t\r\n]*([^{ \t\r\n](.|\n)*)?/"]
    marker = _escaped(form.marker)
    rules = [rf"ANY: /(.|\n)*/ & ~/(.|\n)*{marker}(.|\n)*/", f"UP_TO: ANY /{marker}/"]
    others = ",".join(map(str, sorted(spelled.others)))
    between = f" (<[{others}]> WORDS?)*" if others else ""
    return [*rules, r"WORDS: /(.|\n)+/ & ANY", f"words: WORDS?{between}"]


def _escaped(text: str) -> str:
    return "".join(f"\\x{{{ord(character):x}}}" for character in text)


class _Spelled:
    """Writes strings of a form into a grammar: markers that are tokens as those.

    others   the other tokens that were added to a vocabulary, and are not special
    """

    def __init__(self, form: Form, tokenizer: Tokenizer, num_tokens: int) -> None:
        found = {marker: tokenizer.id_of(marker) for marker in form.markers()}
        added = {token for token in tokenizer.added_ids if token < num_tokens}
        self._ids = {name: token for name, token in found.items() if token in added}
        self.others = added - tokenizer.special_ids - set(found.values())

    def is_token(self, marker: str) -> bool:
        return marker in self._ids

    def of(self, text: str) -> str:
        pattern = "|".join(map(re.escape, self._ids))
        parts = re.split(f"({pattern})", text) if pattern else [text]
        return " ".join(
            f"<[{self._ids[part]}]>" if part in self._ids else json.dumps(part)
            for part in parts
            if part
        )


def check_schemas(
    functions: Sequence[Function], compiles: Callable[[Mapping[str, Any]], object]
) -> None:
    """Raises RequestError naming the first whose schema ``compiles`` raises it for."""
    for function in functions:
        with _naming(function):
            compiles(function.schema)


@contextmanager
def _naming(function: Function) -> Iterator[None]:
    """Has errors name the function that they are about."""
    try:
        yield
    except RequestError as error:
        told = str(error).removeprefix("json_schema").lstrip(": ")
        raise RequestError(f"{function.where}.function.parameters: its schema {told}") from error
