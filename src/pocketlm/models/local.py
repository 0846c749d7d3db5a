"""Model folders in the cache of what was exported from this disk: where they are, and whether.

What the cache folder holds is described in ``store``; this is as much of it as a start needs that
finds its model made.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pocketlm
from pocketlm.export.errors import CheckpointError, ModelFolderError
from pocketlm.export.folder import MANIFEST, ModelFolder
from pocketlm.export.strict_json import load_json_object
from pocketlm.models.fingerprint import fingerprint
from pocketlm.models.reference import DEMO

DEFAULT_PRECISION = "int8"
LARGEST_RECORD = 10_000_000  # bytes of a JSON file of ours
SOURCE = "pocketlm-source.json"  # in a model folder of models/: where its checkpoint lies


def lock_file(root: Path, name: str) -> Path:
    """The lock of what is made under ``name``."""
    return root / "locks" / f"{name}.lock"


def sound_model(folder: Path) -> ModelFolder | None:
    """The model folder at ``folder`` if it is complete and as it was written."""
    if not (folder / MANIFEST).is_file():
        return None
    try:
        found = ModelFolder.open(folder)
        found.verify()
    except ModelFolderError:
        return None
    return found


@dataclass(frozen=True)
class LocalModel:
    """The model folder of a checkpoint on this disk, or of the demo, made or not."""

    name: str  # for people: of the checkpoint's folder
    precision: str
    key: str  # KEY in the names of ``store``
    source: Path | None  # the checkpoint's place, absolute; None for the demo

    def lock(self, root: Path) -> Path:
        """Held while it is made or removed, whatever its name is there."""
        return lock_file(root, f"{self.precision}-{self.key}")

    def place(self, root: Path) -> Path:
        """Where it is, perhaps by the name that its checkpoint had before, or will be."""
        ending = f"-{self.precision}-{self.key}"
        there = sorted((root / "models").glob(f"[!.]*{ending}"))
        return there[0] if there else root / "models" / f"{self.name}{ending}"

    def find(self, root: Path) -> ModelFolder | None:
        """It, if it is there and sound; a checkpoint that was moved is noted at its new place."""
        found = sound_model(self.place(root))
        if found and self.source and not os.path.exists(source_of(found.path) or ""):
            self.note(found.path)
        return found

    def note(self, folder: Path) -> None:
        """Keeps the checkpoint's place with its model, as far as the cache can be written."""
        if self.source is not None:
            with contextlib.suppress(OSError):
                write_record(folder / SOURCE, {"path": str(self.source)})


def source_of(folder: Path) -> str | None:
    """What ``LocalModel.note`` has written."""
    with contextlib.suppress(ModelFolderError):
        path = load_json_object(folder / SOURCE, LARGEST_RECORD, ModelFolderError).get("path")
        return path if isinstance(path, str) else None
    return None


def write_record(file: Path, record: dict[str, str]) -> None:
    """Writes a file whole or not at all; raises OSError."""
    temporary = file.with_name(f".{os.urandom(16).hex()}")
    try:
        temporary.write_text(json.dumps(record), "utf-8")
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def model_key(files: Iterable[Path], *others: str, with_times: bool = True) -> str:
    """Changes with a checkpoint's files, what else is said, and the version of pocketlm."""
    parts = [pocketlm.__version__, *others, fingerprint(files, with_times=with_times)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


# The demo ----------------------------------------------------------------------------------------


def demo_model(precision: str | None) -> LocalModel:
    """The demo's model folder, made or not, as it is without a tokenizer from elsewhere."""
    precision = precision or DEFAULT_PRECISION
    # Without times: a frozen application in one file unpacks it anew at every start.
    key = model_key(sorted(demo_checkpoint().glob("*.*")), precision, with_times=False)
    return LocalModel(DEMO, precision, key, None)


def carried_demo(precision: str | None) -> ModelFolder | None:
    """The demo's model folder in a frozen application, into which PyInstaller's hook has put it."""
    folder = Path(pocketlm.__file__).with_name(f"{DEMO}-{precision or DEFAULT_PRECISION}")
    return ModelFolder.open(folder) if (folder / MANIFEST).is_file() else None


def demo_checkpoint() -> Path:
    """The demo's folder; of a package in an archive it is unpacked while this process runs."""
    folder = Path(pocketlm.__file__).with_name(DEMO)
    return folder if folder.is_dir() else _unpacked_demo()


@functools.cache
def _unpacked_demo() -> Path:
    import atexit
    from importlib import resources

    kept = contextlib.ExitStack()
    atexit.register(kept.close)
    folder = kept.enter_context(resources.as_file(resources.files("pocketlm") / DEMO))
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: found no demo model, expected its files beside the program's; whoever "
            'makes this application has to freeze it where "pocketlm[export]" is installed, and, '
            'for another precision than int8, to write "import onnx_ir" in its program'
        )
    return folder
