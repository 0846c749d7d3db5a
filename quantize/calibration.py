"""What roundings are chosen with: token windows, a model's statistics over them, and a check.

    with calibrated(Calibration(), declare, Rotated(), write_dreamer, observer) as found:
        found.feedbacks.of("h.0.mlp.c_fc.weight")     # for packing
        found.reference.divergence(folder)            # mean KL on what was not calibrated on

The windows are cut in two: on most of them the products are measured (``statistics``), on the rest
the finished model is compared with full precision. A model dreams in int8, which says nearly the
same as float32, many rows at a time, in a quarter of the memory.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ..export.cache_folder import cache_folder
from ..export.errors import RequestError
from ..export.external_data import weights_of
from ..export.folder import ModelFolder
from ..export.manifest import CalibrationEntry
from ..export.observer import Observer
from ..export.plan import forecast_text
from ..export.publishing import storage_errors
from ..export.writing import Decoder
from ..runtime.tokenizer import Tokenizer
from .dream import Windows, chat_openings, dream, window_for, windows_of
from .feedback import Feedbacks
from .fidelity import Reference
from .forecast import forecast
from .measuring import measure
from .plan import Rotated
from .precisions import UNSEEN, Calibration
from .rotation import Rotation
from .select import select
from .statistics import STATE, State, Statistics

SAMPLED_BYTES = 4096  # of each weight, to tell models apart
DREAM, TEXT = "dream", "text"

Declare = Callable[[], Decoder]  # the same float32 model every time, its weights lazy


@dataclass(frozen=True)
class Calibrated:
    """What was measured of ``model``, which is rotated, and whose weights are lazy."""

    model: ir.Model
    seen: Windows
    unseen: Windows
    statistics: Statistics
    folder: Path  # for what takes more room than memory has
    entry: CalibrationEntry

    @cached_property
    def feedbacks(self) -> Feedbacks:
        """Error feedback for the products that were measured."""
        tables = [name for name, one in select(self.model).items() if one.looked_up]
        return Feedbacks(self.statistics, tables)

    @cached_property
    def reference(self) -> Reference:
        """What the model in full precision says of the windows that were not calibrated on."""
        return Reference(self.model, self.unseen)


@contextmanager
def calibrated(
    calibration: Calibration,
    declare: Declare,
    rotation: Rotated | None,
    write_dreamer: Callable[[Path], ModelFolder],
    observer: Observer,
) -> Iterator[Calibrated]:
    """Measures the model that ``declare`` gives once it is rotated so, as it will be written.

    ``write_dreamer`` writes it in int8 to a folder. What was measured before the process was
    killed is not measured again. Raises what ``dream``, ``windows_of`` and ``measure`` raise.
    """
    decoder = declare()
    observer.message(f"calibrating takes {forecast_text(forecast(decoder.model, calibration))}")
    identity = {"model": _fingerprint(decoder.model)}
    if rotation != Rotated():
        identity["rotation"] = str(rotation)
    with _work_folder(calibration, str(identity)) as folder:
        place = folder / "statistics"
        if (place / STATE).is_file():  # before the model dreams
            State.read(place).check_same(place, identity)
        windows = _windows(calibration, decoder, folder, write_dreamer, observer)
        rows = min(max(1, UNSEEN // windows.shape[1]), len(windows) // 4)
        if not rows:
            raise RequestError(
                f"found {len(windows)} windows of {windows.shape[1]} tokens to calibrate on, "
                "expected at least 4, of which one is to verify with; add text"
            )
        seen, unseen = windows[:-rows], windows[-rows:]
        if rotation is not None:
            Rotation(rotation.seed, rotation.parts).apply(decoder.model)
        statistics = measure(
            decoder.model,
            seen,
            place,
            identity,
            partial(_told, observer, "measured", "parts of the model"),
        )
        yield Calibrated(decoder.model, seen, unseen, statistics, folder, _entry(calibration, seen))


def _entry(calibration: Calibration, seen: Windows) -> CalibrationEntry:
    return CalibrationEntry(
        kind=TEXT if calibration.files else DREAM,
        seed=None if calibration.files else calibration.seed,
        tokens=seen.size,
        digest=_digest(seen),
    )


def _told(observer: Observer, verb: str, what: str, done: int, total: int) -> None:
    if done in (0, total) or done % max(1, total // 8) == 0:
        observer.message(f"{verb} {done} of {total} {what}")


def _windows(
    calibration: Calibration,
    decoder: Decoder,
    folder: Path,
    write_dreamer: Callable[[Path], ModelFolder],
    observer: Observer,
) -> Windows:
    window = window_for(decoder.shape)
    count = calibration.tokens + UNSEEN
    if calibration.files:
        with tempfile.TemporaryDirectory() as place:
            file = Path(place) / "tokenizer.json"
            file.write_bytes(decoder.tokenizer_files["tokenizer.json"])
            return windows_of(calibration.files, Tokenizer.open(file), window, count)
    kept = folder / f"dream-{calibration.seed}-{count}.npy"
    if kept.is_file():
        found: Windows = np.load(kept, allow_pickle=False)
        return found
    with storage_errors(folder), tempfile.TemporaryDirectory(dir=folder) as place:
        dreamer = write_dreamer(Path(place) / "dreamer")
        windows = dream(
            dreamer,
            count,
            window,
            calibration.seed,
            chat_openings(dreamer),
            progress=partial(_told, observer, "dreamt", "tokens"),
        )
        written = Path(place) / kept.name
        np.save(written, windows)
        written.replace(kept)
    return windows


@contextmanager
def _work_folder(calibration: Calibration, identity: str) -> Iterator[Path]:
    """Where statistics lie: the one asked for stays, one in the cache goes once it was used.

    After an error or a kill it stays, so that the next run goes on there.
    """
    if calibration.folder is not None:
        with storage_errors(calibration.folder):
            calibration.folder.mkdir(parents=True, exist_ok=True)
        yield calibration.folder
        return
    root = cache_folder() or Path(tempfile.gettempdir()) / "pocketlm"
    asked = hashlib.sha256(f"{identity} {calibration}".encode()).hexdigest()
    folder = root / "calibration" / asked[:16]
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def _fingerprint(model: ir.Model) -> str:
    """SHA-256 of nodes, and of names, shapes and some numbers of every weight: tells models apart.

    Nodes, as one config may ask for another rotation of the same weights.
    """
    digest = hashlib.sha256()
    for node in model.graph:
        digest.update(f"{node.op_type} {node.name}\n".encode())
    for weight in weights_of(model):
        rows = max(1, min(SAMPLED_BYTES // max(1, weight.row_bytes), weight.num_rows))
        digest.update(f"{weight.name} {weight.shape.numpy()}".encode())
        digest.update(weight.rows(0, rows).tobytes()[:SAMPLED_BYTES])
    return digest.hexdigest()


def _digest(windows: Windows) -> str:
    return hashlib.sha256(np.ascontiguousarray(windows, "<i8").tobytes()).hexdigest()
