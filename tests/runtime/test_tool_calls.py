"""Calls of functions: what a grammar lets through is what is read, and nothing else is a call.

Levels: the forms against grammars and texts, byte by byte and token by token; then conversations as
templates get them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from pocketlm.export.errors import RequestError
from pocketlm.runtime.constraint import Grammar, Vocabulary, make_grammar
from pocketlm.runtime.sequence import Step
from pocketlm.runtime.text import Piece
from pocketlm.runtime.tokenizer import Tokenizer
from pocketlm.runtime.tool_calls import Arguments, Begun, CallReader, Words
from pocketlm.runtime.tool_forms import (
    GRANITE,
    HERMES,
    LLAMA,
    MISTRAL,
    MISTRAL_ARGS,
    OURS,
    Form,
    call_grammar,
    form_of,
)
from pocketlm.runtime.tool_messages import with_calls
from pocketlm.runtime.tools import Tools, read_tools

pytest.importorskip("llguidance", reason="the extra 'grammar' is not installed")

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": CITY}},
    {"type": "function", "function": {"name": "now"}},
]
FORMS = {
    "hermes": HERMES,
    "mistral": MISTRAL,
    "mistral spaced": MISTRAL,
    "mistral args": MISTRAL_ARGS,
    "granite": GRANITE,
    "llama": LLAMA,
    "ours": OURS,
}
# As a model of each form writes it: one call; two; one of a function that is not there.
ONE = {
    "hermes": '<tool_call>\n{"name": "weather", "arguments": {"city": "P}\\"{a"}}\n</tool_call>',
    "mistral": '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "P}\\"{a"}}]',
    "mistral spaced": '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "P}\\"{a"}}]',
    "mistral args": '[TOOL_CALLS]weather[ARGS]{"city": "P}\\"{a"}',
    "granite": '<|tool_call|>[{"name": "weather", "arguments": {"city": "P}\\"{a"}}]',
    "llama": '{"name": "weather", "parameters": {"city": "P}\\"{a"}}',
    "ours": '{"name": "weather", "arguments": {"city": "P}\\"{a"}}',
}
TWO = {
    "hermes": '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>\n'
    '<tool_call>\n{"name": "weather", "arguments": {"city": "é"}}\n</tool_call>',
    "mistral": '[TOOL_CALLS][{"name": "now", "arguments": {}}, '
    '{"name": "weather", "arguments": {"city": "é"}}]',
    "mistral args": '[TOOL_CALLS]now[ARGS]{}[TOOL_CALLS]weather[ARGS]{"city": "é"}',
}
MARKED = [name for name in FORMS if FORMS[name].marker]


def tokenizer_of(*added: AddedToken) -> Tokenizer:
    """Bytes, and tokens of their own."""
    vocab = {text: index for index, text in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    library = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["<end>"])
    library.add_tokens(list(added))
    return Tokenizer(library, Path("tokenizer.json"))


NAMES = ["<|tool_call|>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<think>"]
PLAIN = tokenizer_of()
ADDED = tokenizer_of(*(AddedToken(name, special=False, normalized=False) for name in NAMES))
SPECIAL = tokenizer_of(*(AddedToken(name, special=True, normalized=False) for name in NAMES))
TOKENIZERS = {"plain": PLAIN, "added": ADDED, "special": SPECIAL}
END = frozenset({256})


def grammar(form: Form, tokenizer: Tokenizer, choice: Any = None, **more: Any) -> Grammar:
    tools = read_tools(TOOLS, choice, more.pop("parallel", None))
    assert isinstance(tools, Tools)
    num_tokens = more.pop("num_tokens", tokenizer.vocab_size)
    source = call_grammar(form, tools, tokenizer, num_tokens, **more)
    return make_grammar(Vocabulary(tokenizer, num_tokens), grammar=source)


def accepts(found: Grammar, ids: Sequence[int]) -> bool:
    """Whether a text may be these tokens, and end there."""
    constraint = found.start(END)
    try:
        return bool(constraint.allowed(ids)[256])
    except RequestError:
        return False


def read(form: Form, tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[str, list[Any]]:
    """The words and calls that a reader finds, given token by token."""
    reader = CallReader(form, tokenizer, [65], END)
    shown = tokenizer.detokenizer(after=[65])
    changes = []
    for token in [*ids, 256]:
        text = shown.add(token) if token not in END else shown.finish()
        changes += list(reader.add(Piece(text, (Step(token, None, 0.0),))))
    changes += list(reader.finish())
    words = "".join(change.text for change in changes if isinstance(change, Words))
    calls: list[Any] = []
    for change in changes:
        if isinstance(change, Begun):
            assert change.index == len(calls)
            calls.append([change.name, ""])
        elif isinstance(change, Arguments):
            calls[change.index][1] += change.text
    return words, [(name, json.loads(arguments)) for name, arguments in calls]


def encoded(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("name", FORMS)
def test_a_call_may_be_written_and_is_read(name: str, kind: str) -> None:
    form, tokenizer = FORMS[name], TOKENIZERS[kind]
    ids = encoded(tokenizer, ONE[name])
    assert accepts(grammar(form, tokenizer), ids)
    assert accepts(grammar(form, tokenizer, "required"), ids)
    assert read(form, tokenizer, ids) == ("", [("weather", {"city": 'P}"{a'})])


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("name", TWO)
def test_two_calls_where_they_are_allowed(name: str, kind: str) -> None:
    form, tokenizer = FORMS[name], TOKENIZERS[kind]
    ids = encoded(tokenizer, TWO[name])
    assert accepts(grammar(form, tokenizer), ids)
    assert not accepts(grammar(form, tokenizer, parallel=False), ids)
    assert read(form, tokenizer, ids) == ("", [("now", {}), ("weather", {"city": "é"})])


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("name", MARKED)
def test_words_may_come_before_a_call(name: str, kind: str) -> None:
    form, tokenizer = FORMS[name], TOKENIZERS[kind]
    ids = encoded(tokenizer, "Let me see: <tool_ {é\n" + ONE[name])
    assert accepts(grammar(form, tokenizer), ids)
    assert not accepts(grammar(form, tokenizer, "required"), ids)
    words, calls = read(form, tokenizer, ids)
    assert words == "Let me see: <tool_ {é\n" and len(calls) == 1


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("name", FORMS)
def test_what_begins_as_a_call_is_held_to_it(name: str, kind: str) -> None:
    form, tokenizer = FORMS[name], TOKENIZERS[kind]
    found = grammar(form, tokenizer)
    for wrong in (
        ONE[name].replace("weather", "whether"),
        ONE[name].replace("city", "town"),
        ONE[name] + " and so on",
        ONE[name][:-3],
        (form.marker or "{") + "hello",
    ):
        assert not accepts(found, encoded(tokenizer, wrong)), wrong


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("text", ["", "  \n", "No, 5 < 7 [T and {so} on\n", "é😀"])
def test_words_stay_words(name: str, kind: str, text: str) -> None:
    form, tokenizer = FORMS[name], TOKENIZERS[kind]
    ids = encoded(tokenizer, text)
    assert accepts(grammar(form, tokenizer), ids)
    assert not accepts(grammar(form, tokenizer, "required"), ids)
    assert read(form, tokenizer, ids) == (text, [])


def test_the_function_that_is_named_is_the_only_one() -> None:
    choice = {"type": "function", "function": {"name": "now"}}
    found = grammar(OURS, PLAIN, choice)
    assert accepts(found, encoded(PLAIN, '{"name": "now", "arguments": {}}'))
    assert not accepts(found, encoded(PLAIN, ONE["ours"]))


def test_a_model_may_think_before_it_calls() -> None:
    """Between tokens that are no text, and that a form must not forbid."""
    ids = encoded(ADDED, "<think>so</think>\n" + ONE["hermes"])
    assert ADDED.id_of("<think>") in ids
    assert accepts(grammar(HERMES, ADDED), ids)
    assert read(HERMES, ADDED, ids)[0] == "<think>so</think>\n"


def test_tokens_that_a_model_does_not_score_are_spelled() -> None:
    """A tokenizer may have more than its model: what is left are the letters."""
    found = grammar(HERMES, ADDED, num_tokens=257)
    assert ADDED.id_of("<tool_call>") in range(257, ADDED.vocab_size)
    assert accepts(found, encoded(PLAIN, ONE["hermes"]))


def test_words_may_be_json_beside_calls() -> None:
    found = grammar(HERMES, ADDED, answer={"enum": [1, 2]})
    assert accepts(found, encoded(ADDED, "2")) and accepts(found, encoded(ADDED, ONE["hermes"]))
    assert not accepts(found, encoded(ADDED, "two"))
    with pytest.raises(RequestError, match="response_format has a JSON schema beside tools"):
        grammar(OURS, PLAIN, answer={"enum": [1, 2]})


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_pieces_of_any_length_read_alike(data: st.DataObject) -> None:
    """However many tokens a piece has, and wherever a stop string holds text back."""
    name = data.draw(st.sampled_from(sorted(TWO)))
    tokenizer = TOKENIZERS[data.draw(st.sampled_from(sorted(TOKENIZERS)))]
    text = data.draw(st.sampled_from(["", "é is <to", "well "])) + TWO[name]
    ids = encoded(tokenizer, text)
    reader = CallReader(FORMS[name], tokenizer, [65], END)
    shown = tokenizer.detokenizer(after=[65])
    changes, start = [], 0
    while start < len(ids):
        end = start + data.draw(st.integers(1, 9))
        steps = tuple(Step(token, None, 0.0) for token in ids[start:end])
        piece = Piece("".join(shown.add(step.token) for step in steps), steps)
        changes += list(reader.add(piece))
        start = end
    changes += list(reader.finish())
    words = "".join(change.text for change in changes if isinstance(change, Words))
    assert words + TWO[name] == text
    arguments = [change.text for change in changes if isinstance(change, Arguments)]
    assert "".join(arguments) == '{}{"city": "é"}'


def test_a_call_that_is_cut_is_told_as_far_as_it_goes() -> None:
    ids = encoded(PLAIN, ONE["ours"])[:-6]
    reader = CallReader(OURS, PLAIN, [65], END)
    steps = tuple(Step(token, None, 0.0) for token in ids)
    changes = [*reader.add(Piece(PLAIN.decode(ids), steps)), *reader.finish()]
    assert [type(change) for change in changes] == [Begun, Arguments]
    assert reader.num_calls == 1


@pytest.mark.parametrize(
    "template, expected",
    [
        (None, OURS),
        ("{{ messages }}", OURS),
        ("{% if tools %}<tool_call>{% endif %}", HERMES),
        ("{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]", MISTRAL),
        ("{% if tools %}respond with <|tool_call|> and a list{% endif %}", GRANITE),
        ("{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]f[ARGS]", MISTRAL_ARGS),
        ("""{{ tools }}{{ '{"name": function name, "parameters": dictionary}' }}""", LLAMA),
        ("""{{ tools }}{{ '"parameters": ' }}""", LLAMA),
    ],
)
def test_the_form_is_that_of_the_template(template: str | None, expected: Form) -> None:
    assert form_of(template) == expected


# Conversations -----------------------------------------------------------------------------------

CALLED: list[dict[str, Any]] = [
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_0123456789",
                "type": "function",
                "function": {"name": "weather", "arguments": '{"city": "Paris"}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_0123456789", "content": "22 degrees"},
]


def test_templates_get_arguments_as_objects_and_names() -> None:
    _, called, returned = with_calls(CALLED, HERMES)
    (call,) = called["tool_calls"]
    assert called["content"] == ""
    assert call["function"] == {"name": "weather", "arguments": {"city": "Paris"}}
    assert returned["name"] == "weather"
    # Mistral's templates take ids of nine letters and digits alone.
    assert call["id"] == returned["tool_call_id"] and len(call["id"]) == 9


def test_templates_without_functions_get_words() -> None:
    several = [*CALLED, {**CALLED[-1], "content": "sunny"}]
    _, called, returned = with_calls(several, OURS)
    assert called == {
        "role": "assistant",
        "content": '{"name": "weather", "arguments": {"city": "Paris"}}',
    }
    assert returned["role"] == "user"
    assert returned["content"].splitlines() == [
        "The function weather returned: 22 degrees",
        "The function weather returned: sunny",
    ]
    assert returned.keys() == {"role", "content"}


FUNCTION = TOOLS[0]["function"]


@pytest.mark.parametrize(
    "tools, choice, message",
    [
        ([{"type": "web_search"}], None, r'^tools\[0\]\.type is "web_search"'),
        ([*TOOLS, {"type": "function"}], None, r"^tools\[2\]\.function is null"),
        ([{"type": "function", "function": {"name": "a b"}}], None, r"^tools\[0\]\.function\.name"),
        ([{"type": "function", "function": {"name": "a", "x": 1}}], None, "has the field 'x'"),
        ([TOOLS[0], TOOLS[0]], None, r"^tools\[1\]\.function\.name is weather, as of tools\[0\]"),
        (
            [{"type": "function", "function": {"name": "a", "parameters": {"type": "string"}}}],
            None,
            r"^tools\[0\]\.function\.parameters has the type",
        ),
        (TOOLS * 100, None, "^tools has 200 functions"),
        ([], "required", "^tool_choice is"),
        (TOOLS, "any", "^tool_choice is"),
        (TOOLS, {"type": "function", "function": {"name": "x"}}, "expected one of the tools: wea"),
    ],
)
def test_what_is_no_function_is_named(tools: Any, choice: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        read_tools(tools, choice)


def test_no_tools_are_none() -> None:
    assert read_tools(None) is read_tools([], "none") is read_tools(TOOLS, "none") is None
