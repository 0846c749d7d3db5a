"""The model folder: what export writes and the runtime opens.

    model.onnx  model.onnx_data  config.json  tokenizer.json  generation_config.json  pocketlm.json

``pocketlm.json`` (the manifest, format version 1) names every other file with its size and SHA-256,
the source, the decoder's sizes, the precision plan and the quantization report. It is written
last; a folder without it is not a model folder. Lean: the standard library only, since the runtime
imports this.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ModelFolderError
from .strict_json import load_json_object, quoted, shown
from .verified import VerifiedFiles, file_identity, file_sha256

MANIFEST = "pocketlm.json"
# Files without which a folder cannot be run or quantized; others may be listed beside them.
REQUIRED_FILES = (
    "model.onnx",
    "model.onnx_data",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
)
FORMAT_VERSION = 1
MINIMUM_ONNXRUNTIME = "1.31"
LARGEST_MANIFEST = 50_000_000  # bytes; one line per tensor of a 405B model is under 1 MB
LARGEST_GRAPH = 200_000_000  # bytes of model.onnx; weights are elsewhere
PAGE = 4096
# What a graph does with the KV cache: append in place, or return a copy that is longer.
IN_PLACE, GROWING = "in-place", "growing"


@dataclass(frozen=True)
class DecoderShape:
    """The sizes a runtime needs to feed a decoder graph."""

    vocab_size: int
    context_length: int
    hidden_size: int
    num_layers: int
    num_heads: int
    kv_heads: int
    head_size: int

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes one token takes in a float32 KV cache."""
        return 2 * 4 * self.num_layers * self.kv_heads * self.head_size


@dataclass(frozen=True)
class ModelFolder:
    """A complete folder whose manifest has been read; ``verify`` compares the files with it."""

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> ModelFolder:
        """Reads the manifest and compares names and sizes. ModelFolderError says what is wrong."""
        path = Path(path)
        if not path.is_dir():
            found = "a file" if path.exists() else "nothing"
            raise ModelFolderError(
                f"{path}: found {found}, expected a model folder; "
                f"make one with: pocketlm export CHECKPOINT {path}"
            )
        if not (path / MANIFEST).is_file():
            raise ModelFolderError(_not_a_model_folder(path))
        manifest = load_json_object(path / MANIFEST, LARGEST_MANIFEST, ModelFolderError)
        _check_manifest(path / MANIFEST, manifest)
        folder = cls(path, manifest)
        folder._check_sizes()
        return folder

    @property
    def shape(self) -> DecoderShape:
        """Sizes of the decoder."""
        return DecoderShape(**self.manifest["decoder"])

    @property
    def graph_cache(self) -> str:
        """``IN_PLACE`` or ``GROWING``: the kind of KV cache the graph was made for."""
        return str(self.manifest.get("graph", {}).get("cache", IN_PLACE))

    @property
    def files(self) -> dict[str, dict[str, Any]]:
        """``{name: {"bytes": size, "sha256": hex}}`` of every file but the manifest."""
        return self.manifest["files"]  # type: ignore[no-any-return]

    @property
    def weights_bytes(self) -> int:
        """Size of the external data file."""
        return int(self.files["model.onnx_data"]["bytes"])

    def _check_sizes(self) -> None:
        for name, entry in self.files.items():
            file = self.path / name
            if not file.is_file():
                raise ModelFolderError(
                    f"{file}: missing, expected a file of {entry['bytes']} bytes as listed in "
                    f"{MANIFEST}; export the model again"
                )
            size = file.stat().st_size
            if size != entry["bytes"]:
                raise ModelFolderError(
                    f"{file}: found {size} bytes, expected {entry['bytes']} as listed in "
                    f"{MANIFEST}; the file was changed or cut off - export the model again"
                )

    def verify(self, *, remembered: bool = True) -> None:
        """Compares sizes and SHA-256 with the manifest; ModelFolderError names the first wrong.

        With ``remembered``, a file whose identity (device, inode, size, times) was verified before
        is not read again; the memory is a file in the cache folder, and may be absent.
        """
        self._check_sizes()
        memory = VerifiedFiles.load() if remembered else None
        for name, entry in self.files.items():
            file = self.path / name
            identity = file_identity(file, entry["sha256"])
            if memory is not None and identity in memory.identities:
                continue
            found = file_sha256(file)
            if found != entry["sha256"]:
                raise ModelFolderError(
                    f"{file}: found SHA-256 {found[:16]}…, expected {entry['sha256'][:16]}… as "
                    f"listed in {MANIFEST}; the file was changed - export the model again"
                )
            if memory is not None:
                memory.add(identity)
        if memory is not None:
            memory.save()


def _not_a_model_folder(path: Path) -> str:
    names = sorted(entry.name for entry in path.iterdir())
    if "config.json" in names and any(name.endswith(".safetensors") for name in names):
        return (
            f"{path}: found a checkpoint, expected a model folder with {MANIFEST}; "
            f"export it first: pocketlm export {path} OUT"
        )
    if any(name.endswith(".onnx") for name in names):
        return (
            f"{path}: found an ONNX file without {MANIFEST}, expected a folder of pocketlm's; "
            "foreign ONNX files are not opened - export the checkpoint with: "
            "pocketlm export CHECKPOINT OUT"
        )
    found = ", ".join(names[:5]) or "nothing"
    return (
        f"{path}: found {found}, expected a model folder with {MANIFEST}; "
        "make one with: pocketlm export CHECKPOINT OUT"
    )


def _check_manifest(file: Path, manifest: dict[str, Any]) -> None:
    def wrong(found: object, expected: str, advice: str) -> ModelFolderError:
        return ModelFolderError(f"{file}: found {found}, expected {expected}; {advice}")

    version = manifest.get("format_version")
    if version != FORMAT_VERSION or isinstance(version, bool):
        advice = "export the model again with this version of pocketlm, or update pocketlm"
        raise wrong(f"format_version {version!r}", str(FORMAT_VERSION), advice)
    again = "the manifest is damaged - export the model again"
    files = manifest.get("files")
    if not isinstance(files, dict) or not files.keys() >= set(REQUIRED_FILES):
        raise wrong(
            "an incomplete list of files", f"'files' with {', '.join(REQUIRED_FILES)}", again
        )
    for name, entry in files.items():
        plain = name == os.path.basename(name) and name not in ("", ".", "..", MANIFEST)
        if not plain or "\\" in name or len(name) > 100:
            raise wrong(f"the file name {quoted(name)}", "a plain name in the folder", again)
        if (
            not isinstance(entry, dict)
            or not isinstance(entry.get("bytes"), int)
            or not isinstance(entry.get("sha256"), str)
        ):
            raise wrong(f"{entry!r:.80} for {name}", "its 'bytes' and 'sha256'", again)
    sizes = manifest.get("decoder")
    names = {field.name for field in dataclasses.fields(DecoderShape)}
    if not isinstance(sizes, dict) or sizes.keys() != names:
        raise wrong(f"'decoder' {sizes!r:.80}", f"the sizes {', '.join(sorted(names))}", again)
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or not 0 < size < 1 << 31:
            raise wrong(f"decoder.{name} {size!r:.40}", "a positive integer", again)
    graph = manifest.get("graph", {})  # absent where an architecture of ours declared the graph
    if not isinstance(graph, dict) or graph.get("cache", IN_PLACE) not in (IN_PLACE, GROWING):
        raise wrong(f"'graph' {shown(graph)}", f"its 'cache' {IN_PLACE} or {GROWING}", again)
    _check_provenance(manifest, wrong, again)


def _check_provenance(
    manifest: dict[str, Any], wrong: Callable[[object, str, str], ModelFolderError], again: str
) -> None:
    kinds: dict[str, type] = {
        "architecture": str,
        "num_parameters": int,
        "source.format": str,
        "source.files": dict,
        "precision.name": str,
    }
    for path, kind in kinds.items():
        value: Any = manifest
        for name in path.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        if not isinstance(value, kind) or (isinstance(value, int) and value < 1):
            expected = "a positive int" if kind is int else f"a {kind.__name__}"
            raise wrong(f"{path} {shown(value)}", expected, again)


def describe_files(folder: Path, known: dict[str, str]) -> dict[str, dict[str, Any]]:
    """The manifest's ``files``; ``known`` has hashes computed while writing."""
    return {
        file.name: {
            "bytes": file.stat().st_size,
            "sha256": known.get(file.name) or file_sha256(file),
        }
        for file in sorted(folder.iterdir())
        if file.name != MANIFEST
    }
