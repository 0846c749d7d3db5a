"""``pocketlm.json``, the manifest of a model folder: its fields, and its digest of itself.

JSON in UTF-8 (docs/pocketlm-json.md has every field). Version 2 ends with its own SHA-256:

     "sha256": "<64 hexadecimal digits>"
    }

The digest is that of every byte before the digits; what stands after them is always the same, so
that no bit of the file can change unnoticed. Version 1 is the same without this field. Lean: the
standard library only, since the runtime imports this.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ModelFolderError
from .strict_json import parse_json_object, quoted, read_json, shown

FORMAT_VERSION = 2
WITHOUT_DIGEST = 1  # the version before, which is still read
GRAPH_FILE = "model.onnx"
# Files without which a folder cannot be run or quantized; others may be listed beside them.
REQUIRED_FILES = (
    GRAPH_FILE,
    "model.onnx_data",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
)
# All that is written today besides the manifest.
WRITTEN_FILES = (
    *REQUIRED_FILES,
    "genai_config.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
LARGEST_MANIFEST = 10_000_000  # bytes; one line per tensor of a 405B model is under 1 MB
# What a graph does with the KV cache: append in place, or return a copy that is longer.
IN_PLACE, GROWING = "in-place", "growing"
AGAIN = "the manifest is damaged - export the model again"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SEALED = re.compile(rb'(.*\n "sha256": ")([0-9a-f]{64})"\n}\n', re.DOTALL)


@dataclass(frozen=True)
class Kind:
    """What a field of the manifest may hold."""

    expected: str
    accepts: Callable[[Any], bool]


def _whole(least: int, bits: int) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, int) and not isinstance(v, bool) and least <= v < 1 << bits


TEXT = Kind("text", lambda value: isinstance(value, str))
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
LIST = Kind("a list", lambda value: isinstance(value, list))
COUNT = Kind("a whole number", _whole(0, 63))
POSITIVE = Kind("a positive integer", _whole(1, 63))
SIZE = Kind("a positive integer below 2^31", _whole(1, 31))
SHAPE = Kind(
    "a list of 1 to 8 positive integers below 2^31",
    lambda value: isinstance(value, list) and 0 < len(value) <= 8 and all(map(SIZE.accepts, value)),
)
FIGURE = Kind(  # so bounded that its square is a number, too
    "a number of 0 or more",
    lambda value: (
        isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e100
    ),
)
FACT = Kind("text or a number", lambda value: TEXT.accepts(value) or FIGURE.accepts(value))
CACHE = Kind(f"{IN_PLACE} or {GROWING}", lambda value: value in (IN_PLACE, GROWING))
SHA256 = Kind(
    "a SHA-256 of 64 hexadecimal digits",
    lambda value: isinstance(value, str) and _DIGEST.fullmatch(value) is not None,
)

SIZES = (
    "vocab_size",
    "context_length",
    "hidden_size",
    "num_layers",
    "num_heads",
    "kv_heads",
    "head_size",
)
# Path -> what stands there; ``*`` is every name or entry, and what ends in ``?`` may be left out.
# An object or list comes before what is in it. The version and the digest are checked first.
FIELDS = {
    "architecture": TEXT,
    "num_parameters": POSITIVE,
    "source": OBJECT,
    "source.format": TEXT,
    "source.files": OBJECT,
    "source.files.*": TEXT,
    "source.repository?": TEXT,
    "source.commit?": TEXT,
    "decoder": Kind(
        f"an object of {', '.join(SIZES)}",  # and nothing else: another graph would have others
        lambda value: isinstance(value, dict) and value.keys() == set(SIZES),
    ),
    **{f"decoder.{name}": SIZE for name in SIZES},
    "minimum_onnxruntime?": TEXT,
    "contract?": OBJECT,
    "contract?.inputs": OBJECT,
    "contract?.inputs.*": TEXT,
    "contract?.outputs": OBJECT,
    "contract?.outputs.*": TEXT,
    "graph?": OBJECT,
    "graph?.made_by?": TEXT,
    "graph?.cache?": CACHE,
    "graph?.not_rewritten?": TEXT,
    "precision": OBJECT,
    "precision.name": TEXT,
    "files": OBJECT,
    "files.*": OBJECT,
    "files.*.bytes": COUNT,
    "files.*.sha256": SHA256,
}
# What ``precision`` has where it has more than its name.
QUANTIZED_FIELDS = {
    "precision.block_size?": SIZE,
    "precision.head?": TEXT,
    "precision.rotation?": OBJECT,
    "precision.rotation?.seed": COUNT,
    "precision.rotation?.parts": LIST,
    "precision.rotation?.parts.*": TEXT,
    "precision.rotation?.skipped": OBJECT,
    "precision.rotation?.skipped.*": TEXT,
    "precision.calibration?": OBJECT,
    "precision.calibration?.*": FACT,
    "precision.promise?": OBJECT,
    "precision.promise?.*": FACT,
    "precision.share_quantized": FIGURE,
    "precision.bytes_before": POSITIVE,
    "precision.bytes_after": POSITIVE,
    "precision.tensors": LIST,
    "precision.tensors.*": OBJECT,
    "precision.tensors.*.name": TEXT,
    "precision.tensors.*.shape": SHAPE,
    "precision.tensors.*.format": TEXT,
    "precision.tensors.*.bits_per_weight": FIGURE,
    "precision.tensors.*.relative_error": FIGURE,
    "precision.tensors.*.maximum_error": FIGURE,
    "precision.tensors.*.bytes_before": POSITIVE,
    "precision.tensors.*.bytes_after": POSITIVE,
    "precision.tensors.*.reason?": TEXT,
    "precision.skipped": LIST,
    "precision.skipped.*": OBJECT,
    "precision.skipped.*.name": TEXT,
    "precision.skipped.*.reason": TEXT,
}


def manifest_bytes(fields: dict[str, Any]) -> bytes:
    """The file of a manifest with these fields; version and digest are put in, or put right."""
    others = {name: fields[name] for name in fields if name not in ("format_version", "sha256")}
    values = {"format_version": FORMAT_VERSION, **others, "sha256": ""}
    before = json.dumps(values, indent=1, ensure_ascii=False).encode()[: -len('"\n}')]
    return before + hashlib.sha256(before).hexdigest().encode() + b'"\n}\n'


def read_manifest(file: Path) -> dict[str, Any]:
    """The fields of a manifest that is as it was written, each of its kind; else ModelFolderError.

    One of version 1 has no digest: of it only the kinds are known to be right.
    """
    data = read_json(file, LARGEST_MANIFEST, ModelFolderError)
    manifest = parse_json_object(data, file.name, ModelFolderError)
    version = manifest.get("format_version")
    if not COUNT.accepts(version) or version not in (WITHOUT_DIGEST, FORMAT_VERSION):
        raise _wrong(
            file,
            f"format_version {shown(version)}",
            f"{WITHOUT_DIGEST} or {FORMAT_VERSION}",
            "export the model again with this version of pocketlm, or update pocketlm",
        )
    if version != WITHOUT_DIGEST:
        _check_digest(file, data)
    _check_fields(file, manifest, FIELDS)
    if manifest["precision"].keys() != {"name"}:
        _check_fields(file, manifest, QUANTIZED_FIELDS)
    _check_names(file, manifest["files"])
    return manifest


def _check_digest(file: Path, data: bytes) -> None:
    sealed = _SEALED.fullmatch(data)
    found = hashlib.sha256(sealed[1]).hexdigest() if sealed else None
    expected = sealed[2].decode() if sealed else None
    if found is None or found != expected:
        raise _wrong(
            file,
            f"SHA-256 {found[:16]}…" if found else "no SHA-256 of itself as its last field",
            f"{expected[:16]}… as it says itself" if expected else "one, as it was written",
            "the manifest was changed after it was written - export the model again",
        )


def _check_fields(file: Path, manifest: dict[str, Any], kinds: dict[str, Kind]) -> None:
    for path, kind in kinds.items():
        for place, value in _values(manifest, path.split("."), ()):
            if not kind.accepts(value):
                found = "nothing" if value is _NOTHING else shown(value)
                raise _wrong(file, f"{found} as {quoted(place)}", kind.expected, AGAIN)


_NOTHING = object()


def _values(value: Any, steps: list[str], place: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """What stands at a path, each with its place; _NOTHING where what must be there is not."""
    if not steps:
        yield ".".join(place), value
        return
    step, *others = steps
    if step == "*":
        pairs: Iterable[tuple[object, Any]] = (
            value.items() if isinstance(value, dict) else enumerate(value)
        )
    else:
        name = step.removesuffix("?")
        absent = [] if step.endswith("?") else [(name, _NOTHING)]
        pairs = [(name, value[name])] if name in value else absent
    for key, inner in pairs:
        yield from _values(inner, others, (*place, str(key)))


def _check_names(file: Path, files: dict[str, Any]) -> None:
    if missing := [name for name in REQUIRED_FILES if name not in files]:
        raise _wrong(
            file, f"no {missing[0]} in 'files'", f"at least {', '.join(REQUIRED_FILES)}", AGAIN
        )
    for name in files:
        plain = name == os.path.basename(name) and name not in ("", ".", "..", file.name)
        if not plain or "\\" in name or "\0" in name or len(name) > 100:
            raise _wrong(file, f"the file name {quoted(name)}", "a plain name in the folder", AGAIN)


def _wrong(file: Path, found: str, expected: str, advice: str) -> ModelFolderError:
    return ModelFolderError(f"{file}: found {found}, expected {expected}; {advice}")
