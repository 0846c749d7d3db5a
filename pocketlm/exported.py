"""Exports a checkpoint once, and finds the result in the cache folder from then on."""

from __future__ import annotations

import atexit
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pocketlm import __version__
from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.errors import ModelFolderError, PocketLMError, missing_extra
from pocketlm.export.folder import MANIFEST, ModelFolder, cache_folder

DEMO_CHECKPOINT = Path(__file__).parent / "demo"


def export_once(
    checkpoint: str | Path | None,
    precision: str,
    tokenizer: str | Path | None,
    on_export: Callable[[Path], dict[str, Any]] | None,
) -> ModelFolder:
    """The model folder of ``checkpoint`` (None: the demo) in ``precision``, exported if need be.

    Without a writable cache folder it goes to a temporary folder that is removed at exit.
    """
    opened = open_checkpoint(checkpoint or DEMO_CHECKPOINT, tokenizer)
    files = [*opened.files, *(opened.tokenizer.files if opened.tokenizer else ())]
    key = _key(files, precision, json.dumps(opened.generation_config, sort_keys=True))
    name = f"{'demo' if checkpoint is None else opened.path.stem}-{precision}-{key}"
    out = _models_folder() / name
    if (found := _sound(out)) is not None:
        return found
    options = on_export(out) if on_export else {}
    try:
        # A damaged folder is ours to replace: nobody but this cache wrote it.
        return _exporter()(opened, out, precision, force=(out / MANIFEST).is_file(), **options)
    except ModelFolderError:
        # Another process may have finished the same export in the meantime.
        if (found := _sound(out)) is not None:
            return found
        raise


def _sound(folder: Path) -> ModelFolder | None:
    """The model folder at ``folder`` if it is complete and as it was written."""
    if not (folder / MANIFEST).is_file():
        return None
    try:
        found = ModelFolder.open(folder)
        found.verify()
    except ModelFolderError:
        return None
    return found


def _exporter() -> Callable[..., ModelFolder]:
    """Imported only for an export: what it needs is an extra, and takes time and memory."""
    try:
        from pocketlm.quantize.run import export_checkpoint
    except ImportError as error:
        if isinstance(error, PocketLMError):
            raise
        raise missing_extra("export", "exporting a checkpoint", error) from error
    return export_checkpoint


def _key(files: list[Path], *others: str) -> str:
    """Changes with the checkpoint's files, the precision and the version of pocketlm."""
    parts = [__version__, *others]
    for file in files:
        status = file.stat()
        parts += [str(file.resolve()), str(status.st_size), str(status.st_mtime_ns)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _models_folder() -> Path:
    cache = cache_folder()
    if cache is not None:
        models = cache / "models"
        try:
            models.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=models):
                return models
        except OSError:
            pass
    temporary = Path(tempfile.mkdtemp(prefix="pocketlm-"))
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    return temporary
