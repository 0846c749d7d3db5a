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
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from typing import Annotated

import onnx_ir as ir

from ..export.errors import RequestError
from ..export.manifest import (
    CalibrationEntry,
    Count,
    PrecisionEntry,
    PromiseEntry,
    QuantizationReport,
    RotationEntry,
)
from ..export.output_file import OutputFile
from ..export.records import NOTHING, Kind, Misfit, read_record, to_json
from ..export.strict_json import load_json_object, quoted, shown
from .formats import find_format, known_formats
from .precisions import BLOCK_SIZES, FULL, HEADS, MIXED, PRECISIONS
from .rotation import PARTS
from .select import Selected, select

LARGEST_PLAN = 10_000_000  # bytes, as of a manifest
ASKED = "asked to stay in float32"
ADVICE = "correct it (pocketlm info MODEL --save-plan FILE writes the plan of a model)"


# W8A8 with rows between -|x| and |x|, and between the smallest and the largest x.
EVEN, LOPSIDED = "int8-channel", "int8-channel-asym"


def _one_of(*known: object) -> Kind:
    """One of them, and of their type: True is not 1."""
    listed = f"one of {', '.join(map(str, known))}"
    return Kind(listed, lambda v: any(type(v) is type(k) and v == k for k in known))


NAME = _one_of(*PRECISIONS, MIXED)
BLOCK_SIZE = _one_of(*BLOCK_SIZES)
HEAD = _one_of(*HEADS)
PART = _one_of(*PARTS)
FORMAT = _one_of(FULL, *known_formats())


@dataclass(frozen=True, kw_only=True)
class Rotated:
    """How the weights are rotated before they are quantized."""

    seed: Count = 0
    parts: tuple[Annotated[str, PART], ...] = PARTS


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
        return Plan(
            name=self.name,
            block_size=self.block_size,
            head=self.head,
            rotation=rotation,
            reasons=reasons or None,
            formats=formats,
        )


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


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A format for every weight by name, and what was asked for; the fields are the file's."""

    name: Annotated[str, NAME] = MIXED
    block_size: Annotated[int, BLOCK_SIZE] | None = None
    head: Annotated[str, HEAD] | None = None
    rotation: Rotated | None = None
    calibration: CalibrationEntry | None = None
    promise: PromiseEntry | None = None
    # Why weights have another format than their precision's: follows from the rest and the model.
    reasons: dict[str, str] | None = field(default=None, compare=False)
    formats: dict[str, Annotated[str, FORMAT]]

    # As a file --------------------------------------------------------------------------------

    @classmethod
    def read(cls, path: str | PathLike[str]) -> Plan:
        """The plan in the file ``path``; RequestError for what is none."""
        file = Path(path)
        values = load_json_object(file, LARGEST_PLAN, RequestError)
        names = [item.name for item in fields(cls)]
        if unknown := [name for name in values if name not in names]:
            raise RequestError(
                f"{file.name}: found the field {quoted(unknown[0])}, expected {', '.join(names)}; "
                "correct its name, or leave it out"
            )
        try:
            return read_record(cls, values)
        except Misfit as misfit:
            found = "nothing" if misfit.found is NOTHING else shown(misfit.found)
            raise RequestError(
                f"{file.name}: found {found} as {quoted('.'.join(misfit.place))}, expected "
                f"{misfit.expected}; {ADVICE}"
            ) from misfit

    @classmethod
    def of(cls, precision: PrecisionEntry, report: QuantizationReport) -> Plan:
        """The plan of a quantized folder, from its manifest."""
        rotation = precision.rotation
        if rotation is not None:
            tried = (*rotation.parts, *rotation.skipped)  # also single weights
            parts = tuple(part for part in PARTS if part in tried)
        return cls(
            name=precision.name,
            block_size=precision.block_size,
            head=precision.head,
            rotation=Rotated(seed=rotation.seed, parts=parts) if rotation is not None else None,
            calibration=precision.calibration,
            promise=precision.promise,
            formats={row.name: row.format for row in report.tensors}
            | dict.fromkeys(report.skipped, FULL),
        )

    def write(self, path: str | PathLike[str]) -> None:
        """Writes the file that ``read`` reads; RequestError where another file is."""
        text = json.dumps(to_json(self), indent=1, ensure_ascii=False)
        OutputFile(path).write(f"{text}\n".encode())

    def describe(
        self, rotation: RotationEntry | None, report: QuantizationReport
    ) -> PrecisionEntry:
        """The manifest's ``precision`` of what was written by this plan."""
        return PrecisionEntry(
            name=self.name,
            block_size=self.block_size,
            head=self.head,
            rotation=rotation,
            calibration=self.calibration,
            promise=self.promise,
            report=report,
        )

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
            written = (named.formats, named.with_lopsided_rows().formats)  # by what can be rotated
            if self.formats in written and named.rotation == self.rotation:
                return replace(named, calibration=self.calibration, promise=self.promise)
        if set(self.formats.values()) <= {FULL}:
            return Plan(name=FULL, formats=self.formats)  # nothing is done to the model at all
        return replace(self, name=MIXED, block_size=None, head=None, reasons=None)

    def with_lopsided_rows(self) -> Plan:
        """For rows of activations with the outliers that a rotation of the stream would spread."""
        lopsided = {EVEN: LOPSIDED}
        formats = {name: lopsided.get(found, found) for name, found in self.formats.items()}
        return replace(self, formats=formats)

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
        return FULL, selected.obstacle
    fitted = selected.fitted(find_format(wanted))
    if isinstance(fitted, str):
        return FULL, fitted
    if fitted.name != wanted:
        return fitted.name, fitted.note
    return wanted, None
