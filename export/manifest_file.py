"""``pocketlm.json`` as a file: a ``Manifest`` in JSON that ends with its own SHA-256.

UTF-8, in this form (docs/pocketlm-json.md has every field):

     "sha256": "<64 hexadecimal digits>"
    }

The digest is that of every byte before the digits; what stands after them is always the same, so
that no bit of the file can change unnoticed. Lean: the standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from .errors import ModelFolderError
from .manifest import (
    COUNT,
    DECODER,
    FORMAT_VERSION,
    PREFILL_DATA_FILE,
    PREFILL_GRAPHS,
    REQUIRED_FILES,
    Manifest,
)
from .records import NOTHING, Misfit, read_record
from .strict_json import parse_json_object, quoted, read_json, shown

WITHOUT_DIGEST = 1
EARLIER_VERSIONS = (WITHOUT_DIGEST, 2)
LARGEST_MANIFEST = 10_000_000  # bytes; one line per tensor of a 405B model is under 1 MB
AGAIN = "the manifest is damaged - export the model again"
_SEALED = re.compile(rb'(.*\n "sha256": ")([0-9a-f]{64})"\n}\n', re.DOTALL)


def manifest_bytes(manifest: Manifest) -> bytes:
    """The file of ``manifest``, in today's version, with its digest."""
    return sealed(manifest.to_json())


def sealed(fields: dict[str, Any]) -> bytes:
    """The file of these fields; version and digest are put in, or put right."""
    others = {name: fields[name] for name in fields if name not in ("format_version", "sha256")}
    values = {"format_version": FORMAT_VERSION, **others, "sha256": ""}
    before = json.dumps(values, indent=1, ensure_ascii=False).encode()[: -len('"\n}')]
    return before + hashlib.sha256(before).hexdigest().encode() + b'"\n}\n'


def read_manifest(file: Path) -> Manifest:
    """What a manifest says that is as it was written, each field of its kind.

    Raises ModelFolderError for any other. One of version 1 has no digest: of it only the kinds are
    known to be right.
    """
    data = read_json(file, LARGEST_MANIFEST, ModelFolderError)
    fields = parse_json_object(data, str(file), ModelFolderError)
    version = fields.get("format_version")
    if not COUNT.accepts(version) or version not in (*EARLIER_VERSIONS, FORMAT_VERSION):
        raise _wrong(
            file,
            f"format_version {shown(version)}",
            f"{', '.join(map(str, EARLIER_VERSIONS))} or {FORMAT_VERSION}",
            "export the model again with this version of pocketlm, or update pocketlm",
        )
    # One bit makes a 3 a 1: where a digest is, it counts.
    if version != WITHOUT_DIGEST or "sha256" in fields:
        _check_digest(file, data)
    try:
        earlier = version != FORMAT_VERSION
        manifest = _read_earlier(fields) if earlier else read_record(Manifest, fields)
    except Misfit as misfit:
        found = "nothing" if misfit.found is NOTHING else shown(misfit.found)
        place = ".".join(misfit.place)
        raise _wrong(file, f"{found} as {quoted(place)}", misfit.expected, AGAIN) from misfit
    _check_names(file, manifest)
    _check_graphs(file, manifest)
    return manifest


def _read_earlier(fields: dict[str, Any]) -> Manifest:
    from .earlier_manifests import read_earlier  # not above: its records take longer than reading

    return read_earlier(fields)


def _check_digest(file: Path, data: bytes) -> None:
    found, expected = None, None
    if match := _SEALED.fullmatch(data):
        found, expected = hashlib.sha256(match[1]).hexdigest(), match[2].decode()
    if found is None or found != expected:
        raise _wrong(
            file,
            f"SHA-256 {found[:16]}…" if found else "no SHA-256 of itself as its last field",
            f"{expected[:16]}… as it says itself" if expected else "one, as it was written",
            "the manifest was changed after it was written - export the model again",
        )


def _check_names(file: Path, manifest: Manifest) -> None:
    if missing := [name for name in REQUIRED_FILES if name not in manifest.files]:
        raise _wrong(
            file, f"no {missing[0]} in 'files'", f"at least {', '.join(REQUIRED_FILES)}", AGAIN
        )
    for name in manifest.files:
        plain = name == os.path.basename(name) and name not in ("", ".", "..", file.name)
        if not plain or "\\" in name or "\0" in name or len(name) > 100:
            raise _wrong(file, f"the file name {quoted(name)}", "a plain name in the folder", AGAIN)


def _check_graphs(file: Path, manifest: Manifest) -> None:
    if DECODER not in manifest.graphs:
        raise _wrong(file, f"no {DECODER} in 'graphs'", "at least that", AGAIN)
    for name, graph in manifest.graphs.items():
        if graph.file not in manifest.files:
            place = quoted(f"graphs.{name}.file")
            raise _wrong(file, f"{shown(graph.file)} as {place}", "a name in 'files'", AGAIN)
        if name in PREFILL_GRAPHS and PREFILL_DATA_FILE not in manifest.files:
            found, expected = (
                f"no {PREFILL_DATA_FILE} in 'files'",
                f"it where there is the graph {name}",
            )
            raise _wrong(file, found, expected, AGAIN)


def _wrong(file: Path, found: str, expected: str, advice: str) -> ModelFolderError:
    return ModelFolderError(f"{file}: found {found}, expected {expected}; {advice}")
