"""The file of a graph, read whole: what is checked is what is opened, whatever is written there."""

from __future__ import annotations

from pathlib import Path

from ..errors import ModelFolderError
from ..regular_file import RegularFile
from .onnx_file import GraphRefused

LARGEST_GRAPH = 200_000_000  # bytes of the file; weights are elsewhere


def read_graph_file(file: Path) -> bytes:
    """Its bytes; raises ModelFolderError where it cannot be read, GraphRefused for too many."""
    with RegularFile(file, ModelFolderError) as opened:
        size = opened.num_bytes()
        if size > LARGEST_GRAPH:
            raise GraphRefused(f"{size:,} bytes", f"at most {LARGEST_GRAPH:,}")
        return opened.read(0, size)


def foreign(file: Path, refused: GraphRefused) -> ModelFolderError:
    """What a user is told of a graph that was refused."""
    return ModelFolderError(
        f"{file}: {refused}; foreign graphs are not opened - export the "
        "checkpoint again with: pocketlm export CHECKPOINT OUT"
    )
