"""What each weight of a model could be: its formats, their bytes, and the KL that each would add.

    options = options_of(model, feedbacks, windows)
    options["h.0.mlp.c_fc.weight"]    # [Option("int4-block128", 1_234_000, 2e-5), …]

What one weight's rounding adds is measured: the rest of the network is run with that weight in
``PROBE`` and all others in full precision. Every layer runs once, over the streams of all weights
before it, so that one layer is in memory at a time. Another format adds as much more or less as its
error does in the weight's own objective tr(E H Eᵀ), H the Hessian of its inputs: KL is quadratic in
small errors. The KL of several weights is the sum of each (benchmarks/NOTES.md shows how nearly).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ..export.blas import single_threaded_products
from ..export.external_data import most_bytes
from ..export.observer import Observer
from ..export.output_file import OutputFile
from ..export.strict_json import LARGEST_INDEX, load_json_object
from ..export.threads import default_threads
from .calibration import Calibrated
from .feedback import Feedbacks
from .fidelity import Progress, Windows, chunks, mean_kl, run_rows
from .formats import Format, find_format
from .layerwise import OpenPart, Part, Values, split
from .precisions import FULL
from .select import Selected, select
from .statistics import StatisticsError
from .weights import Floats, LinearWeight

PROBE = "int4-block64"
# From small to large; W8A8 is not among them: its activations lose what no objective of weights
# tells, and blocks of 8 bits have less KL for as many bytes.
LADDER = (
    "int4-block128",
    "int4-block128-zp",
    "int4-block64",
    "int4-block64-zp",
    "int4-block32",
    "int4-block32-zp",
    "int8-block128",
    "int8-block32",
    FULL,
)
# Of the windows that were calibrated on: every weight runs through all layers behind it.
SENSITIVITY_ROWS, SENSITIVITY_TOKENS = 2, 256
FILE = "options.json"


@dataclass(frozen=True)
class Option:
    """A format that a weight can have."""

    format: str
    num_bytes: int
    kl: float  # nats per token that it adds


Options = dict[str, list[Option]]  # by name of the weight


def kept_options(found: Calibrated, observer: Observer) -> Options:
    """Those of what was calibrated, from the file beside its statistics, or measured and put there.

    A file of other statistics, or of other formats than today's, is replaced.
    """
    windows = found.seen[-SENSITIVITY_ROWS:, :SENSITIVITY_TOKENS]
    asked = json.dumps([found.statistics.identity, windows.tolist(), PROBE, *LADDER])
    key = hashlib.sha256(asked.encode()).hexdigest()
    file = found.folder / FILE
    if file.is_file():
        stored = load_json_object(file, LARGEST_INDEX, StatisticsError)
        if stored.get("key") == key:
            return _read(stored, file)
    observer.message("measuring what each weight adds when it is rounded")
    options = options_of(found.model, found.feedbacks, windows)
    listed = {name: [astuple(option) for option in some] for name, some in options.items()}
    content = json.dumps({"key": key, "options": listed}, indent=1).encode()
    OutputFile(file, lambda data: b'"key"' in data[:100]).write(content)
    return options


def _read(stored: dict[str, Any], file: Path) -> Options:
    try:
        return {
            str(name): [Option(str(f), int(size), float(kl)) for f, size, kl in some]
            for name, some in stored["options"].items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StatisticsError(
            f"{file}: found no complete record ({error}), expected what a search measured; the "
            "file was changed - remove it"
        ) from error


def options_of(
    model: ir.Model,
    feedbacks: Feedbacks,
    windows: Windows,
    progress: Progress = lambda done, total: None,
) -> Options:
    """What every weight of ``model`` (float32, rotated, lazy) could be, and what that would add.

    ``windows`` are token ids (rows, window); their products need not have been measured.
    """
    weights = {name: one for name, one in select(model).items() if one.obstacle is None}
    probes = {name: _fitted(one, PROBE) for name, one in weights.items()}
    rounded = {
        name: partial(_as_stored, probe, weights[name].weight, feedbacks)
        for name, probe in probes.items()
        if probe is not None
    }
    measured = sensitivities(model, windows, rounded, progress)
    return {
        name: _options(selected, probes[name], measured.get(name, 0.0), feedbacks)
        for name, selected in weights.items()
    }


def _options(
    selected: Selected, probe: Format | None, measured: float, feedbacks: Feedbacks
) -> list[Option]:
    weight = selected.weight
    full = Option(FULL, weight.weight.nbytes, 0.0)
    if probe is None:
        return [full]
    fitted = {one.name: one for name in LADDER if (one := _fitted(selected, name)) is not None}
    hessian = feedbacks.hessian(weight.name)
    sizes, objectives = {}, {}
    for name, one in {**fitted, probe.name: probe}.items():
        # Nearest rounding on both sides: error feedback lowers all formats about alike.
        after, sizes[name] = unpacked(one, weight)
        objectives[name] = objective(weight, after, hessian)
    whole = objectives[probe.name] or 1.0
    return [
        *(Option(name, sizes[name], measured * objectives[name] / whole) for name in fitted),
        full,
    ]


def _fitted(selected: Selected, name: str) -> Format | None:
    """The format as the weight can have it, None if it must stay as it is."""
    if name == FULL:
        return None
    fitted = selected.fitted(find_format(name))
    return None if isinstance(fitted, str) else fitted


def unpacked(
    number_format: Format, weight: LinearWeight, feedbacks: Feedbacks | None = None
) -> tuple[Floats, int]:
    """(N, K): what is left of a weight once it has been packed, with error feedback or without.

    And the bytes that its parts take in a file, at most.
    """
    found: list[Floats] = []
    feedback = feedbacks.of(weight.name) if feedbacks is not None else None
    parts = number_format.packed(
        weight, 0, weight.out_features, lambda before, after: found.append(after.copy()), feedback
    )
    return np.concatenate(found), sum(most_bytes(part.nbytes) for part in parts.values())


def _as_stored(number_format: Format, weight: LinearWeight, feedbacks: Feedbacks) -> Floats:
    after, _ = unpacked(number_format, weight, feedbacks)
    return after if weight.transposed else np.ascontiguousarray(after.T)


def objective(weight: LinearWeight, after: Floats, hessian: Floats | None) -> float:
    """tr(E H Eᵀ) of the error E (N, K); of inputs that were never measured, H is one."""
    total = 0.0
    for first, rows in weight.runs(0, weight.out_features):
        error = rows - after[first : first + len(rows)]
        spread = error if hessian is None else error @ hessian
        total += float(np.einsum("nk,nk->", spread, error, dtype=np.float64))
    return total


def sensitivities(
    model: ir.Model,
    windows: Windows,
    rounded: Mapping[str, Callable[[], Floats]],
    progress: Progress = lambda done, total: None,
) -> dict[str, float]:
    """KL in nats per token that each weight adds with the values that ``rounded`` gives.

    Those are of the shape that the weight is stored in.

    Streams of all variants, (rows, window, D) each, are held while the layers pass.
    """
    streams: dict[str, Values] = {"": {}}
    *parts, head = split(model)
    for number, part in enumerate(parts):
        progress(number, len(parts) + 1)
        with part.open() as opened:
            begun = {
                name: run_rows(opened, windows, streams[""], {name: values})
                for name, values in _replacements(part, rounded)
            }
            streams = {
                name: run_rows(opened, windows, values, _again(name, part, rounded))
                for name, values in streams.items()
            } | begun
    progress(len(parts), len(parts) + 1)
    with head.open() as opened:
        streams |= {
            name: streams[""] for name, _ in _replacements(head, rounded) if name not in streams
        }
        kl = dict.fromkeys(streams, 0.0)
        for rows in chunks(windows):
            reference = _logits(opened, windows, streams[""], rows, {})
            for name, values in streams.items():
                if name:
                    replaced = _again(name, head, rounded)
                    other = _logits(opened, windows, values, rows, replaced)
                    kl[name] += mean_kl(reference, other) * len(windows[rows]) / len(windows)
    del kl[""]
    return kl


def _replacements(
    part: Part, rounded: Mapping[str, Callable[[], Floats]]
) -> Iterator[tuple[str, Floats]]:
    """Of the weights of a part those that are to be rounded, as they are stored."""
    names = [str(weight.name) for weight in part.weights() if str(weight.name) in rounded]
    with single_threaded_products(), ThreadPoolExecutor(default_threads()) as pool:
        found = list(pool.map(lambda name: rounded[name](), names))
    yield from zip(names, found, strict=True)


def _again(name: str, part: Part, rounded: Mapping[str, Callable[[], Floats]]) -> dict[str, Floats]:
    """A tied table is met twice: what to replace in the head of the variant of that name."""
    return dict(_replacements(part, {name: rounded[name]} if name else {}))


def _logits(
    head: OpenPart, windows: Windows, values: Values, rows: slice, replaced: Values
) -> Floats:
    """(R, V)."""
    some = {name: array[rows] for name, array in values.items()}
    (logits,) = head.run(windows[rows], some, replaced).values()
    return logits.reshape(-1, logits.shape[-1])
