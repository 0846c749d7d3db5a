"""Copies of model folders with other files in them, and a manifest that agrees."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from pocketlm.export.folder import MANIFEST, ModelFolder
from pocketlm.export.manifest import manifest_bytes
from pocketlm.export.verified import file_sha256


def with_files(folder: ModelFolder, to: Path, files: Mapping[str, str]) -> ModelFolder:
    """Copies ``folder`` to ``to``, adds or replaces ``files`` (name, text), and opens the copy."""
    shutil.copytree(folder.path, to)
    manifest = json.loads((to / MANIFEST).read_text())
    for name, text in files.items():
        (to / name).write_text(text, encoding="utf-8")
        size = (to / name).stat().st_size
        manifest["files"][name] = {"bytes": size, "sha256": file_sha256(to / name)}
    (to / MANIFEST).write_bytes(manifest_bytes(manifest))
    return ModelFolder.open(to)
