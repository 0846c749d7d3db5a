"""Errors name the options of a command, whatever the arguments behind them are called."""

from __future__ import annotations

import pytest

from pocketlm.commands.chat import command as CHAT
from pocketlm.commands.option_names import with_options
from pocketlm.commands.run import command as RUN
from pocketlm.export.errors import ContextLengthError


@pytest.mark.parametrize(
    "message, told",
    [
        ("top_k is -1, expected", "--top-k is -1, expected"),
        ("no_repeat_ngram_size is 'x'", "--no-repeat-ngram is 'x'"),
        ("banned_strings has 65 strings", "--ban has 65 strings"),
        ("json_schema: the empty text", "--json-schema: the empty text"),
        ("stop[12] has 0 characters", "--stop has 0 characters"),
        ("logit_bias of token 7 is 101", "--logit-bias of token 7 is 101"),
        ("token id -3 is in banned_tokens, expected", "token id -3 is in --ban-token, expected"),
        ("top_p must be in (0, 1]", "--top-p must be in (0, 1]"),
        ("lookup and draft are one", "--lookup and --draft are one"),
        ("found regex and choices, expected one", "found --regex and --choice, expected one"),
        ("found draft with beams, expected none", "found --draft with --beams, expected none"),
        ('found top_p "x", expected', 'found --top-p "x", expected'),
        ("found seed -1, expected", "found --seed -1, expected"),
        ('found stop[3] "", expected', 'found --stop "", expected'),
        ("found ignore_eos true, expected", "found --ignore-eos true, expected"),
    ],
)
def test_an_argument_is_told_by_its_option(message: str, told: str) -> None:
    assert with_options(message, RUN) == told


@pytest.mark.parametrize(
    "message",
    [
        "",
        "found no seed, expected one",
        "found keep of a text",
        "found the file 'seed', expected",
        "/seed: found no such file",
        "seed.json is not UTF-8, expected",
        "grammar.lark: found no rule",
        "seeds is 5, expected",
        "the seed is 5, expected",
        "unheard_of is 5, expected",
        "words is 5, expected",
    ],
)
def test_other_words_stay_as_they_are(message: str) -> None:
    assert with_options(message, RUN) == message


def test_the_context_may_slide_where_there_is_an_option_for_it() -> None:
    message = str(ContextLengthError("the prompt is too long; shorten it", slides=True))
    assert with_options(message, RUN).endswith("; shorten it, or add --context slide")
    assert "context" not in {param.name for param in CHAT.params}
    assert with_options(message, CHAT).endswith("; shorten it")
