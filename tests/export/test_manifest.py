"""The manifest: every field has its kind, and no bit of it changes unnoticed."""

from __future__ import annotations

import copy as copying
import hashlib
import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import Run, assert_refused
from source_tree import ROOT

import pocketlm
from pocketlm.benchmarks.weight_errors import weight_errors
from pocketlm.export.errors import ModelFolderError
from pocketlm.export.folder import MANIFEST, ModelFolder
from pocketlm.export.manifest import (
    FIELDS,
    LARGEST_MANIFEST,
    QUANTIZED_FIELDS,
    manifest_bytes,
    read_manifest,
)
from pocketlm.export.writing import export_model, open_decoder
from pocketlm.quantize.plan import plan_for
from pocketlm.quantize.run import Quantized, plan_of

Manifest = dict[str, Any]


def set_at(*path: str, to: Any) -> Callable[[Manifest], None]:
    def change(manifest: Manifest) -> None:
        for name in path[:-1]:
            manifest = manifest[name]
        manifest[path[-1]] = to

    return change


def without(*path: str) -> Callable[[Manifest], None]:
    def change(manifest: Manifest) -> None:
        for name in path[:-1]:
            manifest = manifest[name]
        del manifest[path[-1]]

    return change


ENTRY = {"bytes": 1, "sha256": "0" * 64}
DAMAGES: dict[str, Callable[[Manifest], None]] = {
    "no files": without("files"),
    "files in a list": set_at("files", to=["model.onnx", "model.onnx_data"]),
    "no graph": without("files", "model.onnx"),
    "no weights": without("files", "model.onnx_data"),
    "no tokenizer": without("files", "tokenizer.json"),
    "no generation config": without("files", "generation_config.json"),
    "an entry that is null": set_at("files", "model.onnx", to=None),
    "an entry without a size": set_at("files", "model.onnx", to={"sha256": "0" * 64}),
    "an entry without a hash": set_at("files", "model.onnx", to={"bytes": 1}),
    "a size that is text": set_at("files", "model.onnx", "bytes", to="10"),
    "a size that is wrong": set_at("files", "model.onnx", "bytes", to=10),
    "a negative size": set_at("files", "model.onnx", "bytes", to=-1),
    "a hash that is a number": set_at("files", "model.onnx", "sha256", to=7),
    "a path upwards": set_at("files", "../file", to=ENTRY),
    "an absolute path": set_at("files", "/etc/hostname", to=ENTRY),
    "a Windows path": set_at("files", "a\\b", to=ENTRY),
    "an empty name": set_at("files", "", to=ENTRY),
    "the name of the folder": set_at("files", ".", to=ENTRY),
    "the manifest itself": set_at("files", MANIFEST, to=ENTRY),
    "a name with a zero byte": set_at("files", "a\0b", to=ENTRY),
    "a name too long for a file": set_at("files", "a" * 5000, to=ENTRY),
    "a file that is not there": set_at("files", "more.bin", to=ENTRY),
    "no decoder": without("decoder"),
    "a decoder that is a list": set_at("decoder", to=[1]),
    "a decoder without a size": without("decoder", "num_heads"),
    "a decoder with one too many": set_at("decoder", "num_experts", to=1),
    "a size of zero": set_at("decoder", "num_layers", to=0),
    "a size beyond belief": set_at("decoder", "num_layers", to=1 << 40),
    "a fractional size": set_at("decoder", "head_size", to=8.0),
    "a size that is true": set_at("decoder", "kv_heads", to=True),
    "no precision": without("precision"),
    "a precision without a name": set_at("precision", to={}),
    "a precision that is text": set_at("precision", to="fp32"),
    "no architecture": without("architecture"),
    "no source": without("source"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_manifest_is_a_model_folder_error(name: str, copy: Path) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    DAMAGES[name](manifest)
    (copy / MANIFEST).write_bytes(manifest_bytes(manifest))
    with pytest.raises(ModelFolderError, match="found|missing"):
        ModelFolder.open(copy)
    with pytest.raises(ModelFolderError, match="found|missing"):
        pocketlm.load(copy)


@pytest.mark.parametrize("version", [None, 0, 3, "2", True, 2.0, [2]], ids=repr)
def test_another_version_is_refused(version: Any, copy: Path) -> None:
    manifest = json.loads((copy / MANIFEST).read_text()) | {"format_version": version}
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ModelFolderError, match="found format_version .*, expected 1 or 2; export"):
        ModelFolder.open(copy)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b"\xff\xfe",
        b'{"format_version": 1, "format_version": 1}',
        b'{"format_version": NaN}',
        b"[" * 100_000,
        b'{"format_version": 1e999}',
    ],
    ids=lambda data: str(data[:30]),
)
def test_a_manifest_that_is_no_json_object_is_a_model_folder_error(data: bytes, copy: Path) -> None:
    (copy / MANIFEST).write_bytes(data)
    with pytest.raises(ModelFolderError, match=MANIFEST):
        ModelFolder.open(copy)


# The digest --------------------------------------------------------------------------------------


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_any_flipped_bit_is_found(copy: Path) -> None:
    file = copy / MANIFEST
    data = file.read_bytes()
    bits = 8 * len(data)
    at_the_end = range(bits - 8 * 80, bits)  # the digest, its name, and what is around them
    for bit in [*at_the_end, *random.Random(1).sample(range(bits), 200)]:
        file.write_bytes(flipped(data, bit))
        with pytest.raises(ModelFolderError):
            read_manifest(file)
    file.write_bytes(data)
    ModelFolder.open(copy)


def test_the_digest_is_that_of_every_byte_before_it(tiny_folder: ModelFolder) -> None:
    data = (tiny_folder.path / MANIFEST).read_bytes()
    digest = hashlib.sha256(data[:-68]).hexdigest()
    assert data[-68:] == f'{digest}"\n}}\n'.encode()
    assert tiny_folder.manifest["sha256"] == digest


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace('"context_length": 160', '"context_length": 16'),
        lambda text: text.replace('"sha256"', '"SHA256"'),
        lambda text: json.dumps(json.loads(text)),
        lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "sha256"}),
        lambda text: text + "\n",
        lambda text: text.replace("\n", "\r\n"),
    ],
    ids=["a number", "names", "laid out anew", "no digest", "a line more", "line ends"],
)
def test_an_edit_by_hand_is_reported_as_one(
    edit: Callable[[str], str], copy: Path, run: Run
) -> None:
    text = (copy / MANIFEST).read_text()
    assert edit(text) != text
    (copy / MANIFEST).write_bytes(edit(text).encode())
    told = "pocketlm.json: found .*, expected .* the manifest was changed after it was written"
    with pytest.raises(ModelFolderError, match=told):
        ModelFolder.open(copy)
    with pytest.raises(ModelFolderError, match=told):
        pocketlm.load(copy)
    assert_refused(run("info", copy, "--verify"), told)


def test_a_folder_of_version_1_opens_and_says_that_it_has_no_digest(copy: Path, run: Run) -> None:
    assert "without a digest" not in run("info", copy).out
    assert run("info", copy, "--verify").out.endswith("all files are as they were written\n")
    manifest = json.loads((copy / MANIFEST).read_text()) | {"format_version": 1}
    del manifest["sha256"]
    (copy / MANIFEST).write_text(json.dumps(manifest))
    assert pocketlm.load(copy).folder.manifest == manifest
    assert "of version 1, without a digest of itself" in run("info", copy).out
    ended = run("info", copy, "--verify")
    assert ended.code == 0 and "as they were written" not in ended.out
    assert ended.out.endswith("all other files are as the manifest says\n")


# Types -------------------------------------------------------------------------------------------

Place = tuple[Any, ...]
OTHERS: list[Any] = [None, True, -1, 7, 10**30, 0.5, 1e300, "", "x", [], [1], {}, {"x": 1}]


def places(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every value in a JSON value, with where it stands."""
    pairs = value.items() if isinstance(value, dict) else ()
    for key, inner in enumerate(value) if isinstance(value, list) else pairs:
        yield (*place, key), inner
        yield from places(inner, (*place, key))


def with_value(manifest: Manifest, place: Place, value: Any) -> Manifest:
    changed = copying.deepcopy(manifest)
    inner: Any = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return changed


def same_kind(one: Any, other: Any) -> bool:
    """Both text, objects or lists. Numbers differ in size as well."""
    return type(one) is type(other) and not isinstance(one, int | float)


@pytest.fixture(scope="module")
def written(tiny_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """A folder whose manifest has every field: traced, quantized by a plan, from the hub."""
    decoder = open_decoder(tiny_folder)
    source = decoder.source() | {"repository": "org/name", "commit": "0" * 40}
    graph = {"made_by": "a test 1.0", "cache": "in-place", "not_rewritten": "no need"}
    plan = plan_for(decoder.model, "int4", 64, "fp32")
    assert "int4-block32" in plan.formats.values()  # since 64 does not divide
    plan = replace(plan, calibration={"tokens": 9, "text": "x"}, promise={"kl": 0.5, "text": "y"})
    return export_model(
        replace(decoder, source=lambda: source, graph=graph),
        tmp_path_factory.mktemp("written") / "out",
        Rotated(plan.fitting),
    )


class Rotated(Quantized):
    """Says that it has rotated the weights first."""

    def describe(self, num_parameters: int) -> dict[str, Any]:
        skipped = {"R2": "no need", "wte.weight": "no need either"}
        rotation = {"seed": 3, "parts": ["R1"], "skipped": skipped}
        return super().describe(num_parameters) | {"rotation": rotation}


def test_the_plan_of_a_folder_asks_for_what_was_asked_for(written: ModelFolder) -> None:
    rotation = plan_of(written).rotation
    assert rotation is not None and (rotation.seed, rotation.parts) == (3, ("R1", "R2"))


def test_a_value_of_another_type_is_refused_or_does_no_harm(
    written: ModelFolder, tmp_path: Path, run: Run
) -> None:
    copy = Path(shutil.copytree(written.path, tmp_path / "copy"))
    refused: list[Manifest] = []
    one_of_each = {generic(place): (place, value) for place, value in places(written.manifest)}
    for place, value in one_of_each.values():
        for other in OTHERS:
            if place in {("format_version",), ("sha256",)} or same_kind(other, value):
                continue
            changed = with_value(written.manifest, place, other)
            (copy / MANIFEST).write_bytes(manifest_bytes(changed))
            try:
                opened = ModelFolder.open(copy)
            except ModelFolderError as error:
                assert "expected" in str(error)
                refused.append(changed)
                continue
            weight_errors(opened)
            for arguments in ([], ["--json"]):
                ended = run("info", copy, *arguments)
                assert (ended.code, ended.err) == (0, ""), (place, other)
    for changed in random.Random(2).sample(refused, 10):
        (copy / MANIFEST).write_bytes(manifest_bytes(changed))
        assert_refused(run("info", copy), "pocketlm.json: found .*, expected")
        assert_refused(run("info", copy, "--json"), "pocketlm.json: found .*, expected")
        refusal = run("quantize", copy, tmp_path / "out", "--to", "int8")
        assert_refused(refusal, "pocketlm.json: found .*, expected")


def test_a_wrong_field_is_named_by_every_verb(copy: Path, tmp_path: Path, run: Run) -> None:
    manifest = json.loads((copy / MANIFEST).read_text()) | {"format_version": 1}
    manifest["precision"] = {"name": "fp32", "tensors": [{"x": 1}], "share_quantized": "x"}
    (copy / MANIFEST).write_text(json.dumps(manifest))
    for arguments in (["info", copy], ["info", copy, "--json"], ["run", copy, "x"]):
        assert_refused(run(*arguments), "found 'x' as 'precision.share_quantized', expected a n")
    ended = run("quantize", copy, tmp_path / "out", "--to", "int8")
    assert_refused(ended, "found 'x' as 'precision.share_quantized'")


# The page in docs/ -------------------------------------------------------------------------------


def generic(place: Place) -> str:
    """The documented path that a place of a manifest is of; itself for others."""
    for path in [*FIELDS, *QUANTIZED_FIELDS]:
        steps = path.replace("?", "").split(".")
        if len(steps) == len(place) and all(
            step in ("*", key) for step, key in zip(steps, place, strict=True)
        ):
            return ".".join(steps)
    return ".".join(map(str, place))


def test_the_page_lists_exactly_what_an_export_writes(written: ModelFolder) -> None:
    page = (ROOT / "docs" / "pocketlm-json.md").read_text("utf-8")
    assert f"at most {LARGEST_MANIFEST // 10**6} MB" in page
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \| (\w+) \|", page, re.MULTILINE)
    found = {generic(place) for place, _ in places(written.manifest)}
    found -= {f"precision.tensors.{i}.shape.{j}" for i in range(99) for j in range(8)}
    assert {name for name, _, _ in rows} == found
    optional = {path for path in [*FIELDS, *QUANTIZED_FIELDS] if "?" in path}
    for kind, paths in (("optional", optional), ("quantized", {*QUANTIZED_FIELDS} - optional)):
        expected = {path.replace("?", "") for path in paths}
        assert {name for name, _, where in rows if where == kind} == expected
