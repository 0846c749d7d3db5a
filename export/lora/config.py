"""adapter_config.json as peft writes it -> what has to be known to merge; the rest is refused.

A field that is not known here and switches something on (true, or a list or object that is not
empty) asks for a kind of adapter that is not plain LoRA, and is refused by its name: DoRA
(``use_dora``), aLoRA, replicated layers, and what later versions bring. Numbers and text beside
such a switch do nothing while it is off. Source: ``tuners/lora/config.py`` of peft 0.21.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config_fields import LARGEST_COUNT
from ..errors import CheckpointError
from ..strict_json import LARGEST_CONFIG, load_json_object, shown
from .folder import CONFIG_FILE, LORA
from .targets import Targets, by_pattern, patterns_of

BIASES = ("none", "all", "lora_only")
# How A and B began, where that left the weights of the base as they were.
NEUTRAL_BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
# What changes nothing of a merge, although it may hold true, a list or an object.
NEUTRAL = {
    "auto_mapping",
    "corda_config",
    "eva_config",
    "fan_in_fan_out",  # peft itself goes by the kind of the module
    "inference_mode",
    "loftq_config",
    "lora_ga_config",
    "megatron_config",
    "runtime_config",
}
WORDS = {"use_dora": "DoRA", "alora_invocation_tokens": "aLoRA", "use_qalora": "QALoRA"}
LONGEST_PATTERN = 10_000  # characters
AS_PEFT = (
    "merge it with peft (model.merge_and_unload()), save the result with save_pretrained, and "
    "export that"
)


@dataclass(frozen=True)
class LoraConfig:
    """The fields of a LoRA adapter that shape its merge."""

    rank: int
    alpha: float
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]
    rank_stabilized: bool
    lora_bias: bool
    ensure_weight_tying: bool
    targets: Targets
    tokens: dict[str, tuple[int, ...]]  # end of a module's name, "" the embedding -> its rows
    base_model: str | None

    def rank_of(self, module: str) -> int:
        """Rows of ``module``'s A."""
        return by_pattern(self.rank_pattern, module, self.rank)

    def scale_of(self, module: str) -> float:
        """What the product B·A of ``module`` is multiplied by."""
        rank, alpha = self.rank_of(module), by_pattern(self.alpha_pattern, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)

    def tokens_of(self, module: str, is_embedding: bool) -> tuple[int, ...] | None:
        """The rows of ``module`` that were trained by themselves."""
        for name, rows in self.tokens.items():
            if (not name and is_embedding) or (name and f".{module}".endswith(f".{name}")):
                return rows
        return None


def read_config(folder: Path) -> LoraConfig:
    """The configuration in ``folder``; CheckpointError names a field that cannot be merged."""
    fields = load_json_object(folder / CONFIG_FILE, LARGEST_CONFIG, CheckpointError)
    kind = fields.get("peft_type")
    if kind != LORA:
        raise CheckpointError(
            f"{CONFIG_FILE}: peft_type is {shown(kind)}, expected {LORA!r}; {AS_PEFT}"
        )
    taken: set[str] = set()

    def take(name: str, default: Any, holds: Callable[[Any], bool], expected: str) -> Any:
        taken.add(name)
        value = fields.get(name)
        if value is None:
            return default
        if not holds(value):
            raise CheckpointError(
                f"{CONFIG_FILE}: {name} is {shown(value, 80)}, expected {expected}; the file is "
                "damaged: get it again from its source"
            )
        return value

    def flag(name: str) -> bool:
        return bool(take(name, False, lambda value: isinstance(value, bool), "true or false"))

    tokens = take("trainable_token_indices", {}, _are_token_rows, "token ids, by module or not")
    targets = Targets(
        modules=_names(take("target_modules", None, _are_names, "names or a regular expression")),
        excluded=_names(take("exclude_modules", None, _are_names, "names or a regular expression")),
        saved=tuple(take("modules_to_save", (), _are_texts, "a list of names")),
        layers=_tuple(take("layers_to_transform", (), _are_indices, "a layer or a list of them")),
        layers_pattern=_tuple(take("layers_pattern", (), _are_names, "a name or a list of them")),
    )
    config = LoraConfig(
        rank=take("r", 8, _is_rank, "a whole number above 0"),
        alpha=float(take("lora_alpha", 8, _is_number, "a number")),
        rank_pattern=take("rank_pattern", {}, _by_name(_is_rank), "whole numbers above 0 by name"),
        alpha_pattern=take("alpha_pattern", {}, _by_name(_is_number), "numbers by name"),
        rank_stabilized=flag("use_rslora"),
        lora_bias=flag("lora_bias"),
        ensure_weight_tying=flag("ensure_weight_tying"),
        targets=targets,
        tokens={name: tuple(rows) for name, rows in tokens.items()}
        if isinstance(tokens, dict)
        else {"": tuple(tokens)},
        base_model=take("base_model_name_or_path", None, lambda v: isinstance(v, str), "text"),
    )
    take("bias", "none", lambda value: value in BIASES, f"one of {', '.join(BIASES)}")
    _check_beginning(fields.get("init_lora_weights"))
    _check_switches(fields, taken | NEUTRAL | {"peft_type", "init_lora_weights"})
    for name, patterns in {
        "target_modules": patterns_of(targets.modules),
        "exclude_modules": patterns_of(targets.excluded),
        "modules_to_save": [f"({name})" for name in targets.saved],
        "layers_pattern": [f"({name})" for name in targets.layers_pattern],
        "rank_pattern": [f"({name})" for name in config.rank_pattern],
        "alpha_pattern": [f"({name})" for name in config.alpha_pattern],
    }.items():
        for pattern in patterns:
            _check_pattern(name, pattern)
    return config


def _check_beginning(beginning: object) -> None:
    """Some begin with parts of the base's weights, which the training took out of it."""
    if not any(beginning is known or beginning == known for known in NEUTRAL_BEGINNINGS):
        raise CheckpointError(
            f"{CONFIG_FILE}: init_lora_weights is {shown(beginning)}, expected true: an adapter "
            "beside the weights of its base as they are; convert it with peft "
            "(save_pretrained with path_initial_model_for_weight_conversion)"
        )


def _check_switches(fields: dict[str, Any], known: set[str]) -> None:
    for name, value in fields.items():
        if name not in known and (value is True or (isinstance(value, list | dict) and value)):
            word = f" ({WORDS[name]})" if name in WORDS else ""
            raise CheckpointError(
                f"{CONFIG_FILE}: {name} is {shown(value, 80)}{word}, expected a plain LoRA "
                f"adapter without it; {AS_PEFT}"
            )


def _check_pattern(name: str, pattern: str) -> None:
    problem = None
    try:
        if len(pattern) > LONGEST_PATTERN:
            problem = f"has {len(pattern):,} characters, expected at most {LONGEST_PATTERN:,}"
        else:
            re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as cause:
        problem = f"has {shown(pattern)} ({cause}), expected a regular expression"
    if problem:
        raise CheckpointError(
            f"{CONFIG_FILE}: {name} {problem}; the file is damaged: get it again from its source"
        )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_COUNT


def _is_rank(value: Any) -> bool:
    return _is_count(value) and value > 0


def _is_number(value: Any) -> bool:
    """One that is finite as a float of Python."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) and item for item in value)


def _are_names(value: Any) -> bool:
    return (isinstance(value, str) and value != "") or _are_texts(value)


def _are_rows(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_count, value)) and len(set(value)) == len(value)


def _are_indices(value: Any) -> bool:
    return _is_count(value) or _are_rows(value)


def _are_token_rows(value: Any) -> bool:
    if isinstance(value, dict):
        return all(name and _are_rows(rows) for name, rows in value.items())
    return _are_rows(value)


def _by_name(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(holds, value.values()))


def _names(value: Any) -> str | tuple[str, ...] | None:
    return tuple(value) if isinstance(value, list) else value


def _tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)
