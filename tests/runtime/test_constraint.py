"""Constrained output: what may come next is what some finished text goes on with, and no more.

Levels: the masks against slow twins that follow single bytes, or know all the texts; then whole
generations, whose finished texts have to satisfy what was asked for.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import tokenizers
from command_line import Run
from hypothesis import given, settings
from hypothesis import strategies as st
from llama2_tokenizer import as_llama2
from source_tree import ROOT
from tokenizers import decoders, models, normalizers, trainers

import pocketlm
from pocketlm.export.errors import RequestError
from pocketlm.export.tokenizers import open_tokenizer
from pocketlm.runtime.constraint import (
    Constraint,
    Grammar,
    Vocabulary,
    json_rule,
    make_grammar,
)
from pocketlm.runtime.sampling import SamplingOptions, make_sampler, process_logits
from pocketlm.runtime.tokenizer import Tokenizer

pytest.importorskip("llguidance", reason="the extra 'grammar' is not installed")

END = 299  # of the tiny tokenizer
PADDED = 310  # a model's vocabulary is often larger than its tokenizer's
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["cat", "dog"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 30},
    },
    "required": ["kind", "age"],
    "additionalProperties": False,
}
LARK = 'start: "(" start ")" | WORD\nWORD: /[a-c]{1,3}/'
FORMS: list[dict[str, Any]] = [
    {"json_schema": SCHEMA},
    {"json_schema": {"type": "array", "items": {"type": "string"}}},
    {"regex": r"(?i)yes|no+|é\d{2}[^a-z]?"},
    {"choices": ["yes", "yes please", "no", 'né/\n"\\', "😀"]},
    {"grammar": LARK},
]


@pytest.fixture(scope="module")
def vocabulary(tiny_model: pocketlm.Model) -> Vocabulary:
    return Vocabulary(tiny_model.tokenizer, PADDED)


def sentencepiece(folder: Path) -> Tokenizer:
    trained = tokenizers.Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    trainer = trainers.BpeTrainer(vocab_size=80, show_progress=False)
    trained.train_from_iterator(["yes no please say yes or no, né 12 34 56"], trainer)
    library = as_llama2(trained)
    library.add_tokens(["no way"])
    library.save(str(folder / "tokenizer.json"))
    return Tokenizer.open(folder / "tokenizer.json")


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    """As Llama 2's, with an added token that is no special one."""
    tokenizer = sentencepiece(tmp_path_factory.mktemp("pieces"))
    return Vocabulary(tokenizer, tokenizer.vocab_size)


class Bytes:
    """A tokenizer of single bytes, as far as a ``Vocabulary`` asks."""

    strips_leading_spaces = 0
    added_ids = frozenset[int]()
    unknown_id = None

    def all_bytes(self, num_tokens: int) -> list[bytes]:
        return [bytes([byte]) for byte in range(num_tokens)]


@pytest.fixture(scope="module")
def single_bytes() -> Vocabulary:
    return Vocabulary(cast(Tokenizer, Bytes()), 256)


def texts_of(vocabulary: Vocabulary) -> list[bytes]:
    """What a text may be made of."""
    tokenizer = vocabulary.tokenizer
    texts = [tokenizer.token_bytes(token) for token in range(vocabulary.size)]
    return [b"" if token in tokenizer.added_ids else text for token, text in enumerate(texts)]


def takes(grammar: Grammar, text: bytes) -> bool:
    """Whether some allowed text begins so: one byte after another from a fresh start."""
    constraint = grammar.start(())
    try:
        constraint.follow(list(text))
    except RequestError:
        return False
    return True


def walk(constraint: Constraint, data: st.DataObject, longest: int) -> list[int]:
    """Some tokens that a constraint allows, one after another."""
    generated: list[int] = []
    while len(generated) < longest and not constraint.must_end(generated):
        texts = np.flatnonzero(constraint.allowed(generated))
        token = int(data.draw(st.sampled_from(list(texts))))
        if token in constraint._end_ids:
            break
        generated.append(token)
    return generated


# ---- the masks ----


@pytest.mark.parametrize("form", FORMS, ids=lambda form: next(iter(form)))
@pytest.mark.parametrize("kind", ["vocabulary", "pieces"])
@settings(deadline=None, max_examples=4)
@given(data=st.data())
def test_allowed_are_the_tokens_whose_bytes_go_on(
    form: dict[str, Any], kind: str, data: st.DataObject, request: pytest.FixtureRequest
) -> None:
    """Over all tokens, and those of the padding; the end where the text is complete."""
    tokens: Vocabulary = request.getfixturevalue(kind)
    end = {"vocabulary": END, "pieces": 2}[kind]
    constraint = make_grammar(tokens, **form).start({end})
    twin = make_grammar(request.getfixturevalue("single_bytes"), **form)
    generated = walk(constraint, data, 5)
    texts = texts_of(tokens)
    before = b"".join(texts[token] for token in generated)
    goes_on = [bool(text) and takes(twin, before + text) for text in texts]
    assert not goes_on[end]
    twins = twin.start({0})
    twins.follow(list(before))
    goes_on[end] = bool(twins.allowed(list(before))[0])
    assert constraint.allowed(generated).tolist() == goes_on
    assert constraint.must_end(generated) == (goes_on[end] and sum(goes_on) == 1)


CHOICES = st.lists(st.text('yes nop/é😀\n"\\(', min_size=1, max_size=6), min_size=1, max_size=8)


@settings(deadline=None, max_examples=30)
@given(data=st.data(), choices=CHOICES)
def test_choices_allow_what_some_choice_begins_with(
    vocabulary: Vocabulary, data: st.DataObject, choices: list[str]
) -> None:
    constraint = make_grammar(vocabulary, choices=choices).start({END})
    texts = texts_of(vocabulary)
    generated = walk(constraint, data, 4)
    before = b"".join(texts[token] for token in generated)
    encoded = [choice.encode() for choice in choices]
    expected = [
        bool(text) and any(one.startswith(before + text) for one in encoded) for text in texts
    ]
    expected[END] = before in encoded
    assert constraint.allowed(generated).tolist() == expected


@settings(deadline=None, max_examples=15)
@given(data=st.data(), form=st.sampled_from(FORMS))
def test_going_back_and_a_copy_are_as_a_fresh_start(
    vocabulary: Vocabulary, data: st.DataObject, form: dict[str, Any]
) -> None:
    grammar = make_grammar(vocabulary, **form)
    constraint = grammar.start({END})
    first = walk(constraint, data, 8)
    twin = constraint.copy()
    second = walk(grammar.start({END}), data, 8)
    for generated in (second, first, first[: len(first) // 2], second):
        fresh = grammar.start({END})
        assert constraint.allowed(generated).tolist() == fresh.allowed(generated).tolist()
        assert constraint.must_end(generated) == fresh.must_end(generated)
    assert twin.allowed(first).tolist() == grammar.start({END}).allowed(first).tolist()


def test_a_token_that_is_not_allowed_is_refused_and_changes_nothing(
    vocabulary: Vocabulary,
) -> None:
    constraint = make_grammar(vocabulary, choices=["yes"]).start({END})
    before = constraint.allowed(()).copy()
    with pytest.raises(RequestError, match="token id 0 after 0 tokens, expected one that the"):
        constraint.take(0)
    assert constraint.allowed(()).tolist() == before.tolist()


def test_an_end_token_that_is_an_ordinary_one_ends_complete_texts_only(
    vocabulary: Vocabulary,
) -> None:
    (newline,) = vocabulary.tokenizer.encode("\n")
    (letter,) = vocabulary.tokenizer.encode("a")
    constraint = make_grammar(vocabulary, regex="a\n?b?").start({newline, 10**6})
    assert not constraint.allowed(())[newline]
    assert constraint.allowed([letter])[newline]
    assert not constraint.must_end([letter])


# ---- of real tokenizers ----


@pytest.mark.parametrize("name", ["gpt2", "llama2", "llama3"])
def test_real_tokenizers_allow_what_some_choice_begins_with(
    name: str, test_data: Path, tmp_path: Path
) -> None:
    source = open_tokenizer(test_data / "tokenizers" / name)
    for file, content in source.folder_files(source.read()).items():
        (tmp_path / file).write_bytes(content)
    tokenizer = Tokenizer.open(tmp_path / "tokenizer.json")
    size = tokenizer.vocab_size + 30
    tokens = Vocabulary(tokenizer, size)
    choices = [
        " Yes, please",
        "Yes",
        "다람쥐 헌 쳇바퀴에 타고파",
        "<s>",
        "<|endoftext|>",
        "<0x41>",
        "A",
    ]
    constraint = make_grammar(tokens, choices=choices).start({5})
    texts = [tokenizer.token_bytes(token) for token in range(size)]
    added = tokenizer.added_ids
    spelled = {text: token for token, text in enumerate(texts) if text and token not in added}
    for so_far in ("", " Yes,", "다람", "Yes"):
        before = so_far.encode()
        expected = {
            token
            for token, text in enumerate(texts)
            if text
            and token not in added
            and any(one.encode().startswith(before + text) for one in choices)
        }
        found = set(np.flatnonzero(constraint.allowed(cut(before, spelled))).tolist())
        assert found - {5} == expected - {5}
        assert (5 in found) == (so_far in choices)


def cut(text: bytes, spelled: dict[bytes, int]) -> list[int]:
    """The longest tokens that spell it, one after another."""
    ids = []
    while text:
        length = next(n for n in range(len(text), 0, -1) if text[:n] in spelled)
        ids.append(spelled[text[:length]])
        text = text[length:]
    return ids


# ---- whole generations ----


def generated(model: pocketlm.Model, **options: Any) -> pocketlm.Result:
    chosen = {"max_tokens": 150, "temperature": 1.0, "top_p": 1.0, "seed": 1} | options
    return model.generate("ab", **chosen)


NUMBERS = st.tuples(st.integers(-50, 50), st.integers(0, 100)).map(
    lambda pair: {"type": "integer", "minimum": pair[0], "maximum": pair[0] + pair[1]}
)
SCALARS = st.one_of(
    NUMBERS,
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"const": 'a"b\\é'}]),
    st.lists(
        st.one_of(st.integers(0, 99), st.text("ab é", max_size=4)), min_size=1, max_size=3
    ).map(lambda values: {"enum": values}),
    st.integers(1, 3).map(lambda n: {"type": "string", "maxLength": n}),
)
ARRAYS = st.tuples(SCALARS, st.integers(1, 2)).map(
    lambda pair: {"type": "array", "items": pair[0], "maxItems": pair[1]}
)
SCHEMAS = st.dictionaries(
    st.text("ab é", min_size=1, max_size=4), st.one_of(SCALARS, ARRAYS), min_size=1, max_size=2
).map(
    lambda properties: {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
)


def satisfies(value: Any, schema: dict[str, Any]) -> bool:
    """As far as the schemas here go."""
    if "enum" in schema or "const" in schema:
        return value in schema.get("enum", [schema.get("const")])
    match schema["type"]:
        case "object":
            properties = schema["properties"]
            return list(value) == list(properties) and all(
                satisfies(value[name], part) for name, part in properties.items()
            )
        case "array":
            return len(value) <= schema["maxItems"] and all(
                satisfies(one, schema["items"]) for one in value
            )
        case "integer":
            return type(value) is int and schema["minimum"] <= value <= schema["maximum"]
        case "string":
            return isinstance(value, str) and len(value) <= schema["maxLength"]
        case name:
            return type(value) is {"boolean": bool, "null": type(None)}[name]


@settings(deadline=None, max_examples=20)
@given(schema=SCHEMAS, seed=st.integers(0, 99))
def test_finished_json_parses_and_satisfies_its_schema(
    tiny_model: pocketlm.Model, schema: dict[str, Any], seed: int
) -> None:
    result = generated(tiny_model, json_schema=schema, seed=seed)
    assert result.finish_reason == "eos"  # all of them are bounded
    value = json.loads(result.text)
    assert satisfies(value, schema)
    # Strings may be spelled with escapes that json.dumps has no need of.
    if "\\" not in result.text:
        assert result.text == json.dumps(value, ensure_ascii=False)


@settings(deadline=None, max_examples=15)
@given(
    regex=st.from_regex(r"\A(\(?[ab\.]\)?[\?\+]?|\[a-f\]\{2,3\}|x\|y|\\d){1,4}\Z"),
    seed=st.integers(0, 99),
)
def test_finished_text_is_matched_as_a_whole(
    tiny_model: pocketlm.Model, regex: str, seed: int
) -> None:
    try:
        compiled = re.compile(regex)
    except re.error:
        with pytest.raises(RequestError, match="^regex was refused"):
            generated(tiny_model, regex=regex)
        return
    result = generated(tiny_model, regex=regex, seed=seed, max_tokens=30)
    if result.finish_reason == "eos":
        assert compiled.fullmatch(result.text)


@settings(deadline=None, max_examples=15)
@given(choices=CHOICES, seed=st.integers(0, 99))
def test_finished_text_is_one_of_the_choices(
    tiny_model: pocketlm.Model, choices: list[str], seed: int
) -> None:
    result = generated(tiny_model, choices=choices, seed=seed)
    assert result.finish_reason == "eos"
    assert result.text in choices


def test_finished_text_is_of_the_grammar(tiny_model: pocketlm.Model) -> None:
    finished = 0
    for seed in range(10):
        result = generated(tiny_model, grammar=LARK, seed=seed)
        if result.finish_reason == "eos":
            finished += 1
            word = re.fullmatch(r"(\(*)[a-c]{1,3}(\)*)", result.text)
            assert word and len(word[1]) == len(word[2])
    assert finished


def test_a_text_ends_at_once_where_nothing_may_follow(tiny_model: pocketlm.Model) -> None:
    """Without an end token; also where a model has none, or they are ignored."""
    for options in ({}, {"ignore_eos": True}, {"min_tokens": 100}):
        result = generated(tiny_model, json_schema=SCHEMA, **options)
        assert result.finish_reason == "eos"
        assert satisfies(json.loads(result.text), SCHEMA)
        assert END not in result.token_ids


def test_a_text_that_may_go_on_ends_with_an_end_token(tiny_model: pocketlm.Model) -> None:
    bias = {END: 100.0}
    result = generated(tiny_model, regex="a+", logit_bias=bias)
    assert (result.finish_reason, result.token_ids[-1]) == ("eos", END)
    assert re.fullmatch("a+", result.text)
    result = generated(tiny_model, regex="a+", logit_bias=bias, min_tokens=5, max_tokens=9)
    assert len(result.token_ids) == 6 and re.fullmatch("a+", result.text)
    result = generated(tiny_model, regex="a+", ignore_eos=True, max_tokens=9)
    assert result.finish_reason == "length"


def test_a_text_that_is_cut_says_so(tiny_model: pocketlm.Model) -> None:
    result = generated(tiny_model, json_schema=SCHEMA, max_tokens=2)
    assert (result.finish_reason, len(result.token_ids)) == ("length", 2)
    whole = generated(tiny_model, choices=["yes"], max_tokens=150)
    cut = generated(tiny_model, choices=["yes"], max_tokens=len(whole.token_ids))
    assert cut.finish_reason == "eos"  # complete with the last token


def test_constrained_requests_in_company_get_what_they_get_alone(
    tiny_model: pocketlm.Model,
) -> None:
    chosen: dict[str, Any] = {"max_tokens": 30, "seed": 5}
    requests = [{"prompt": "the sea", **form} for form in [*FORMS, *FORMS[::2], {}]]
    requests[3]["banned_strings"] = ["please"]
    found = {one.index: one for one in tiny_model.generate_many(requests, rows=4, **chosen)}
    for index, request in enumerate(requests):
        alone = tiny_model.generate(**request, **chosen, reproducible=True)
        assert (found[index].token_ids, found[index].finish_reason, found[index].text) == (
            *(alone.token_ids, alone.finish_reason, alone.text),
        )


def test_the_space_that_decoding_drops_is_no_part_of_the_form(pieces: Vocabulary) -> None:
    """A text after <s> alone begins with one, which decoding drops; a later one does not."""
    tokenizer = pieces.tokenizer
    grammar = make_grammar(pieces, choices=["no", " yes"])
    for prompt, text in (([1], "no"), ([1], " yes"), (tokenizer.encode("yes"), " yes")):
        constraint = grammar.start({2}, prompt)
        detokenizer, ids, found = tokenizer.detokenizer(after=prompt), list[int](), ""
        while not constraint.must_end(ids):
            texts = [tokenizer.token_bytes(token) for token in range(pieces.size)]
            wanted = (" " if prompt == [1] else "").encode() + text.encode()
            before = b"".join(texts[token] for token in ids)
            ids.append(
                next(
                    int(token)
                    for token in np.flatnonzero(constraint.allowed(ids))
                    if wanted.startswith(before + texts[token])
                )
            )
            found += detokenizer.add(ids[-1])
        assert found == text


def test_a_sampler_draws_from_what_the_grammar_allows(vocabulary: Vocabulary) -> None:
    logits = np.random.default_rng(3).standard_normal(PADDED).astype(np.float32)
    grammar = make_grammar(vocabulary, regex="[a-h]+")
    (letter,) = vocabulary.tokenizer.encode("c")
    options = SamplingOptions(top_p=0.9, repetition_penalty=1.5, logit_bias={0: 100.0}, seed=1)
    sampler = make_sampler(options, 2, {END}, grammar.start({END}))
    for ids in ([5, 6], [5, 6, letter]):
        allowed = grammar.start({END}).allowed(ids[2:])
        expected = process_logits(logits, ids, options, 2, {END}, allowed)
        tokens, weights = sampler.distribution(logits, ids)
        assert tokens.tolist() == np.flatnonzero(expected > -np.inf).tolist()
        shares = np.exp(expected[tokens].astype(np.float64))
        np.testing.assert_allclose(weights / weights.sum(), shares / shares.sum(), rtol=1e-5)
        assert sampler(logits, ids) in tokens


def test_a_ban_of_all_that_is_allowed_is_told(tiny_model: pocketlm.Model) -> None:
    (letter,) = tiny_model.tokenizer.encode("a")
    with pytest.raises(RequestError, match="no token is left of the 1 that the constraint allows"):
        generated(tiny_model, regex="a", banned_tokens=[letter])


def test_whitespace_in_json_is_what_the_schema_says(tiny_model: pocketlm.Model) -> None:
    compact = {**SCHEMA, "x-guidance": {"item_separator": ",", "key_separator": ":"}}
    result = generated(tiny_model, json_schema=json.dumps(compact))
    assert result.text == json.dumps(json.loads(result.text), separators=(",", ":"))


def test_the_seconds_of_a_constraint_are_counted(tiny_model: pocketlm.Model) -> None:
    stream = tiny_model.stream("ab", json_schema=SCHEMA)
    list(stream)
    timings = stream.timings
    assert 0 < timings.constraint_seconds <= timings.prefill_seconds + timings.decode_seconds
    assert tiny_model.generate("ab", max_tokens=2).timings.constraint_seconds == 0


# ---- bad input ----


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"regex": "a", "choices": ["a"]}, "found regex and choices, expected one of them"),
        ({"json_schema": 3}, "json_schema has 3 of type int, expected a mapping, or its text"),
        ({"json_schema": False}, "json_schema has False of type bool, expected a mapping"),
        ({"json_schema": "{"}, "json_schema is not valid JSON (Expecting property name"),
        ({"json_schema": "[1]"}, "json_schema holds a JSON array, expected a JSON object; correct"),
        (
            {"json_schema": {"a": {1, 2}}},
            "json_schema holds what JSON does not (Object of type set",
        ),
        ({"json_schema": {"type": "strang"}}, "json_schema was refused"),
        ({"json_schema": {"enum": []}}, "json_schema: no text satisfies it"),
        (
            {"json_schema": {"type": "integer", "minimum": 5, "maximum": 3}},
            "minimum (5) is greater than maximum (3)",
        ),
        ({"json_schema": {"not": {}}}, 'Unimplemented keys: ["not"]'),
        ({"json_schema": {"x-guidance": 3}}, "json_schema was refused"),
        (
            {"json_schema": {"items": {"properties": {f"p{i}": {} for i in range(401)}}}},
            "json_schema has an object of 401 properties that need not be there, expected at most",
        ),
        (
            {"json_schema": {"allOf": [{"properties": {str(i): {} for i in range(400)}}] * 13}},
            "json_schema has 5,200 properties, expected at most 5,000",
        ),
        (
            {"grammar": "start: a\n" + "\n".join(f'a: "{i}" "{i}x"' for i in range(40_000))},
            "grammar",
        ),
        ({"json_schema": "\ud800"}, "json_schema has the lone surrogate U+D800 at character 0"),
        ({"regex": 5}, "regex has 5 of type int, expected a string"),
        ({"regex": "("}, "regex was refused (invalid regex"),
        ({"regex": "("}, "error: unclosed group)"),
        (
            {"regex": "a(?=b)"},
            "look-around, including look-ahead and look-behind, is not supported",
        ),
        ({"regex": "[^\\s\\S]"}, "regex: no text satisfies it (nothing may follow"),
        ({"regex": ""}, "regex: the empty text alone satisfies it"),
        ({"regex": "a\udc00"}, "regex has the lone surrogate U+DC00 at character 1"),
        ({"choices": []}, "choices is empty, expected one string at least"),
        ({"choices": "yes"}, "choices has 'yes' of type str, expected a list of strings"),
        ({"choices": {"a"}}, "choices has {'a'} of type set, expected a list of strings"),
        ({"choices": ["a", 3]}, "choices has 3 of type int, expected strings only"),
        ({"choices": ["a", ""]}, "choices has an empty string, expected strings of one"),
        ({"grammar": b"start: /a/"}, "grammar has b'start: /a/' of type bytes, expected a string"),
        ({"grammar": ""}, "grammar was refused"),
        ({"grammar": 'start: "a" b'}, 'grammar was refused (at 1(8): unknown name: "b")'),
        ({"grammar": 'start: start "a"'}, "grammar: no text satisfies it"),
    ],
)
def test_a_form_that_is_wrong_is_told_before_anything_runs(
    tiny_model: pocketlm.Model, form: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=re.escape(message)) as told:
        tiny_model.stream("ab", **form)
    assert len(str(told.value).splitlines()) == 1


def test_a_form_that_these_tokens_cannot_spell_is_refused(tmp_path: Path) -> None:
    """A model of single characters without braces."""
    library = tokenizers.Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    library.decoder = decoders.Fuse()
    library.save(str(tmp_path / "tokenizer.json"))
    tokens = Vocabulary(Tokenizer.open(tmp_path / "tokenizer.json"), 2)
    with pytest.raises(RequestError, match="no text of this model's tokens|no text satisfies it"):
        make_grammar(tokens, json_schema=SCHEMA)
    constraint = make_grammar(tokens, regex="ac|bb").start(())
    with pytest.raises(RequestError, match="no text satisfies it"):
        constraint.allowed([0])


# ---- the page about it ----


def test_examples_of_the_page_do_what_it_says(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "constraints.md").read_text("utf-8")
    blocks = dict(re.findall(r"```(\w+)\n(.*?)```", page, re.DOTALL))
    (tmp_path / "cat.json").write_text(blocks["json"])
    (tmp_path / "sum.lark").write_text(blocks["lark"])
    monkeypatch.chdir(tmp_path)
    lines = [shlex.split(line)[1:] for line in blocks["sh"].splitlines()]
    outs = [run(*line, "--seed", "1", "--precision", "fp32").out.rstrip("\n") for line in lines]
    assert list(json.loads(outs[0])) == ["name", "kind", "age"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", outs[1])
    assert outs[2] in (" yes", " no")
    assert re.fullmatch(r"\d+( \+ \d+)* = \d+", outs[3])
    exec(blocks["python"], {})


@pytest.mark.parametrize("as_text", [False, True])
def test_a_schema_of_too_many_values_is_refused(as_text: bool) -> None:
    schema: Any = {"$defs": {f"p{place}": {"type": "null"} for place in range(40_000)}}
    assert json_rule({"$defs": dict(list(schema["$defs"].items())[:20_000])})
    with pytest.raises(RequestError, match=r"json_schema has .*values, expected"):
        json_rule(json.dumps(schema) if as_text else schema)
