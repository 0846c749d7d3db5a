"""Rotary position embedding: which angles a config asks for.

Pair j of a head's R rotated numbers turns by ``position · frequency[j]``, j < R / 2, where

    default   frequency[j] = theta ** (-2j / R)
    linear    the same, divided by ``factor``
    llama3    divided by ``factor`` where a full turn takes more than original / low_freq_factor
              positions, kept where it takes fewer than original / high_freq_factor, and blended
              linearly in original / wavelength between the two
    yarn      divided by ``factor`` behind the pair that turns ``beta_slow`` times in the original
              context, kept up to the one that turns ``beta_fast`` times, blended linearly in j
    longrope  divided by ``short_factor[j]``; by ``long_factor[j]`` of a text that is longer than
              the original context
    dynamic   of a text of L tokens, more than the original context: with a larger theta, times
              (factor · L / original - factor + 1) ** (R / (R - 2))

With yarn and longrope, cosines and sines are multiplied by a number as well. The halves of a head
are rotated against each other (number j with number j + R / 2), as Hugging Face stores its weights.
Sources: Su et al. 2021 (arXiv 2104.09864), Peng et al. 2023 (arXiv 2309.00071, YaRN), Ding et al.
2024 (arXiv 2402.13753, LongRoPE); ``modeling_rope_utils.py`` of Hugging Face transformers for the
fields, their defaults and which of two spellings wins, and Meta's llama-models for "llama3".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .config_fields import LARGEST_COUNT, fits_float32
from .errors import CheckpointError
from .strict_json import shown

Floats = NDArray[np.float32]

ORIGINAL = "original_max_position_embeddings"
SHARE = "partial_rotary_factor"
# Fields that each kind may have beside the kind, theta and the rotated share of a head.
KINDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": (
        *("factor", ORIGINAL, "attention_factor", "beta_fast", "beta_slow"),
        *("mscale", "mscale_all_dim", "truncate"),
    ),
    "longrope": ("factor", ORIGINAL, "attention_factor", "short_factor", "long_factor"),
    "llama3": ("factor", ORIGINAL, "low_freq_factor", "high_freq_factor"),
}
# What config.json calls some of them elsewhere: a text position is the same in all of mrope's axes.
ALIASES = {"su": "longrope", "mrope": "default"}
# Fields that change nothing: a mark of training, and the axes that are one for text.
WITHOUT_EFFECT = frozenset({"finetuned", "mrope_section"})
DAMAGED = "the file is damaged or belongs to another model"


@dataclass(frozen=True)
class Growth:
    """How frequencies follow a text that is longer than the original context: ``dynamic``."""

    factor: float
    exponents: Floats  # (R / 2,): frequency[j] · (factor · L / original - factor + 1) ** that


@dataclass(frozen=True, eq=False)
class Rope:
    """The rotation of one kind of layer."""

    frequencies: Floats  # (R / 2,) radians per position
    factor: float = 1.0  # of cosines and sines
    original: int | None = None  # tokens of a text beyond which it is rotated by ``beyond``
    beyond: Floats | Growth | None = None

    @classmethod
    def read(
        cls,
        config: dict[str, Any],
        head_size: int,
        context_length: int,
        theta: float = 10000.0,
        share: float | None = None,
    ) -> Rope:
        """From ``rope_theta`` and ``rope_scaling``, or ``rope_parameters`` of newer configs.

        ``theta`` and ``share``, the rotated part of a head, are the family's own where the config
        has none; ``share`` None is for those that rotate all of it. CheckpointError names a kind
        that is not built, a number that is missing, and a field that nothing would be done with.
        """
        settings = Settings.read(config, share is not None)
        size = settings.rotated(head_size, share)
        base = settings.number("rope_theta", theta)
        plain = _frequencies(base, size)
        return _READ[settings.kind](settings, plain, base, context_length)

    @property
    def size(self) -> int:
        return 2 * len(self.frequencies)  # R

    def longest(self, context_length: int) -> int:
        """Tokens of the longest text: ``dynamic`` is for ``factor`` times the original context."""
        if isinstance(self.beyond, Growth):
            return min(int(context_length * self.beyond.factor), LARGEST_COUNT)
        return context_length


@dataclass(frozen=True)
class Settings:
    """The fields of one kind of layer, from wherever the config has them."""

    fields: dict[str, Any]
    kind: str
    name: str  # of the object that they come from

    @classmethod
    def read(cls, config: dict[str, Any], shares: bool) -> Settings:
        """The older spelling wins, as in transformers; null means that a field is not there."""
        name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
        found = config.get(name) or {}
        if not isinstance(found, dict):
            raise CheckpointError(
                f"config.json: {name} is {shown(found, 80)}, expected an object or null; {DAMAGED}"
            )
        found = {key: value for key, value in found.items() if value is not None}
        named = found.pop("rope_type", found.get("type", "default"))
        found.pop("type", None)
        kind = ALIASES.get(named, named) if isinstance(named, str) else ""
        if kind == "yarn" and "short_factor" in found:
            kind = "longrope"  # Phi-3 was published so
        if kind not in KINDS:
            raise CheckpointError(
                f"config.json: {name} is of type {shown(named, 80)}, expected one of "
                f"{', '.join(KINDS)}; the graph does not implement it, so this checkpoint "
                "cannot be exported"
            )
        if found.get(SHARE) == 1 and not shares:
            del found[SHARE]
        known = {"rope_theta", *KINDS[kind], *WITHOUT_EFFECT, *([SHARE] if shares else [])}
        if unknown := sorted(found.keys() - known):
            raise CheckpointError(
                f"config.json: {name} has a field {shown(unknown[0], 80)}, expected for the kind "
                f"{kind!r} {', '.join(sorted(known - WITHOUT_EFFECT))}; the graph would ignore it, "
                "so this checkpoint cannot be exported"
            )
        for field in ("rope_theta", *([SHARE] if shares else [])):
            if config.get(field) is not None:
                found.setdefault(field, config[field])
        if kind in ("yarn", "longrope", "llama3") and config.get(ORIGINAL) is not None:
            found[ORIGINAL] = config[ORIGINAL]
        return cls(found, kind, name)

    def number(self, name: str, default: float | None = None) -> float:
        """A positive number; CheckpointError where it is another, or is missing and has to be."""
        value = self.fields.get(name, default)
        if isinstance(value, int | float) and not isinstance(value, bool) and fits_float32(value):
            return float(value)
        raise CheckpointError(
            f"config.json: {name} of the rotary embedding is {shown(value, 80)}, expected a "
            f"positive number; {DAMAGED}"
        )

    def numbers(self, name: str, count: int) -> Floats:
        """``count`` positive numbers."""
        values = self.fields.get(name)
        whole = isinstance(values, list) and len(values) == count
        if whole and all(
            isinstance(x, int | float) and not isinstance(x, bool) and fits_float32(x)
            for x in values or ()
        ):
            return np.array(values, np.float32)
        found = f"{len(values)} values" if isinstance(values, list) else shown(values, 80)
        raise CheckpointError(
            f"config.json: {name} of the rotary embedding is {found}, expected {count} positive "
            f"numbers, one for each pair of rotated numbers; {DAMAGED}"
        )

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.fields.get(name, default)
        if not isinstance(value, bool):
            raise CheckpointError(
                f"config.json: {name} of the rotary embedding is {shown(value, 80)}, expected true "
                f"or false; {DAMAGED}"
            )
        return value

    def original(self, context_length: int) -> int:
        """Tokens that the model was first trained for."""
        value = self.number(ORIGINAL, context_length)
        if value != int(value) or not 1 < value <= LARGEST_COUNT:
            raise CheckpointError(
                f"config.json: {ORIGINAL} of the rotary embedding is {value:g}, expected a whole "
                f"number from 2 to {LARGEST_COUNT}; {DAMAGED}"
            )
        return int(value)

    def rotated(self, head_size: int, share: float | None) -> int:
        """How many numbers of a head are rotated: R."""
        part = self.number(SHARE, share) if share is not None else 1.0
        size = int(head_size * part) if part <= 1 else 0
        if size <= 0 or size % 2:
            raise CheckpointError(
                f"config.json: {SHARE} {part:g} of a head of {head_size} numbers is "
                f"{head_size * part:g} that are rotated, expected a positive even number, at most "
                f"the head's; {DAMAGED}"
            )
        return size


def _frequencies(theta: float, size: int) -> Floats:
    exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    plain: Floats = np.float32(1) / np.float32(theta) ** exponents
    return plain


def _default(settings: Settings, plain: Floats, theta: float, context: int) -> Rope:
    return Rope(plain)


def _linear(settings: Settings, plain: Floats, theta: float, context: int) -> Rope:
    return Rope(plain / np.float32(settings.number("factor")))


def _llama3(settings: Settings, plain: Floats, theta: float, context: int) -> Rope:
    low, high = settings.number("low_freq_factor"), settings.number("high_freq_factor")
    if low >= high:
        raise CheckpointError(
            f"config.json: low_freq_factor of the rotary embedding is {low:g}, expected less "
            f"than high_freq_factor {high:g}; {DAMAGED}"
        )
    slow: Floats = plain / np.float32(settings.number("factor"))
    wavelength = 2 * math.pi / plain
    share = settings.number(ORIGINAL, context) / wavelength - low
    share = np.clip(share / (high - low), 0, 1)
    return Rope(((1 - share) * slow + share * plain).astype(np.float32))


def _yarn(settings: Settings, plain: Floats, theta: float, context: int) -> Rope:
    original = settings.original(context)
    factor = settings.number("factor", context / original)
    fast, slow = settings.number("beta_fast", 32), settings.number("beta_slow", 1)
    if theta == 1:
        raise CheckpointError(
            f"config.json: rope_theta of the rotary embedding is 1, expected another; {DAMAGED}"
        )

    def pair(turns: float) -> float:  # the one that turns so often in the original context
        return len(plain) * math.log(original / (turns * 2 * math.pi)) / math.log(theta)

    first, last = pair(fast), pair(slow)
    if settings.flag("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * len(plain) - 1)
    if first == last:
        last += 0.001
    ramp = (np.arange(len(plain), dtype=np.float32) - np.float32(first)) / np.float32(last - first)
    share = np.clip(ramp, 0, 1)
    blended = plain / np.float32(factor) * share + plain * (1 - share)
    if "attention_factor" in settings.fields:
        return Rope(blended, settings.number("attention_factor"))
    if settings.fields.get("mscale") and settings.fields.get("mscale_all_dim"):
        over = _yarn_factor(factor, settings.number("mscale_all_dim"))
        return Rope(blended, _yarn_factor(factor, settings.number("mscale")) / over)
    return Rope(blended, _yarn_factor(factor))


def _yarn_factor(factor: float, scale: float = 1.0) -> float:
    return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0


def _longrope(settings: Settings, plain: Floats, theta: float, context: int) -> Rope:
    original = settings.original(context)
    factor = settings.number("factor", context / original)
    default = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    short = settings.numbers("short_factor", len(plain))
    long = settings.numbers("long_factor", len(plain))
    scale = settings.number("attention_factor", default)
    return Rope(plain / short, scale, original, plain / long)


def _dynamic(settings: Settings, plain: Floats, theta: float, context: int) -> Rope:
    size = 2 * len(plain)
    factor = settings.number("factor")
    if size < 4 or factor < 1:
        raise CheckpointError(
            f"config.json: the factor of the rotary embedding is {factor:g}, and {size} numbers of "
            f"a head are rotated, expected at least 1, and 4; {DAMAGED}"
        )
    exponents = -np.arange(0, size, 2, dtype=np.float32) / np.float32(size - 2)
    return Rope(plain, 1.0, context, Growth(factor, exponents))


_READ: dict[str, Callable[[Settings, Floats, float, int], Rope]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
}
