"""What each peer makes of a checkpoint, kept until that, the adapter or what it runs with changes.

models/CHECKPOINT/PEER-PRECISION-KEY/    the peer's files, and conversion.json
models/CHECKPOINT/PEER-PRECISION-KEY.log what its converter said
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import pkgutil
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ... import export, quantize, runtime
from ...export.placing import ChangedMeanwhile, rename_without_replacing
from ...export.publishing import folder_beside
from ...export.quantities import size_text
from . import adapters, ours, protocol, reference
from .environments import PeerError, child_environment, environment, run_logged

CONVERSION_SECONDS = 3600
RECORD = "conversion.json"
REQUIREMENTS = Path(__file__).with_name("requirements")
PROTOCOL = Path(protocol.__file__)
OUR_EXPORTER = [Path(package.__path__[0]) for package in (export, runtime, quantize)]
# Not weights: a tokenizer's files, and what describes the rest.
BESIDE_WEIGHTS = re.compile(r".*\.(json|txt|jinja|md|log)|openvino_(de)?tokenizer\..*")


@dataclass(frozen=True)
class Peer:
    """An adapter, and where it runs; see ``adapters`` for the names of its precisions."""

    name: str
    precisions: Mapping[str, str]
    adapter: str  # as ``protocol`` takes it
    requirements: Path | None  # of its environment; None: this one
    calibrated: Mapping[str, str] = field(default_factory=dict)
    beside: Sequence[Path] = ()  # other files of ours that its adapter loads
    same: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Its file's name: what ``--peer`` takes."""
        return Path(self.adapter.removesuffix(".py")).name.rpartition(".")[2]

    def level(self, precision: str) -> str:
        """The precision of ours that one of its own is compared with."""
        return {**self.precisions, **self.calibrated}[precision]

    @property
    def sources(self) -> list[Path]:
        """The files that decide what its conversion is."""
        if self.adapter.endswith(".py"):
            requirements = [self.requirements] if self.requirements else []
            return [Path(self.adapter), *self.beside, *requirements]
        return [file for folder in OUR_EXPORTER for file in sorted(folder.rglob("*.py"))]

    def interpreter(self, root: Path) -> Path:
        """The python that runs it. Raises PeerError where its environment cannot be made."""
        if self.requirements is None:
            return Path(sys.executable)
        try:
            return environment(root / "environments" / self.key, self.requirements)
        except PeerError as error:
            raise PeerError(f"not installed: {error}") from error


@dataclass(frozen=True)
class Contender:
    """A peer in one of its precisions, ready to be started."""

    peer: Peer
    precision: str
    python: Path
    folder: Path
    note: str

    def command(self, threads: int) -> list[str]:
        """What serves it."""
        serve = ["serve", str(self.folder), self.precision, str(threads)]
        return [str(self.python), "-P", str(PROTOCOL), self.peer.adapter, *serve]

    @property
    def weights_bytes(self) -> int:
        """Its files but tokenizers and descriptions."""
        return sum(
            file.stat().st_size
            for file in self.folder.rglob("*")
            if file.is_file() and not BESIDE_WEIGHTS.fullmatch(file.name)
        )


def our_peer(precisions: Mapping[str, str] = ours.PRECISIONS) -> Peer:
    """pocketlm itself."""
    return Peer(ours.NAME, precisions, ours.__name__, None)


def reference_peer() -> Peer:
    """pocketlm as the judge of the others; opens what ``our_peer`` converts."""
    return Peer(reference.NAME, reference.PRECISIONS, reference.__name__, None)


def known_peers() -> dict[str, Peer]:
    """All that have a file in ``adapters``, by its name."""
    found = {}
    for module in pkgutil.iter_modules(adapters.__path__):
        adapter = importlib.import_module(f"{adapters.__name__}.{module.name}")
        requirements = REQUIREMENTS / f"{module.name}.txt"
        calibrated = getattr(adapter, "CALIBRATED", {})
        file = str(adapter.__file__)
        beside = getattr(adapter, "BESIDE", ())
        more = (calibrated, beside, getattr(adapter, "SAME", {}))
        peer = Peer(adapter.NAME, adapter.PRECISIONS, file, requirements, *more)
        found[module.name] = peer
    return found


def convert(
    peer: Peer,
    precision: str,
    checkpoint: Path,
    root: Path,
    our_folder: Path | None = None,
    *,
    needed_bytes: float = 0,
) -> Contender:
    """The peer's own form of ``checkpoint``; ``our_folder`` is ours of the same level.

    Raises PeerError with the converter's last words, or where ``needed_bytes`` are not free.
    """
    python = peer.interpreter(root)
    sources = (file.read_text("utf-8") for file in peer.sources)
    named = map(_identity, _named(precision))
    key = _digest([_identity(checkpoint), precision, *named, *sources, str(our_folder)])
    folder = root / "models" / _digest([_identity(checkpoint)])
    spelled = re.sub(r"[^.0-9A-Za-z_]+", "-", precision).strip("-")
    folder /= f"{peer.key}-{spelled:.60}-{key}"
    if not (folder / RECORD).is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(root).free) < needed_bytes:
            raise PeerError(
                f"not converted: found {size_text(free)} free, expected "
                f"{size_text(needed_bytes)}; make room, or use --discard"
            )
        program = [str(python), "-P", str(PROTOCOL), peer.adapter]
        _fill(folder, program, precision, [str(checkpoint), str(our_folder)])
    note = json.loads((folder / RECORD).read_text())["note"]
    return Contender(peer, precision, python, folder, note)


def _fill(folder: Path, program: list[str], precision: str, inputs: list[str]) -> None:
    """Converts beside ``folder`` and renames, so that a folder is complete."""
    checkpoint, our_folder = inputs
    with folder_beside(folder) as partial:
        command = [*program, "convert", checkpoint, str(partial), precision, our_folder]
        log = folder.with_name(f"{folder.name}.log")
        try:
            said = run_logged(command, log, CONVERSION_SECONDS, child_environment())
        except PeerError as error:
            raise PeerError(f"not converted: {error}") from error
        (partial / RECORD).write_text(said)
        with contextlib.suppress(ChangedMeanwhile):  # another process was faster
            rename_without_replacing(partial, folder)


def _named(precision: str) -> Iterable[Path]:
    """Files and folders among options, such as a plan, whose content decides as well."""
    return (path for path in map(Path, shlex.split(precision)) if path.exists())


def _identity(place: Path) -> str:
    """Files with sizes and times: a digest of gigabytes would take longer than a round."""
    inside = place.iterdir() if place.is_dir() else [place]
    files = sorted(file for file in inside if file.is_file())
    return repr([(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files])


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
