"""Copies of model folders with other files or another manifest, and the report that one has."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pocketlm.export.folder import MANIFEST, ModelFolder
from pocketlm.export.manifest import FileEntry, Manifest, QuantizationReport
from pocketlm.export.manifest_file import manifest_bytes
from pocketlm.export.verified import file_sha256


def with_files(folder: ModelFolder, to: Path, files: Mapping[str, str]) -> ModelFolder:
    """Copies ``folder`` to ``to``, adds or replaces ``files`` (name, text), and opens the copy."""
    shutil.copytree(folder.path, to)
    entries = {}
    for name, text in files.items():
        (to / name).write_text(text, encoding="utf-8")
        entries[name] = file_entry(to / name)
    return with_manifest(to, replace(folder.manifest, files=folder.files | entries))


def with_manifest(to: Path, manifest: Manifest) -> ModelFolder:
    """Opens the folder ``to`` with this manifest."""
    (to / MANIFEST).write_bytes(manifest_bytes(manifest))
    return ModelFolder.open(to)


def file_entry(file: Path) -> FileEntry:
    """What a manifest says of ``file``."""
    return FileEntry(bytes=file.stat().st_size, sha256=file_sha256(file))


def report_of(folder: ModelFolder) -> QuantizationReport:
    """What quantization did to a folder that was quantized."""
    report = folder.manifest.precision.report
    assert report is not None
    return report
