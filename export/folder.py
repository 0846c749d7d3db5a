"""The model folder: what export writes and the runtime opens.

    model.onnx  model.onnx_data  config.json  tokenizer.json  generation_config.json  pocketlm.json

``pocketlm.json`` (the manifest) names every other file with its size and SHA-256, the source, the
decoder's sizes, its graphs, the precision and the quantization report. It is written last; a folder
without it is not a model folder. Lean: the standard library only, since the runtime imports this.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from .errors import ModelFolderError
from .manifest import (
    DATA_FILE,
    DECODER,
    PREFILL_DATA_FILE,
    PREFILL_GRAPHS,
    FileEntry,
    GraphEntry,
    Manifest,
)
from .manifest import GRAPH_FILE as GRAPH_FILE
from .manifest import GROWING as GROWING
from .manifest import IN_PLACE as IN_PLACE
from .manifest import DecoderShape as DecoderShape
from .manifest_file import read_manifest
from .verified import VerifiedFiles, file_identity, file_sha256

MANIFEST = "pocketlm.json"
MINIMUM_ONNXRUNTIME = "1.31"
PAGE = 4096
NEW_ROWS = "new"


def cache_names(num_layers: int, output: str = "present") -> list[tuple[str, str]]:
    """(input, output) names in the graph of every layer's keys and values.

    Outputs of a graph that gives the new rows alone begin with ``NEW_ROWS`` instead.
    """
    return [
        (f"past_key_values.{layer}.{kind}", f"{output}.{layer}.{kind}")
        for layer in range(num_layers)
        for kind in ("key", "value")
    ]


@dataclass(frozen=True)
class ModelFolder:
    """A complete folder whose manifest has been read; ``verify`` compares the files with it."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path) -> ModelFolder:
        """Reads the manifest and compares names and sizes. ModelFolderError says what is wrong."""
        path = Path(path)
        if not path.is_dir():
            found, advice = "nothing", f"make one with: pocketlm export CHECKPOINT {path}"
            if path.suffix == ".onnx" and path.exists():
                raise ModelFolderError(_foreign(path))
            if path.exists():
                found = "a file"
                advice = f"of a checkpoint in one file make one with: pocketlm export {path} OUT"
            raise ModelFolderError(f"{path}: found {found}, expected a model folder; {advice}")
        if not (path / MANIFEST).is_file():
            raise ModelFolderError(_not_a_model_folder(path))
        folder = cls(path, read_manifest(path / MANIFEST))
        folder._check_sizes()
        return folder

    def anchored(self) -> ModelFolder:
        """The same, wherever the process goes: its path is absolute."""
        return replace(self, path=self.path.absolute())

    @property
    def shape(self) -> DecoderShape:
        return self.manifest.decoder

    @property
    def files(self) -> dict[str, FileEntry]:
        """Size and SHA-256 of every file but the manifest, by name."""
        return self.manifest.files

    @property
    def formats(self) -> frozenset[str]:
        """Names of the number formats that its quantized weights have, the second set included."""
        second = self.manifest.precision.prefill
        own = frozenset(tensor.format for tensor in second.tensors) if second else frozenset()
        return self.decoder_formats | own

    @property
    def decoder_formats(self) -> frozenset[str]:
        """Those of the first set; none in fp32."""
        report = self.manifest.precision.report
        return frozenset(tensor.format for tensor in report.tensors) if report else frozenset()

    @property
    def weights_bytes(self) -> int:
        """Size of the decoder's external data file."""
        return self.files[DATA_FILE].bytes

    @property
    def prefill_bytes(self) -> int:
        """Size of the file of what only the second set of weights has; 0 where there is none."""
        entry = self.files.get(PREFILL_DATA_FILE)
        return entry.bytes if entry is not None else 0

    @property
    def prefill_memory_bytes(self) -> int:
        """What a session of the second set holds, about: what it shares on disk it has anew."""
        precision = self.manifest.precision
        if precision.prefill is None:
            return 0
        rows = precision.report.tensors if precision.report is not None else ()
        stored = {row.name: row.bytes_after for row in rows}
        left_out = sum(stored.get(t.name, t.bytes_before) for t in precision.prefill.tensors)
        return self.prefill_bytes + self.weights_bytes - left_out

    def data_bytes(self, name: str = DECODER) -> dict[str, int]:
        """The files that weights of the graph of that name may be in, with their sizes."""
        own = {PREFILL_DATA_FILE: self.prefill_bytes} if name in PREFILL_GRAPHS else {}
        return {DATA_FILE: self.weights_bytes, **own}

    def graph(self, name: str = DECODER) -> GraphEntry:
        """The graph of that name; ModelFolderError lists those that there are."""
        graphs = self.manifest.graphs
        if name not in graphs:
            raise ModelFolderError(
                f"{self.path}: found the graphs {', '.join(graphs)}, expected {name} among them; "
                "export the model again with it"
            )
        return graphs[name]

    def graph_file(self, name: str = DECODER) -> Path:
        """Where the graph of that name lies; raises what ``graph`` raises."""
        return self.path / self.graph(name).file

    def _check_sizes(self) -> None:
        for name, entry in self.files.items():
            file = self.path / name
            if not file.is_file():
                raise ModelFolderError(
                    f"{file}: missing, expected a file of {entry.bytes} bytes as listed in "
                    f"{MANIFEST}; export the model again"
                )
            size = file.stat().st_size
            if size != entry.bytes:
                raise ModelFolderError(
                    f"{file}: found {size} bytes, expected {entry.bytes} as listed in "
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
            identity = file_identity(file, entry.sha256)
            if memory is not None and identity in memory.identities:
                continue
            found = file_sha256(file)
            if found != entry.sha256:
                raise ModelFolderError(
                    f"{file}: found SHA-256 {found[:16]}…, expected {entry.sha256[:16]}… as "
                    f"listed in {MANIFEST}; the file was changed - export the model again"
                )
            if memory is not None:
                memory.add(identity)
        if memory is not None:
            memory.save()


def _foreign(path: Path) -> str:
    return (
        f"{path}: found an ONNX file without {MANIFEST}, expected a folder of pocketlm's; "
        "foreign ONNX files are not opened unless that is asked for (--allow-foreign) - better "
        "export the checkpoint with: pocketlm export CHECKPOINT OUT"
    )


def _not_a_model_folder(path: Path) -> str:
    names = sorted(entry.name for entry in path.iterdir())
    if "config.json" in names and any(name.endswith(".safetensors") for name in names):
        return (
            f"{path}: found a checkpoint, expected a model folder with {MANIFEST}; "
            f"export it first: pocketlm export {path} OUT"
        )
    if any(name.endswith(".onnx") for name in names) or any(path.glob("onnx/*.onnx")):
        return _foreign(path)
    found = ", ".join(names[:5]) or "nothing"
    return (
        f"{path}: found {found}, expected a model folder with {MANIFEST}; "
        "make one with: pocketlm export CHECKPOINT OUT"
    )


def describe_files(folder: Path, known: dict[str, FileEntry]) -> dict[str, FileEntry]:
    """The manifest's ``files``; ``known`` has those whose size and hash the writing told."""
    return {
        file.name: known.get(file.name)
        or FileEntry(bytes=file.stat().st_size, sha256=file_sha256(file))
        for file in sorted(folder.iterdir())
        if file.name != MANIFEST
    }
