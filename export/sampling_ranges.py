"""The ranges of the sampling options: of a call's, and of a generation_config.json's defaults.

Here, so that an export can leave out defaults that no call could take.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .errors import RequestError
from .whole_number import brief, whole_number

# Fields of generation_config.json that are options of a call.
FIELDS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "no_repeat_ngram_size",
)
COUNTS = ("top_k", "no_repeat_ngram_size")  # of which 0 is no limit


def sampling_defaults(fields: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The options that a generation_config.json with these ``fields`` sets, and what is wrong.

    0 of ``COUNTS`` is no limit there, and ``do_sample`` false is greedy, whatever the temperature.
    A field that no call could take is left out: it must not keep a model from being opened. The
    second part says of each what was found.
    """
    found: dict[str, Any] = {}
    wrong: list[str] = []
    for name in FIELDS:
        value = fields.get(name)
        if value is None or (name in COUNTS and value == 0):
            continue
        try:
            check_sampling(**{name: value})
        except RequestError as error:
            wrong.append(f"{str(error).partition(';')[0]}; it is left out")
        else:
            found[name] = value
    if fields.get("do_sample") is False:
        found["temperature"] = 0.0
    return found, wrong


def check_sampling(
    temperature: object = 1.0,
    top_k: object = None,
    top_p: object = 1.0,
    min_p: object = 0.0,
    typical_p: object = 1.0,
    repetition_penalty: object = 1.0,
    frequency_penalty: object = 0.0,
    presence_penalty: object = 0.0,
    penalty_window: object = None,
    no_repeat_ngram_size: object = None,
    logit_bias: object = None,
    banned_tokens: object = None,
    min_tokens: object = 0,
    seed: object = None,
) -> None:
    """Raises RequestError, naming the option, for a value of another type or outside its range."""
    _check_number("temperature", temperature, "at least 0", lambda x: x >= 0, "0 (greedy)")
    _check_number("top_p", top_p, "in (0, 1]", lambda x: 0 < x <= 1, "1.0 (no limit)")
    _check_number("min_p", min_p, "in [0, 1]", lambda x: 0 <= x <= 1, "0.0 (no limit)")
    _check_number("typical_p", typical_p, "in (0, 1]", lambda x: 0 < x <= 1, "1.0 (no limit)")
    for name, penalty in (
        ("frequency_penalty", frequency_penalty),
        ("presence_penalty", presence_penalty),
    ):
        _check_number(name, penalty, "in [-100, 100]", lambda x: -100 <= x <= 100, "0.0 (none)")
    _check_number(
        "repetition_penalty", repetition_penalty, "above 0", lambda x: x > 0, "1.0 (none)"
    )
    _check_integer("top_k", top_k, 0, "(no limit)")
    _check_integer("penalty_window", penalty_window, 1, "(all tokens)")
    _check_integer("no_repeat_ngram_size", no_repeat_ngram_size, 0, "(none)")
    _check_integer("min_tokens", 0 if min_tokens is None else min_tokens, 0, "(none)")
    _check_bias(logit_bias)
    _check_banned(banned_tokens)
    _check_integer("seed", seed, 0, "(fresh entropy)")


def _check_bias(bias: object) -> None:
    if bias is None:
        return
    if not isinstance(bias, Mapping):
        raise RequestError(
            f"logit_bias is of type {type(bias).__name__}, expected a mapping of token ids to "
            "numbers, such as {50256: -100}; give one, or leave it out"
        )
    for token, value in bias.items():
        name = f"logit_bias of token {_token_id('logit_bias', token)}"
        _check_number(name, value, "in [-100, 100]", lambda x: -100 <= x <= 100, "0.0 (none)")


def _check_banned(banned: object) -> None:
    if banned is None:
        return
    if not isinstance(banned, Sequence) or isinstance(banned, str | bytes):
        raise RequestError(
            f"banned_tokens is {brief(banned)} of type {type(banned).__name__}, expected a list of "
            "token ids, such as [50256]; give one, or leave it out"
        )
    for token in banned:
        _token_id("banned_tokens", token)


def _token_id(name: str, token: object) -> int:
    number = whole_number(token)
    if number is None or number < 0:
        raise RequestError(
            f"{name} has the token id {brief(token)}, expected an integer of at least 0; "
            "use ids of this model's tokenizer"
        )
    return number


def _check_number(
    name: str, value: object, expected: str, holds: Callable[[float], bool], neutral: str
) -> None:
    is_number = isinstance(value, (int, float, np.integer, np.floating))
    if is_number and not isinstance(value, bool):
        try:
            number = float(value)  # type: ignore[arg-type]
        except OverflowError:  # an int beyond the range of a float
            number = math.inf
        if math.isfinite(number) and holds(number):
            return
    raise RequestError(
        f"{name} is {brief(value)}, expected a finite number {expected}; "
        f"give such a number, leave it out, or give {neutral}"
    )


def _check_integer(name: str, value: object, least: int, neutral: str) -> None:
    number = whole_number(value)
    if value is None or (number is not None and number >= least):
        return
    raise RequestError(
        f"{name} is {brief(value)}, expected an integer of at least {least}; "
        f"give such an integer, or leave it out {neutral}"
    )
