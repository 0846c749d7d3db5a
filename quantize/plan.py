"""Which weight gets which number format: data, made from a precision by name or given as a file.

    plan = plan_for(model, "int4")
    plan.formats["h.0.attn.c_attn.weight"]                # "int4-block128"
    plan.write("plan.json")
    Plan.read("plan.json").fitting(model) == plan

The file is one JSON object, to be edited by hand:

    {"name": "int4", "block_size": 128, "head": "int8",
     "formats": {"wte.weight": "int8-block128", "h.0.attn.c_attn.weight": "int4-block128", …}}

``formats`` has every weight of the model that can have one; ``fp32`` leaves it as it is. The other
fields say what was asked for, and may be left out. A plan that is another one than its name stands
for is called ``mixed``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ..export.errors import RequestError
from ..export.output_file import OutputFile
from ..export.strict_json import load_json_object, quoted, shown
from .formats import find_format, known_formats
from .precisions import BLOCK_SIZES, FULL, HEADS, MIXED, PRECISIONS
from .select import Selected, select

Fact = str | int | float
LARGEST_PLAN = 10_000_000  # bytes, as of a manifest
ASKED = "asked to stay in float32"
ADVICE = "correct it (pocketlm info MODEL --save-plan FILE writes the plan of a model)"


@dataclass(frozen=True)
class Rotated:
    """How the weights are rotated before they are quantized."""

    seed: int = 0
    parts: tuple[str, ...] = ("R1", "R2", "R4")


@dataclass(frozen=True)
class Choice:
    """A precision with its options filled in."""

    name: str
    block_size: int | None
    head: str

    @property
    def changes(self) -> bool:
        """Whether any format is another than float32."""
        return {self.linear_format, self.head_format} != {FULL}

    @property
    def linear_format(self) -> str:
        """Name of the linear layers' format."""
        return PRECISIONS[self.name].linear.format(self.block_size)

    @property
    def head_format(self) -> str:
        """Name of the format of head and embedding."""
        return HEADS[self.head].format(self.block_size)

    def plan(self, model: ir.Model) -> Plan:
        """Every weight of ``model`` in the format of its kind, or the nearest that it can have.

        ``reasons`` of the plan says why it is another one, or none.
        """
        formats: dict[str, str] = {}
        reasons: dict[str, str] = {}
        for name, selected in select(model).items():
            wanted = self.head_format if selected.vocabulary else self.linear_format
            formats[name], reason = _nearest(selected, wanted)
            if reason is not None:
                reasons[name] = reason
        rotation = Rotated() if PRECISIONS[self.name].rotated else None
        return Plan(formats, self.name, self.block_size, self.head, rotation, reasons=reasons)


def choose(precision: str, block_size: int | None = None, head: str | None = None) -> Choice:
    """The choice for a precision by name; RequestError lists what is known."""
    for name, value, known in (
        ("precision", precision, PRECISIONS),
        ("block_size", block_size, (None, *BLOCK_SIZES)),
        ("head", head, (None, *HEADS)),
    ):
        if value not in tuple(known):
            listed = ", ".join(str(item) for item in known if item is not None)
            raise RequestError(f"{name} is {value!r}, expected one of {listed}")
    row = PRECISIONS[precision]
    if row.linear == FULL:
        options = {"block_size": block_size, "head": head}
        if given := [name for name, value in options.items() if value is not None]:
            are, neither, them = (
                ("is", "it not", "it") if len(given) == 1 else ("are", "neither", "them")
            )
            *others, last = (name for name in PRECISIONS if name != precision)
            raise RequestError(
                f"{' and '.join(given)} {are} given, expected {neither} with {precision}; "
                f"choose {', '.join(others)} or {last}, or leave {them} out"
            )
    chosen = filled(precision, block_size, head)
    if block_size is not None and not any("{}" in f for f in (row.linear, HEADS[chosen.head])):
        raise RequestError(
            f"block_size is {block_size}, expected none for {precision} with an {head} head, which "
            "has no blocks; leave it out, or choose another head"
        )
    return chosen


def filled(precision: str, block_size: int | None, head: str | None) -> Choice:
    """The choice with the precision's own options where none are given."""
    row = PRECISIONS[precision]
    return Choice(precision, block_size or row.block_size, head or row.head)


def plan_for(
    model: ir.Model, precision: str, block_size: int | None = None, head: str | None = None
) -> Plan:
    """The plan of a precision by name for ``model``.

    Raises RequestError for an unknown name or option, CheckpointError for a graph without logits.
    """
    return choose(precision, block_size, head).plan(model)


@dataclass(frozen=True)
class Plan:
    """A format for every weight by name, and what was asked for."""

    formats: Mapping[str, str]
    name: str = MIXED  # of PRECISIONS, or MIXED
    block_size: int | None = None
    head: str | None = None
    rotation: Rotated | None = None
    calibration: Mapping[str, Fact] | None = None  # what roundings were chosen with
    promise: Mapping[str, Fact] | None = None  # what it keeps, and what was measured
    # Why weights have another format than their precision's; of the model, not of the plan.
    reasons: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    # As a file --------------------------------------------------------------------------------

    @classmethod
    def read(cls, path: str | PathLike[str]) -> Plan:
        """The plan in the file ``path``; RequestError for what is none, names no known format."""
        file = Path(path)
        return cls.parse(load_json_object(file, LARGEST_PLAN, RequestError), file.name)

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str) -> Plan:
        """The plan in a JSON object; raises as ``read``, the message beginning with ``where``."""
        for name in values:
            if name not in FIELDS:
                raise RequestError(
                    f"{where}: found the field {quoted(name)}, expected {', '.join(FIELDS)}; "
                    "correct its name, or leave it out"
                )
        for name, (expected, accepts) in FIELDS.items():
            if name in values and not accepts(values[name]):
                raise RequestError(
                    f"{where}: found {shown(values[name])} as {name}, expected {expected}; "
                    "correct it"
                )
        if "formats" not in values:
            raise RequestError(f"{where}: found no formats, expected one for each weight; {ADVICE}")
        for name, found in values["formats"].items():
            if found != FULL and (not isinstance(found, str) or found not in known_formats()):
                raise RequestError(
                    f"{where}: found {shown(found)} as the format of {name}, expected one of "
                    f"{FULL}, {', '.join(known_formats())}; correct it"
                )
        given = dict(values)
        if rotation := given.get("rotation"):
            given["rotation"] = Rotated(rotation["seed"], tuple(rotation["parts"]))
        return cls(**given)

    @classmethod
    def of(cls, precision: Mapping[str, Any]) -> Plan:
        """The plan of a quantized folder, from ``precision`` of its manifest."""
        formats = {tensor["name"]: tensor["format"] for tensor in precision["tensors"]}
        formats |= {tensor["name"]: FULL for tensor in precision["skipped"]}
        others = {name: precision[name] for name in FIELDS if name in precision}
        if rotation := others.get("rotation"):
            tried = (*rotation["parts"], *rotation["skipped"])  # also of single weights
            parts = [part for part in Rotated().parts if part in tried]
            others["rotation"] = {"seed": rotation["seed"], "parts": parts}
        return cls.parse({**others, "formats": formats}, "pocketlm.json")

    def write(self, path: str | PathLike[str]) -> None:
        """Writes the file that ``read`` reads; RequestError where another file is."""
        OutputFile(path).write(self.json().encode())

    def json(self) -> str:
        """The file's text: fields that say nothing are left out, ``formats`` comes last."""
        fields = {name: value for name in FIELDS if (value := getattr(self, name)) is not None}
        if self.rotation is not None:
            fields["rotation"] = asdict(self.rotation)
        return json.dumps(fields, indent=1, ensure_ascii=False) + "\n"

    def describe(self) -> dict[str, Any]:
        """What the manifest's ``precision`` says of it, beside the rows of the weights."""
        names = ("name", "block_size", "head", "calibration", "promise")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    # Of a model -------------------------------------------------------------------------------

    def fitting(self, model: ir.Model) -> Plan:
        """This plan for ``model``, under the name that it deserves.

        RequestError names a weight that is missing or unknown, or that cannot have its format.
        """
        found = select(model)
        self._check_names(found)
        for name, selected in found.items():
            if self.formats[name] != FULL:
                check_fit(self.formats[name], selected)
        if self.name in PRECISIONS:
            named = filled(self.name, self.block_size, self.head).plan(model)
            if (named.formats, named.rotation) == (self.formats, self.rotation):
                return replace(named, calibration=self.calibration, promise=self.promise)
        if set(self.formats.values()) <= {FULL}:
            return Plan(self.formats, FULL)  # nothing is done to the model at all
        return replace(self, name=MIXED, block_size=None, head=None, reasons={})

    def _check_names(self, found: Mapping[str, Selected]) -> None:
        unknown = [name for name in self.formats if name not in found]
        missing = [name for name in found if name not in self.formats]
        if unknown:
            near = get_close_matches(unknown[0], found, n=3) or list(found)[:3]
            raise RequestError(
                f"the plan names {quoted(unknown[0])}"
                f"{f' (and {len(unknown) - 1} more)' if unknown[1:] else ''}, expected weights of "
                f"the model, such as {', '.join(near)}; {ADVICE}"
            )
        if missing:
            raise RequestError(
                f"the plan has no format for {len(missing)} of {len(found)} weights, first "
                f"{missing[0]}, expected one for each; {FULL} leaves a weight as it is"
            )


def check_fit(name: str, selected: Selected) -> None:
    """RequestError unless the weight can have exactly the format of that name."""
    nearest, reason = _nearest(selected, name)
    if nearest != name:
        raise RequestError(
            f"the plan gives {selected.weight.name} the format {name}, but {reason}; expected one "
            f"that it can have, such as {nearest}"
        )


def _nearest(selected: Selected, wanted: str) -> tuple[str, str | None]:
    """The format that a weight can have in place of ``wanted``, and why it is another one."""
    if wanted == FULL:
        return FULL, selected.obstacle or ASKED
    fitted = selected.fitted(find_format(wanted))
    if isinstance(fitted, str):
        return FULL, fitted
    if fitted.name != wanted:
        return fitted.name, f"{selected.weight.in_features} input features do not fit {wanted}"
    return wanted, None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _are_facts(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(v, str | int | float) and not isinstance(v, bool) for v in value.values()
    )


def _is_rotation(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"seed", "parts"}
        and _is_count(value["seed"])
        and isinstance(value["parts"], list)
        and all(isinstance(part, str) for part in value["parts"])
    )


# Fields of the file: what is expected, and whether a value is that.
FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "name": (f"one of {', '.join(PRECISIONS)}, {MIXED}", lambda v: v in (*PRECISIONS, MIXED)),
    "block_size": (
        f"one of {', '.join(map(str, BLOCK_SIZES))}",
        lambda v: _is_count(v) and v in BLOCK_SIZES,
    ),
    "head": (f"one of {', '.join(HEADS)}", lambda v: v in tuple(HEADS)),
    "rotation": ("an object of seed and parts", _is_rotation),
    "calibration": ("an object of texts and numbers", _are_facts),
    "promise": ("an object of texts and numbers", _are_facts),
    "formats": ("an object of weights and their formats", lambda v: isinstance(v, dict)),
}
