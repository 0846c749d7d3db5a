"""A folder gets graphs with an int8 KV cache, over the weights that it has."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import onnx_ir as ir

from ..export.errors import RequestError
from ..export.folder import MANIFEST, ModelFolder
from ..export.graph_check.graph import check_graph
from ..export.graph_pass import GraphPass
from ..export.manifest import (
    DECODER,
    GRAPH_FILES,
    GROWING,
    IN_PLACE,
    INT8,
    INT8_KV_DECODER,
    INT8_KV_PREFILL,
    PREFILL_DECODER,
    CacheKind,
    FileEntry,
    GraphEntry,
    Manifest,
)
from ..export.manifest_file import manifest_bytes
from ..export.placing import sync
from ..export.publishing import storage_errors
from ..export.verified import file_sha256
from ..export.writing import describe_graph
from .int8_cache import CacheScales, Int8Cache
from .int8_rows import Int8Rows

# Graph over float32 -> the one over int8, and the pass that makes it.
OVER_INT8: dict[str, tuple[str, Callable[[CacheScales], GraphPass]]] = {
    DECODER: (INT8_KV_DECODER, Int8Cache),
    PREFILL_DECODER: (INT8_KV_PREFILL, Int8Rows),
}


def add_int8_cache(folder: ModelFolder, scales: CacheScales) -> ModelFolder:
    """Gives ``folder`` a graph with an int8 cache for each that it has, and returns it anew.

    They are over the same weights.
    The folder is changed where it is, in one step: until its new manifest takes the place of the
    old it is what it was. Raises RequestError for one that has such a graph, or whose cache is not
    in place, ModelFolderError for a graph that we cannot have written, StorageError.
    """
    if INT8_KV_DECODER in folder.manifest.graphs:
        raise RequestError(
            f"{folder.path}: found {GRAPH_FILES[INT8_KV_DECODER]} in it, expected a folder without "
            "a graph with an int8 KV cache; export the model again for another"
        )
    if folder.graph().cache.layout == GROWING:
        raise RequestError(
            f"{folder.path}: found a traced graph that makes its cache anew with every token, "
            "expected one that keeps it in place; its cache stays in float32"
        )
    manifest = folder.manifest
    with storage_errors(folder.path):
        for name, (over_int8, change) in OVER_INT8.items():
            if name in folder.manifest.graphs:
                check_graph(folder, name)
                model = ir.load(folder.graph_file(name))
                change(scales).apply(model)
                manifest = _with_graph(folder, manifest, over_int8, model)
        return with_manifest(folder, manifest)


def _with_graph(folder: ModelFolder, manifest: Manifest, name: str, model: ir.Model) -> Manifest:
    """``manifest`` with one more graph, which is written to ``folder``."""
    kind = CacheKind(layout=IN_PLACE, dtype=INT8)
    entry: GraphEntry = describe_graph(model, GRAPH_FILES[name], kind, folder.graph().traced)
    file = folder.path / entry.file
    file.write_bytes(ir.to_proto(model).SerializeToString())
    sync(file)
    written = FileEntry(bytes=file.stat().st_size, sha256=file_sha256(file))
    manifest = replace(
        manifest,
        graphs={**manifest.graphs, name: entry},
        files={**manifest.files, entry.file: written},
    )
    check_graph(ModelFolder(folder.path, manifest), name)
    return manifest


def with_manifest(folder: ModelFolder, manifest: Manifest) -> ModelFolder:
    """``folder`` opened again, once ``manifest`` has taken the place of its own in one step."""
    beside = folder.path / f"{MANIFEST}.new"
    beside.write_bytes(manifest_bytes(manifest))
    sync(beside)
    os.replace(beside, folder.path / MANIFEST)
    return ModelFolder.open(folder.path)
