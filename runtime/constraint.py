r"""Constrained output: which tokens may come next, so that the text that ends has a certain form.

    json_schema   a JSON schema (2020-12, what llguidance knows of it)
    regex         a regular expression that matches all of the text (Rust's syntax: no look-around;
                  \d is 0 to 9)
    choices       one of these strings
    grammar       a grammar in llguidance's dialect of Lark, its first rule called start

The package llguidance (extra "grammar") follows the bytes of the tokens; what it needs to know of a
tokenizer is a ``Vocabulary``, made once for a model. A ``Grammar`` is a form for that model, and a
``Constraint`` where one text stands in it. Any tokens that spell an allowed text will do: nothing
is forced to be the tokens that the tokenizer would take. Special and other added tokens are no
text. The tokens that end a text may come where it is complete, and nowhere else.

JSON is written as Python's ``json.dumps`` does by default, with ", " and ": " and no other
whitespace: where any is allowed, a small model writes newlines and spaces for ever. A schema asks
for something else by llguidance's own key, {"x-guidance": {"whitespace_flexible": true}}.

Letter: V tokens that the model scores.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..export.errors import RequestError
from ..export.importing import importing
from ..export.strict_json import parse_json_object, quoted
from ..export.whole_number import brief
from .shared_beginning import shared_beginning
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher

Allowed: TypeAlias = NDArray[np.bool_]
"""(V,): which tokens may come next."""

# Each is several items of a row, of which llguidance follows 2,000.
MOST_OPTIONAL = 400
MOST_PROPERTIES = 5_000  # of all objects in a schema: as OpenAI's
MOST_VALUES = 100_000  # keys and values: JSON is read and written in one go, which others wait for
JSON_FORM = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
# Otherwise it asks the tokenizer how forced text is cut, which sentencepiece cannot say of a part.
_HEAD = '%llguidance {"no_forcing": true}\n'
_KINDS = {
    "json_schema": "a JSON schema",
    "regex": "a regular expression",
    "choices": "strings to choose from",
    "grammar": "a Lark grammar",
}


class Vocabulary:
    """The V tokens of a model as llguidance wants them, and one more that stands for the end."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        vocab_size: int,
        trial: Callable[[str, str], None] | None = None,
    ) -> None:
        """Takes about 3 us a token. Raises MissingExtraError without llguidance.

        ``trial`` is given the kind and source of each form before it is compiled, and raises
        RequestError for one that had better not be.
        """
        with importing("constrained output", "grammar"):
            import llguidance
        self.size = vocab_size
        self.tokenizer = tokenizer
        no_text = {*tokenizer.added_ids, tokenizer.unknown_id}
        texts = [
            # The byte FF, of no UTF-8, marks special tokens there.
            b"" if token in no_text or text[:1] == b"\xff" else text
            for token, text in enumerate(tokenizer.all_bytes(vocab_size))
        ]
        library = llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Tokens([*texts, b""])))
        limits = llguidance.LLParserLimits(verbose_errors=False)

        @lru_cache(maxsize=16)  # large schemas take tenths of a second
        def compiled(source: str, kind: str) -> LLMatcher:
            if trial is not None:
                trial(kind, source)
            return llguidance.LLMatcher(library, source, log_level=0, limits=limits)

        self._compiled = compiled

    def matcher(self, source: str, kind: str) -> LLMatcher:
        """At the start of the grammar in ``source``; in its state of error for a wrong one.

        Raises RequestError, by the ``kind`` of form, for one that does not pass the trial.
        """
        found = self._compiled(source, kind)
        return found if found.is_error() else found.deep_copy()


class _Tokens:
    """What llguidance asks of a tokenizer."""

    bos_token_id = None

    def __init__(self, tokens: list[bytes]) -> None:
        self.tokens = tokens
        self.eos_token_id = len(tokens) - 1
        self.special_token_ids = [self.eos_token_id]

    def __call__(self, text: bytes) -> list[int]:
        raise NotImplementedError("asked for only where text is forced")


def make_grammar(
    vocabulary: Vocabulary,
    *,
    json_schema: Mapping[str, Any] | str | None = None,
    regex: str | None = None,
    choices: Sequence[str] | None = None,
    grammar: str | None = None,
) -> Grammar:
    """The form that is given; one of the four has to be.

    Raises RequestError, with llguidance's reason, for one that is wrong, or that no text of this
    vocabulary satisfies.
    """
    given = {"json_schema": json_schema, "regex": regex, "choices": choices, "grammar": grammar}
    ((kind, form),) = ((kind, form) for kind, form in given.items() if form is not None)
    write = {"json_schema": _of_schema, "regex": _of_regex, "choices": _of_choices}
    found = Grammar(vocabulary, kind, write.get(kind, _of_lark)(form))
    found.start(())
    return found


def one_form(**given: object) -> bool:
    """Whether one of the forms is given. Raises RequestError for two."""
    names = [name for name, form in given.items() if form is not None]
    if len(names) > 1:
        raise RequestError(
            f"found {' and '.join(names)}, expected one of them: a text has one form; leave out "
            "the others"
        )
    return bool(names)


@dataclass(frozen=True)
class Grammar:
    """A form of texts for one model; ``make_grammar`` makes one.

    vocabulary   the model's
    kind         "json_schema", "regex", "choices" or "grammar"
    source       in llguidance's dialect of Lark
    """

    vocabulary: Vocabulary
    kind: str
    source: str

    def start(self, end_ids: Collection[int], prompt_ids: Sequence[int] = ()) -> Constraint:
        """At the start of one text after a prompt, that ends with one of ``end_ids``.

        Where decoding drops the space that a text begins with (sentencepiece), that space comes
        before the form. Raises RequestError for a form that no text, or the empty one only, has.
        """
        source = self.source
        if spaces := self._spaces_before(prompt_ids):
            before = {"lark_grammar": f'{_HEAD}start: "{" " * spaces}" @form'}
            source = json.dumps({"grammars": [before, {"name": "form", "lark_grammar": source}]})
        matcher = self.vocabulary.matcher(source, self.kind)
        if matcher.is_error():
            raise self.refused(matcher.get_error())
        constraint = Constraint(self, matcher, end_ids)
        if constraint.must_end(()):
            raise RequestError(
                f"{self.kind}: the empty text alone satisfies it, expected {_KINDS[self.kind]} "
                "that a text to generate satisfies; allow more"
            )
        return constraint

    def _spaces_before(self, prompt_ids: Sequence[int]) -> int:
        tokenizer = self.vocabulary.tokenizer
        if not prompt_ids or not tokenizer.strips_leading_spaces:
            return 0
        return tokenizer.detokenizer(after=prompt_ids).strips_leading_spaces

    def refused(self, reason: str) -> RequestError:
        """The error for llguidance's ``reason``."""
        told = _one_line(reason, self.kind)
        if "grammar.symbols.len()" in reason:  # it counts them in 16 bits
            told = "it is too large"
        if "NoExtension" in reason:
            told = "nothing may follow what it begins with"
        if "NoExtension" in reason or "Unsatisfiable" in reason:
            return RequestError(
                f"{self.kind}: no text satisfies it ({told}), expected {_KINDS[self.kind]} that "
                "some text of this model's tokens satisfies; allow more"
            )
        return RequestError(
            f"{self.kind} was refused ({told}), expected {_KINDS[self.kind]} that llguidance "
            "knows; correct it"
        )


class Constraint:
    """Where one text stands in its form: which tokens may come next, and whether any may.

    Of one generation alone; ``copy`` makes another that goes its own way. Tokens that end a text
    are never taken. ``seconds`` is what it took so far.
    """

    def __init__(self, grammar: Grammar, matcher: LLMatcher, end_ids: Collection[int]) -> None:
        self.grammar = grammar
        self.seconds = 0.0
        self._matcher = matcher
        self._end_ids = [token for token in end_ids if token < grammar.vocabulary.size]
        self._taken: list[int] = []
        self._allowed: Allowed | None = None
        self._must_end = False

    def allowed(self, generated: Sequence[int]) -> Allowed:
        """Which tokens (V,) may follow what was generated; not to be written to.

        What was generated may go on from the last call, or from anywhere before. Raises
        RequestError where nothing may follow and the text is not complete.
        """
        started = time.perf_counter()
        self.follow(generated)
        if self._allowed is None:
            self._allowed = self._mask()
        self.seconds += time.perf_counter() - started
        return self._allowed

    def must_end(self, generated: Sequence[int]) -> bool:
        """Whether the text is complete and no other token may follow. Raises as ``allowed``."""
        self.allowed(generated)
        return self._must_end

    def follow(self, generated: Sequence[int]) -> None:
        """Takes what is new and takes back what is not there, so that ``generated`` is taken."""
        common = len(self._taken)
        if list(generated[:common]) != self._taken:
            common = shared_beginning(self._taken, generated)
            self.rollback(len(self._taken) - common)
        for token in generated[common:]:
            self.take(token)

    def take(self, token: int) -> None:
        """Goes on by one token. Raises RequestError, and stays, for one that is not allowed."""
        if self._matcher.try_consume_tokens([token]) != 1:
            self._check()
            raise RequestError(
                f"token id {token} after {len(self._taken)} tokens, expected one that the "
                "constraint allows there; take those of allowed"
            )
        self._taken.append(token)
        self._allowed = None

    def rollback(self, num_tokens: int) -> None:
        """Takes back the last so many tokens."""
        if not num_tokens:
            return
        self._matcher.rollback(num_tokens)
        self._check()
        del self._taken[-num_tokens:]
        self._allowed = None

    def copy(self) -> Constraint:
        """Another of the same state, which took no time yet."""
        twin = Constraint(self.grammar, self._matcher.deep_copy(), self._end_ids)
        twin._taken = self._taken.copy()
        return twin

    def _mask(self) -> Allowed:
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        size = self.grammar.vocabulary.size
        allowed = np.unpackbits(bits, count=size, bitorder="little").view(np.bool_)
        allowed[self._end_ids] = False  # an end token may be an ordinary one, too
        complete = self._matcher.is_accepting()
        goes_on = bool(allowed.any())
        if not goes_on and not complete:
            raise self.grammar.refused("NoExtension")
        allowed[self._end_ids] = complete
        self._must_end = complete and not goes_on
        return allowed

    def _check(self) -> None:
        if self._matcher.is_error():
            raise self.grammar.refused(self._matcher.get_error())


def _of_schema(schema: object) -> str:
    return f"{_HEAD}start: {json_rule(schema)}"


def json_rule(schema: object) -> str:
    """What stands in a grammar for JSON that satisfies ``schema``. Raises RequestError for none."""
    if isinstance(schema, Mapping):
        schema = dict(schema)
        _check_size(schema)
        try:
            schema = json.dumps(schema)
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError(
                f"json_schema holds what JSON does not ({_one_line(str(error))}), expected a JSON "
                "schema; correct it"
            ) from error
    if not isinstance(schema, str):
        raise _wrong_type("json_schema", schema, "a mapping, or its text in JSON")
    try:
        data = schema.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _no_text("json_schema", error) from error
    found = parse_json_object(
        data, "json_schema", RequestError, max_values=MOST_VALUES, advice="correct it"
    )
    _check_size(found)
    chosen = found.get("x-guidance", {})
    form = {**JSON_FORM, **chosen} if isinstance(chosen, dict) else chosen
    return f"%json {json.dumps({**found, 'x-guidance': form})}"


def _check_size(schema: Any) -> None:
    """Refuses what llguidance takes seconds to compile, or gives up in the middle of a text."""
    waiting, num_values, num_properties = [schema], 0, 0
    while waiting:
        found = waiting.pop()
        num_values += 1 + (len(found) if isinstance(found, dict) else 0)
        if num_values > MOST_VALUES:
            raise RequestError(
                f"json_schema has more than {MOST_VALUES:,} keys and values, expected no more: "
                "they are read in one go, which all others wait for; leave some out"
            )
        if isinstance(found, list):
            waiting += found
        if not isinstance(found, dict):
            continue
        waiting += found.values()
        properties, required = found.get("properties"), found.get("required")
        if not isinstance(properties, dict):
            continue
        num_properties += len(properties)
        needed = required if isinstance(required, list) else []
        optional = len(properties.keys() - {name for name in needed if isinstance(name, str)})
        if optional > MOST_OPTIONAL:
            raise RequestError(
                f"json_schema has an object of {optional:,} properties that need not be there, "
                f"expected at most {MOST_OPTIONAL}; require more of them, or leave some out"
            )
    if num_properties > MOST_PROPERTIES:
        raise RequestError(
            f"json_schema has {num_properties:,} properties, expected at most {MOST_PROPERTIES:,}; "
            "leave some out"
        )


def _of_regex(regex: object) -> str:
    from llguidance import regex_to_lark

    return f"{_HEAD}start: /{regex_to_lark(_checked_text('regex', regex))}/"


def _of_choices(choices: object) -> str:
    if isinstance(choices, str) or not isinstance(choices, Sequence):
        raise _wrong_type("choices", choices, 'a list of strings, such as ["yes", "no"]')
    if not choices:
        raise RequestError(
            "choices is empty, expected one string at least; give what to choose from"
        )
    for choice in choices:
        if not _checked_text("choices", choice):
            raise RequestError(
                "choices has an empty string, expected strings of one character at least; leave "
                "it out"
            )
    # One regular expression: thousands of literals would be as many items of a row.
    return f"{_HEAD}start: /{'|'.join(''.join(map(_literal, choice)) for choice in choices)}/"


def _literal(character: str) -> str:
    ordinary = character.isascii() and character.isalnum()
    return character if ordinary else f"\\x{{{ord(character):x}}}"


def _of_lark(grammar: object) -> str:
    return f"{_checked_text('grammar', grammar)}\n{_HEAD}"  # after it: reasons name its lines


def _checked_text(name: str, text: object) -> str:
    if not isinstance(text, str):
        raise _wrong_type(name, text, "a string" if name != "choices" else "strings only")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _no_text(name, error) from error
    return text


def _wrong_type(name: str, value: object, expected: str) -> RequestError:
    return RequestError(
        f"{name} has {brief(value)} of type {type(value).__name__}, expected {expected}; give "
        "that, or leave it out"
    )


def _no_text(name: str, error: UnicodeEncodeError) -> RequestError:
    return RequestError(
        f"{name} has the lone surrogate U+{ord(error.object[error.start]):04X} at character "
        f"{error.start}, expected Unicode text; remove it, or join it with its pair"
    )


def _one_line(reason: str, kind: str = "") -> str:
    """llguidance's reason without the excerpts that it draws, and the place in our own lines."""
    told = re.split(r"\n<|\n *\d+ \|", reason)[0]
    if kind != "grammar":
        told = re.sub(r"^at \d+\(\d+\): ", "", told)
    lines = (line.strip() for line in told.splitlines())
    return quoted(" ".join(line for line in lines if line.strip("^ ")), 300)[1:-1]
