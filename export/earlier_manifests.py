"""Manifests of versions 1 and 2, as what they would be today; nothing else knows of them.

They describe one graph, ``model.onnx``: who traced it stands in ``graph``, its inputs and outputs
in ``contract``. A report lies flat in ``precision``, all of it or nothing. Version 1 is the same
without a digest of the file. Source: docs/pocketlm-json.md, "Versions".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from .manifest import (
    DECODER,
    FLOAT32,
    GRAPH_FILE,
    IN_PLACE,
    LAYOUT,
    SHAPE,
    CacheKind,
    Count,
    DecoderShape,
    Digest,
    Figure,
    FileEntry,
    GraphEntry,
    Manifest,
    Positive,
    PrecisionEntry,
    QuantizationReport,
    Size,
    Source,
    TensorReport,
    Tracing,
)
from .records import Misfit, read_record


@dataclass(frozen=True, kw_only=True)
class _Contract:
    inputs: dict[str, str]
    outputs: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class _Graph:
    made_by: str
    cache: Annotated[str, LAYOUT] = IN_PLACE
    not_rewritten: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Precision:
    name: str


@dataclass(frozen=True, kw_only=True)
class _Skipped:
    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class _Quantized(_Precision):
    block_size: Size
    head: str
    share_quantized: Figure
    bytes_before: Positive
    bytes_after: Positive
    tensors: tuple[TensorReport, ...]
    skipped: tuple[_Skipped, ...]


@dataclass(frozen=True, kw_only=True)
class _Earlier:
    format_version: Count
    architecture: str
    num_parameters: Positive
    source: Source
    decoder: Annotated[DecoderShape, SHAPE]
    minimum_onnxruntime: str | None = None
    contract: _Contract | None = None
    graph: _Graph | None = None
    precision: _Precision
    files: dict[str, FileEntry]
    sha256: Digest | None = None


def read_earlier(fields: dict[str, Any]) -> Manifest:
    """What a file of version 1 or 2 says; raises Misfit where it is not as it was written."""
    found = read_record(_Earlier, fields)
    return Manifest(
        format_version=found.format_version,
        architecture=found.architecture,
        num_parameters=found.num_parameters,
        source=found.source,
        decoder=found.decoder,
        minimum_onnxruntime=found.minimum_onnxruntime,
        graphs={DECODER: _graph(found)},
        precision=_precision(fields["precision"]),
        files=found.files,
        sha256=found.sha256,
    )


def _graph(found: _Earlier) -> GraphEntry:
    contract = found.contract or _Contract(inputs={}, outputs={})
    graph = found.graph
    return GraphEntry(
        file=GRAPH_FILE,
        cache=CacheKind(layout=graph.cache if graph else IN_PLACE, dtype=FLOAT32),
        inputs=contract.inputs,
        outputs=contract.outputs,
        traced=Tracing(made_by=graph.made_by, not_rewritten=graph.not_rewritten) if graph else None,
    )


def _precision(fields: dict[str, Any]) -> PrecisionEntry:
    if fields.keys() == {"name"}:
        return PrecisionEntry(name=fields["name"])
    try:
        found = read_record(_Quantized, fields)
    except Misfit as misfit:
        misfit.place.insert(0, "precision")
        raise
    report = QuantizationReport(
        share_quantized=found.share_quantized,
        bytes_before=found.bytes_before,
        bytes_after=found.bytes_after,
        tensors=found.tensors,
        skipped={entry.name: entry.reason for entry in found.skipped},
    )
    return PrecisionEntry(
        name=found.name, block_size=found.block_size, head=found.head, report=report
    )
