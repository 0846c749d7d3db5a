"""What ``pocketlm.json``, the manifest of a model folder, says: a dataclass for each object in it.

The dataclasses are the format: a field's name is the name in the file, its type says what may stand
there (``records``), and one that is None is left out. docs/pocketlm-json.md describes every field;
``manifest_file`` reads and writes the file, ``earlier_manifests`` has what it was before. Lean: the
standard library only, since the runtime imports this.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any

from .records import Kind, to_json

FORMAT_VERSION = 3
# What a graph computes -> the file it is written to. The decoder's weights are in one file that all
# share; those that only the graphs for many tokens at a time have are in another.
DECODER, INT8_KV_DECODER = "decoder", "decoder-int8-kv"
PREFILL_DECODER, INT8_KV_PREFILL = "prefill", "prefill-int8-kv"
GRAPH_FILES = {
    DECODER: "model.onnx",
    INT8_KV_DECODER: "model_int8_kv.onnx",
    PREFILL_DECODER: "model_prefill.onnx",
    INT8_KV_PREFILL: "model_prefill_int8_kv.onnx",
}
GRAPH_FILE = GRAPH_FILES[DECODER]  # the one that other runtimes look for
DATA_FILE, PREFILL_DATA_FILE = "model.onnx_data", "model_prefill.onnx_data"
PREFILL_GRAPHS = (PREFILL_DECODER, INT8_KV_PREFILL)
# Files without which a folder cannot be run or quantized; others may be listed beside them.
REQUIRED_FILES = (
    GRAPH_FILE,
    DATA_FILE,
    "config.json",
    "generation_config.json",
    "tokenizer.json",
)
# All that is written today besides the manifest.
WRITTEN_FILES = (
    *dict.fromkeys((*REQUIRED_FILES, *GRAPH_FILES.values(), PREFILL_DATA_FILE)),
    "genai_config.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
# What a graph does with the KV cache: append in place, or return a copy that is longer.
IN_PLACE, GROWING = "in-place", "growing"
FLOAT32, INT8 = "float32", "int8"  # what the cache holds
# The precision of a graph of another runtime, whose products are those of ``quantize_dynamic``.
INT8_DYNAMIC = "int8-dynamic"

_DIGEST = re.compile(r"[0-9a-f]{64}")


def _whole(least: int, bits: int) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, int) and not isinstance(v, bool) and least <= v < 1 << bits


COUNT = Kind("a whole number", _whole(0, 63))
POSITIVE = Kind("a positive integer", _whole(1, 63))
SIZE = Kind("a positive integer below 2^31", _whole(1, 31))
FIGURE = Kind(  # so bounded that its square is a number, too
    "a number of 0 or more",
    lambda value: (
        isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e100
    ),
)
SIZES = Kind(
    "a list of 1 to 8 positive integers below 2^31",
    lambda value: isinstance(value, list) and 0 < len(value) <= 8 and all(map(SIZE.accepts, value)),
)
LAYOUT = Kind(f"{IN_PLACE} or {GROWING}", lambda value: value in (IN_PLACE, GROWING))
DTYPE = Kind(f"{FLOAT32} or {INT8}", lambda value: value in (FLOAT32, INT8))
SHA256 = Kind(
    "a SHA-256 of 64 hexadecimal digits",
    lambda value: isinstance(value, str) and _DIGEST.fullmatch(value) is not None,
)

Count = Annotated[int, COUNT]
Positive = Annotated[int, POSITIVE]
Size = Annotated[int, SIZE]
Figure = Annotated[float, FIGURE]
Digest = Annotated[str, SHA256]


@dataclass(frozen=True, kw_only=True)
class AdapterEntry:
    """A LoRA adapter that was merged into the checkpoint."""

    name: str  # of its folder
    weight: Figure
    base_model: str | None = None  # what it says that it was trained on
    files: dict[str, str]  # name -> SHA-256


@dataclass(frozen=True, kw_only=True)
class Source:
    """The checkpoint that a folder was made of."""

    format: str
    quantized: tuple[str, ...] | None = None  # formats that weights had before, as "Q4_1"
    files: dict[str, str]  # name -> SHA-256
    repository: str | None = None  # on the hub
    commit: str | None = None
    adapters: tuple[AdapterEntry, ...] | None = None


@dataclass(frozen=True)
class DecoderShape:
    """The sizes a runtime needs to feed a decoder graph."""

    vocab_size: Size
    context_length: Size
    hidden_size: Size
    num_layers: Size
    num_heads: Size
    kv_heads: Size
    head_size: Size

    @property
    def kv_numbers_per_token(self) -> int:
        """Keys and values of one token; each takes a byte of an int8 KV cache."""
        return 2 * self.num_layers * self.kv_heads * self.head_size

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes one token takes in a float32 KV cache."""
        return 4 * self.kv_numbers_per_token


NAMES = tuple(size.name for size in fields(DecoderShape))
SHAPE = Kind(
    f"an object of {', '.join(NAMES)}",  # and nothing else: another graph would have others
    lambda value: isinstance(value, dict) and value.keys() == set(NAMES),
)


@dataclass(frozen=True, kw_only=True)
class CacheKind:
    """The KV cache that a graph was made for."""

    layout: Annotated[str, LAYOUT]
    dtype: Annotated[str, DTYPE]


@dataclass(frozen=True, kw_only=True)
class Tracing:
    """Where a graph comes from that we did not declare."""

    made_by: str  # packages and their versions
    not_rewritten: str | None = None  # why its attention is as it was traced


@dataclass(frozen=True, kw_only=True)
class GraphEntry:
    """One graph over the folder's weights; inputs and outputs by name, described in words."""

    file: str
    cache: CacheKind
    inputs: dict[str, str]
    outputs: dict[str, str]
    traced: Tracing | None = None


@dataclass(frozen=True, kw_only=True)
class RotationEntry:
    """How the weights were rotated before they were quantized."""

    seed: Count
    parts: tuple[str, ...]  # as "R1"
    skipped: dict[str, str]  # part or weight -> why it was not rotated


@dataclass(frozen=True, kw_only=True)
class CalibrationEntry:
    """The text on which rounding was calibrated."""

    kind: str  # dream or text
    seed: Count | None = None  # of a dream
    tokens: Count
    digest: str


@dataclass(frozen=True, kw_only=True)
class PromiseEntry:
    """The loss, KL(fp32 ‖ quantized) in nats per token, measured on other text."""

    max_kl: Figure | None = None  # what was asked for
    max_bytes: Count | None = None  # likewise, of the weights
    kl: Figure
    tokens: Count
    text: str


@dataclass(frozen=True, kw_only=True)
class TensorReport:
    """One weight, quantized. The error is that of the rounded weights alone."""

    name: str
    shape: Annotated[tuple[Size, ...], SIZES]
    format: str
    bits_per_weight: Figure  # all stored bits, scales included, over the number of weights
    relative_error: Figure  # ||W - Q||_F / ||W||_F; 0 for a tensor of zeros
    maximum_error: Figure  # max |W - Q|, in the unit of the weights
    bytes_before: Positive
    bytes_after: Positive
    reason: str | None = None  # why it has another format than its precision's


@dataclass(frozen=True, kw_only=True)
class QuantizationReport:
    """What quantization did to each weight, in the order of the graph."""

    share_quantized: Figure  # of the parameters
    bytes_before: Positive
    bytes_after: Positive
    tensors: tuple[TensorReport, ...]
    skipped: dict[str, str]  # name -> why it was left in float32


@dataclass(frozen=True, kw_only=True)
class PrefillEntry:
    """The second set of weights, with which many tokens at a time are computed."""

    name: str  # int8
    tensors: tuple[TensorReport, ...]  # those that it does not share with the first


@dataclass(frozen=True, kw_only=True)
class PrecisionEntry:
    """The number formats of the weights; of fp32 the name, and perhaps the second set."""

    name: str
    block_size: Size | None = None
    head: str | None = None
    rotation: RotationEntry | None = None
    calibration: CalibrationEntry | None = None
    promise: PromiseEntry | None = None
    report: QuantizationReport | None = None
    prefill: PrefillEntry | None = None


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file of the folder as it was written."""

    bytes: Count
    sha256: Digest


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All that is said of a model folder. Two are equal when they say the same of it."""

    format_version: Count = field(default=FORMAT_VERSION, compare=False)  # of the file read
    architecture: str
    num_parameters: Positive
    source: Source
    decoder: Annotated[DecoderShape, SHAPE]
    minimum_onnxruntime: str | None = None
    graphs: dict[str, GraphEntry]
    precision: PrecisionEntry
    files: dict[str, FileEntry]
    sha256: Digest | None = field(default=None, compare=False)  # of the file; version 1 has none

    def to_json(self) -> dict[str, Any]:
        """The fields as they are written today, whatever version they were read from."""
        found: dict[str, Any] = to_json(replace(self, format_version=FORMAT_VERSION))
        return found
