"""A folder gets a second graph, the one with an int8 KV cache, over the weights that it has."""

from __future__ import annotations

import os
from dataclasses import replace

import onnx_ir as ir

from ..export.errors import RequestError
from ..export.folder import MANIFEST, ModelFolder
from ..export.graph_check.graph import check_graph
from ..export.manifest import (
    GRAPH_FILES,
    GROWING,
    IN_PLACE,
    INT8,
    INT8_KV_DECODER,
    CacheKind,
    FileEntry,
    Manifest,
)
from ..export.manifest_file import manifest_bytes
from ..export.placing import sync
from ..export.publishing import storage_errors
from ..export.verified import file_sha256
from ..export.writing import describe_graph
from .int8_cache import CacheScales, Int8Cache


def add_int8_cache(folder: ModelFolder, scales: CacheScales) -> ModelFolder:
    """Gives ``folder`` the second graph, over the same weights, and returns it opened again.

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
    check_graph(folder)
    model = ir.load(folder.graph_file())
    Int8Cache(scales).apply(model)
    kind = CacheKind(layout=IN_PLACE, dtype=INT8)
    name = GRAPH_FILES[INT8_KV_DECODER]
    entry = describe_graph(model, name, kind, folder.graph().traced)
    with storage_errors(folder.path):
        file = folder.path / name
        file.write_bytes(ir.to_proto(model).SerializeToString())
        sync(file)
        written = FileEntry(bytes=file.stat().st_size, sha256=file_sha256(file))
        manifest = replace(
            folder.manifest,
            graphs={**folder.manifest.graphs, INT8_KV_DECODER: entry},
            files={**folder.files, name: written},
        )
        check_graph(ModelFolder(folder.path, manifest), INT8_KV_DECODER)
        return with_manifest(folder, manifest)


def with_manifest(folder: ModelFolder, manifest: Manifest) -> ModelFolder:
    """``folder`` opened again, once ``manifest`` has taken the place of its own in one step."""
    beside = folder.path / f"{MANIFEST}.new"
    beside.write_bytes(manifest_bytes(manifest))
    sync(beside)
    os.replace(beside, folder.path / MANIFEST)
    return ModelFolder.open(folder.path)
