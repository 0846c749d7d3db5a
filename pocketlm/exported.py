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
    try:
        from pocketlm.export.checkpoint import open_checkpoint
        from pocketlm.quantize.run import export_checkpoint
    except ImportError as error:
        if isinstance(error, PocketLMError):
            raise
        raise missing_extra("export", "exporting a checkpoint", error) from error

    opened = open_checkpoint(checkpoint or DEMO_CHECKPOINT, tokenizer)
    files = [*opened.files, *([opened.tokenizer_json] if opened.tokenizer_json else [])]
    key = _key(files, precision, json.dumps(opened.generation_config, sort_keys=True))
    name = f"{'demo' if checkpoint is None else opened.path.stem}-{precision}-{key}"
    out = _models_folder() / name
    if not (out / MANIFEST).is_file():
        options = on_export(out) if on_export else {}
        try:
            return export_checkpoint(opened, out, precision, **options)
        except ModelFolderError:
            # Another process may have finished the same export in the meantime.
            if not (out / MANIFEST).is_file():
                raise
    return ModelFolder.open(out)


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
