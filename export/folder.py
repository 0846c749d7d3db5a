"""The model folder: what export writes and the runtime opens, published whole or not at all.

    model.onnx  model.onnx_data  config.json  tokenizer.json  generation_config.json  pocketlm.json

``pocketlm.json`` (the manifest, format version 1) names every other file with its size and SHA-256,
the source, the decoder's sizes, the precision plan and the quantization report. It is written
last; a folder without it is not a model folder. Lean: the standard library only, since the runtime
imports this.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import hashlib
import json
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ModelFolderError, StorageError
from .strict_json import load_json_object, quoted, shown

MANIFEST = "pocketlm.json"
GRAPH_FILE = "model.onnx"
# Files without which a folder cannot be run or quantized; others may be listed beside them.
REQUIRED_FILES = (
    GRAPH_FILE,
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


def cache_names(num_layers: int) -> list[tuple[str, str]]:
    """(input, output) names in the graph of every layer's keys and values."""
    return [
        (f"past_key_values.{layer}.{kind}", f"present.{layer}.{kind}")
        for layer in range(num_layers)
        for kind in ("key", "value")
    ]


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
        memory = _VerifiedFiles.load() if remembered else None
        for name, entry in self.files.items():
            file = self.path / name
            identity = _identity(file, entry["sha256"])
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


# Publishing -------------------------------------------------------------------------------------


@contextlib.contextmanager
def publishing(out: str | Path, *, force: bool = False) -> Iterator[Path]:
    """A temporary sibling of ``out`` to write into, renamed to ``out`` when the block ends well.

    An existing non-empty ``out`` is refused unless ``force``; then it is replaced only after the
    new folder is complete, and only if it is a model folder. On any error, Ctrl-C included,
    the sibling is removed. The next run collects what a killed process left, or puts it back.
    Raises StorageError when the disk is full or the parent cannot be written.
    """
    out = Path(os.path.realpath(out))  # a link stays: what it points to is replaced
    _bring_back(out)
    check_target(out, force)
    with _beside(out) as partial:
        yield partial
        with storage_errors(out):
            for file in sorted(partial.iterdir(), key=lambda file: file.name == MANIFEST):
                sync(file)
            sync(partial)
            _replace(partial, out)


@contextlib.contextmanager
def working_beside(out: str | Path, *, force: bool = False) -> Iterator[Path]:
    """A temporary sibling of ``out`` for files on the way to it; removed in every case.

    Refuses an ``out`` that ``publishing`` will refuse, before anything is done for it.
    """
    out = Path(os.path.realpath(out))
    _bring_back(out)
    check_target(out, force)
    with _beside(out) as folder:
        yield folder


@contextlib.contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A locked temporary sibling; what a killed process left of others is collected first."""
    with storage_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        _collect_leftovers(out)
        partial = out.parent / f".{out.name}.partial-{uuid.uuid4().hex[:12]}"
        partial.mkdir()
    lock = _hold(partial)
    try:
        yield partial
    finally:
        if lock is not None:
            os.close(lock)
        shutil.rmtree(partial, ignore_errors=True)


def check_target(out: Path, force: bool) -> None:
    """Raises ModelFolderError if a folder may not be published at ``out``."""
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise ModelFolderError(
            f"{out}: found a file, expected a folder to write to; choose another name"
        )
    if not any(out.iterdir()):
        return
    if not force:
        raise ModelFolderError(
            f"{out}: found a folder that is not empty, expected a new or empty one; "
            "choose another name, or replace it with --force"
        )
    if not (out / MANIFEST).exists():
        raise ModelFolderError(
            f"{out}: found files that pocketlm did not write, expected a model folder to replace; "
            "--force only replaces model folders - choose another name"
        )


def _replace(partial: Path, out: Path) -> None:
    """Renames ``partial`` to ``out``; an old folder is moved aside first and removed afterwards."""
    old = out.parent / f".{out.name}.partial-{uuid.uuid4().hex[:12]}-old"
    had_old = out.is_dir() and any(out.iterdir())
    try:
        if had_old:
            os.rename(out, old)
        elif out.is_dir():
            out.rmdir()
        os.rename(partial, out)
    except BaseException:  # Ctrl-C included
        if had_old and not out.exists():
            os.rename(old, out)
        raise
    sync(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _bring_back(out: Path) -> None:
    """Undoes a replacement that was killed between its two renames, when nothing was at ``out``."""
    for old in out.parent.glob(f".{glob.escape(out.name)}.partial-*-old"):
        if not os.path.lexists(out):
            with contextlib.suppress(OSError):
                os.rename(old, out)


def _hold(folder: Path) -> int | None:
    """Locks ``folder`` for the life of this process, so that no other run collects it."""
    if sys.platform == "win32":
        return None
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    with contextlib.suppress(OSError):  # a file system without locks costs leftovers, never bytes
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return handle


def _collect_leftovers(out: Path) -> None:
    """Removes partial folders of ``out`` whose process is gone (the kernel frees its lock)."""
    if sys.platform == "win32":
        return
    import fcntl

    for leftover in out.parent.glob(f".{glob.escape(out.name)}.partial-*"):
        with contextlib.suppress(OSError):
            handle = os.open(leftover, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(leftover, ignore_errors=True)
            finally:
                os.close(handle)


def sync(path: Path) -> None:
    """Waits until the file or folder ``path`` is on the disk; folders not on Windows."""
    if sys.platform == "win32" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def storage_errors(out: Path) -> Iterator[None]:
    """Turns an OSError of writing into a StorageError that names the folder and the cause."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{out}: cannot write ({error.strerror or error}), expected a writable folder with "
            "enough free space; nothing was kept - free some space or choose another place"
        ) from error


def free_space(out: str | Path) -> int:
    """Free bytes where ``out`` will be written."""
    folder = Path(os.path.abspath(out)).parent
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def check_free_space(out: str | Path, needed: int) -> None:
    """Raises StorageError when ``needed`` bytes are not free where ``out`` will be written."""
    free = free_space(out)
    if free < needed:
        raise StorageError(
            f"{out}: found {free / 1e6:.0f} MB free, expected at least {needed / 1e6:.0f} MB; "
            "free some space or choose another place"
        )


def write_json(file: Path, value: dict[str, Any]) -> None:
    """Writes ``value`` as UTF-8 JSON, the same bytes for the same value."""
    file.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


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


# Hashes -----------------------------------------------------------------------------------------


def file_sha256(file: Path) -> str:
    """Hex SHA-256 of a file; ModelFolderError if it cannot be read."""
    try:
        with open(file, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ModelFolderError(
            f"{file}: cannot read ({error.strerror}), expected a readable file; check permissions"
        ) from error


def cache_folder() -> Path | None:
    """``$POCKETLM_CACHE``, or pocketlm's own among this platform's caches; None without HOME."""
    if chosen := os.environ.get("POCKETLM_CACHE"):
        return Path(chosen)
    try:
        home = Path.home()
    except RuntimeError:
        return None
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local")) / "pocketlm"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "pocketlm"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "pocketlm"


def _identity(file: Path, sha256: str) -> str:
    status = file.stat()
    return (
        f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}:"
        f"{status.st_ctime_ns}:{sha256}"
    )


class _VerifiedFiles:
    """Identities of files whose hash was right; kept as lines of one file, newest last."""

    LIMIT = 1000

    def __init__(self, file: Path | None, identities: list[str]) -> None:
        self.file = file
        self.identities = identities
        self.changed = False

    @classmethod
    def load(cls) -> _VerifiedFiles:
        cache = cache_folder()
        file = cache / "verified" if cache else None
        try:
            lines = file.read_text("utf-8").splitlines() if file else []
        except (OSError, UnicodeDecodeError):
            lines = []
        return cls(file, lines)

    def add(self, identity: str) -> None:
        self.identities.append(identity)
        self.changed = True

    def save(self) -> None:
        """Best effort: a read-only or missing cache only means hashing again next time."""
        if self.file is None or not self.changed:
            return
        with contextlib.suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.file.with_name(f"verified.{uuid.uuid4().hex[:12]}")
            temporary.write_text("\n".join(self.identities[-self.LIMIT :]) + "\n", "utf-8")
            os.replace(temporary, self.file)
