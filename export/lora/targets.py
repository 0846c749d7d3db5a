"""Which modules a peft configuration means: its own rules, name by name.

A module is named as transformers names it, ``model.layers.0.self_attn.q_proj``. Sources:
``check_target_module_exists`` in ``tuners/tuners_utils.py`` and ``get_pattern_key`` in
``utils/other.py`` of peft 0.21.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

V = TypeVar("V")

ALL_LINEAR = "all-linear"
Names = str | tuple[str, ...]  # a regular expression for the whole name, or ends of names


@dataclass(frozen=True)
class Targets:
    """The modules that an adapter was put into; None where the configuration does not say."""

    modules: Names | None = None
    excluded: Names | None = None
    saved: tuple[str, ...] = ()  # modules that are stored whole
    layers: tuple[int, ...] = ()  # only in these, empty: in all
    layers_pattern: tuple[str, ...] = ()  # what stands before a layer's number

    def has(self, module: str, *, is_linear: bool) -> bool:
        """Whether ``module`` is one; ``is_linear`` of a linear one inside a layer."""
        if self.excluded and _matches(self.excluded, module):
            return False
        if any(re.match(rf"(^|.*\.){name}($|\..*)", module) for name in self.saved):
            return False
        if self.modules is None:
            return True
        if isinstance(self.modules, str) and self.modules.lower() == ALL_LINEAR:
            return is_linear
        if not _matches(self.modules, module):
            return False
        exact = isinstance(self.modules, str) or module in self.modules
        return exact or not self.layers or self._layer(module) in self.layers

    def saves(self, module: str) -> bool:
        """Whether ``module`` is stored whole; peft compares ends, not words."""
        return any(module.endswith(name) for name in self.saved)

    def _layer(self, module: str) -> int | None:
        patterns = [rf"(?:^|.*?\.){pattern}" for pattern in self.layers_pattern]
        for pattern in patterns or [r".*?\.[^.]*"]:
            if found := re.match(rf"{pattern}\.(?P<index>\d+)\.", module):
                return int(found["index"])
        return None


def _matches(names: Names, module: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return module in names or any(module.endswith(f".{name}") for name in names)


def by_pattern(patterns: Mapping[str, V], module: str, otherwise: V) -> V:
    """The value of the first pattern that is the end of ``module``, at a dot."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return otherwise


def patterns_of(names: Names | None) -> tuple[str, ...]:
    """The regular expressions among ``names``."""
    return (names,) if isinstance(names, str) and names.lower() != ALL_LINEAR else ()
