"""Reads the fields of config.json that an architecture uses, with type and range checks."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable
from types import NoneType
from typing import Any, TypeVar

import numpy as np

from .errors import CheckpointError
from .strict_json import shown

C = TypeVar("C")

# Metadata of a field that follows from others, whatever config.json has under its name.
DERIVED = {"derived": True}

# As floats of Python, which compare with integers of any size.
SMALLEST_FLOAT = float(np.finfo(np.float32).tiny)
LARGEST_FLOAT = float(np.finfo(np.float32).max)

# Far above every published model; stops a damaged config before it is multiplied out.
LARGEST_COUNT = (1 << 24) - 1
# Layers have names, which are listed before a tensor is looked for; the deepest model has 126.
LARGEST = {"n_layer": 2048, "num_hidden_layers": 2048}
MAY_BE_ZERO = frozenset({"max_window_layers"})  # counts of which none is a number as well


def read_fields(config_class: type[C], config: dict[str, Any]) -> C:
    """An instance of the dataclass ``config_class`` from ``config``; absent fields take defaults.

    Integers must be positive and below 2**24, layers at most 2048, floats positive in float32.
    Raises CheckpointError with the field, its value and what was expected.
    """
    hints = typing.get_type_hints(config_class)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config_class):  # type: ignore[arg-type]
        if field.name not in config or field.metadata == DERIVED:
            continue
        allowed = typing.get_args(hints[field.name]) or (hints[field.name],)
        values[field.name] = _checked(field.name, config[field.name], allowed)
    return config_class(**values)


def _checked(name: str, value: Any, allowed: tuple[type, ...]) -> Any:
    if value is None and NoneType in allowed:
        return None
    if bool in allowed and isinstance(value, bool):
        return value
    if str in allowed and isinstance(value, str):
        return value
    largest = LARGEST.get(name, LARGEST_COUNT)
    if isinstance(value, int | float) and not isinstance(value, bool):
        least = 0 if name in MAY_BE_ZERO else 1
        if int in allowed and isinstance(value, int) and least <= value <= largest:
            return value
        if float in allowed and fits_float32(value):
            return float(value)
    expected = " or ".join("null" if kind is NoneType else kind.__name__ for kind in allowed)
    if int in allowed:
        expected = f"a positive {expected} up to {largest:,}"
    elif float in allowed:
        expected = f"a positive {expected}"
    raise CheckpointError(
        f"config.json: {name} is {shown(value, 80)}, expected {expected}; "
        "the file is damaged or belongs to another model"
    )


def fits_float32(value: float) -> bool:
    """Whether ``value`` is a positive number of the float32 that graphs compute in."""
    return SMALLEST_FLOAT <= value <= LARGEST_FLOAT


def refuse_unless(config: dict[str, Any], name: str, neutral: Any) -> None:
    """Raises CheckpointError when ``config[name]`` asks for something the graph does not do."""
    value = config.get(name, neutral)
    if value not in (neutral, None):
        raise CheckpointError(
            f"config.json: {name} is {shown(value, 80)}, expected {neutral}; "
            "the graph does not implement it, so this checkpoint cannot be exported"
        )


def require(holds: bool, name: str, value: object, expected: Iterable[str]) -> None:
    """Raises CheckpointError for a ``value`` of ``name`` unless it ``holds``."""
    if not holds:
        raise CheckpointError(
            f"config.json: {name} is {shown(value, 80)}, expected {_or(expected)}; "
            "the graph does not implement it, so this checkpoint cannot be exported"
        )


def _or(expected: Iterable[str]) -> str:
    *others, last = expected
    return f"one of {', '.join(others)}, {last}" if others else last
