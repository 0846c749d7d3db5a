"""The manifest: every field has its kind, and no bit of it changes unnoticed."""

from __future__ import annotations

import copy as copying
import dataclasses
import hashlib
import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
from command_line import Run, assert_refused
from hypothesis import given, settings
from hypothesis import strategies as st
from model_folders import with_manifest
from source_tree import ROOT

import pocketlm
from pocketlm.benchmarks.weight_errors import weight_errors
from pocketlm.export import manifest as kinds
from pocketlm.export.errors import ModelFolderError
from pocketlm.export.folder import MANIFEST, ModelFolder
from pocketlm.export.graph_check.graph import check_graph
from pocketlm.export.manifest import (
    DECODER,
    FORMAT_VERSION,
    GRAPH_FILES,
    INT8_KV_DECODER,
    REQUIRED_FILES,
    AdapterEntry,
    CalibrationEntry,
    GraphEntry,
    Manifest,
    PromiseEntry,
    RotationEntry,
    Tracing,
)
from pocketlm.export.manifest_file import LARGEST_MANIFEST, manifest_bytes, read_manifest, sealed
from pocketlm.export.records import field_types
from pocketlm.export.writing import export_model, open_decoder
from pocketlm.quantize.run import plan_of, precision_of

Fields = dict[str, Any]
# As earlier versions wrote them, each for a tiny model of random weights.
EARLIER = sorted((Path(__file__).parent / "manifests").glob("*.json"))


def set_at(*path: str, to: Any) -> Callable[[Fields], None]:
    def change(fields: Fields) -> None:
        for name in path[:-1]:
            fields = fields[name]
        fields[path[-1]] = to

    return change


def without(*path: str) -> Callable[[Fields], None]:
    def change(fields: Fields) -> None:
        for name in path[:-1]:
            fields = fields[name]
        del fields[path[-1]]

    return change


ENTRY = {"bytes": 1, "sha256": "0" * 64}
DAMAGES: dict[str, Callable[[Fields], None]] = {
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
    "no graphs": without("graphs"),
    "no graph of the decoder": without("graphs", "decoder"),
    "a graph outside the folder": set_at("graphs", "decoder", "file", to="../model.onnx"),
    "a graph that is not listed": set_at("graphs", "decoder", "file", to="other.onnx"),
    "a graph without a cache": without("graphs", "decoder", "cache"),
    "a cache in pages": set_at("graphs", "decoder", "cache", "layout", to="paged"),
    "a cache of whatever": set_at("graphs", "decoder", "cache", "dtype", to=["float32"]),
    "no precision": without("precision"),
    "a precision without a name": set_at("precision", to={}),
    "a precision that is text": set_at("precision", to="fp32"),
    "no architecture": without("architecture"),
    "no source": without("source"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_manifest_is_a_model_folder_error(name: str, copy: Path) -> None:
    fields = json.loads((copy / MANIFEST).read_text())
    DAMAGES[name](fields)
    (copy / MANIFEST).write_bytes(sealed(fields))
    with pytest.raises(ModelFolderError, match="found|missing"):
        ModelFolder.open(copy)
    with pytest.raises(ModelFolderError, match="found|missing"):
        pocketlm.load(copy)


@pytest.mark.parametrize("version", [None, 0, 4, "3", True, 3.0, [3]], ids=repr)
def test_another_version_is_refused(version: Any, copy: Path) -> None:
    fields = json.loads((copy / MANIFEST).read_text()) | {"format_version": version}
    (copy / MANIFEST).write_text(json.dumps(fields))
    told = "found format_version .*, expected 1, 2 or 3; export"
    with pytest.raises(ModelFolderError, match=told):
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
    """Which names the file with its place: whoever reads it may have many folders."""
    (copy / MANIFEST).write_bytes(data)
    with pytest.raises(ModelFolderError, match=re.escape(str(copy / MANIFEST))):
        ModelFolder.open(copy)


# The digest --------------------------------------------------------------------------------------


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_any_flipped_bit_is_found(copy: Path) -> None:
    """Those of the version, too: a single one makes a 3 of it a 1, which has no digest."""
    file = copy / MANIFEST
    data = file.read_bytes()
    bits = 8 * len(data)
    at_the_start = range(8 * 25)  # the version, its name, and what is around them
    at_the_end = range(bits - 8 * 80, bits)  # the digest, and the same of it
    for bit in [*at_the_start, *at_the_end, *random.Random(1).sample(range(bits), 100)]:
        file.write_bytes(flipped(data, bit))
        with pytest.raises(ModelFolderError):
            read_manifest(file)
    file.write_bytes(data)
    ModelFolder.open(copy)


def test_the_digest_is_that_of_every_byte_before_it(tiny_folder: ModelFolder) -> None:
    data = (tiny_folder.path / MANIFEST).read_bytes()
    digest = hashlib.sha256(data[:-68]).hexdigest()
    assert data[-68:] == f'{digest}"\n}}\n'.encode()
    assert tiny_folder.manifest.sha256 == digest


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace('"context_length": 160', '"context_length": 16'),
        lambda text: text.replace('"sha256"', '"SHA256"'),
        lambda text: json.dumps(json.loads(text)),
        lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "sha256"}),
        lambda text: text.replace('"format_version": 3', '"format_version": 1'),
        lambda text: text + "\n",
        lambda text: text.replace("\n", "\r\n"),
    ],
    ids=["a number", "names", "laid out anew", "no digest", "version", "a line more", "line ends"],
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


# Earlier versions --------------------------------------------------------------------------------


def earlier(version: int, files: Any) -> bytes:
    """The manifest that a version wrote for a model of the shape of ``tiny_folder``."""
    fields = json.loads((Path(__file__).parent / "manifests" / "2-fp32.json").read_text())
    data = sealed(fields | {"files": files})
    data = data.replace(b'"format_version": 3', b'"format_version": %d' % version)
    before = data[: data.rindex(b'"') - 64]
    if version == 1:
        return before.removesuffix(b',\n "sha256": "') + b"\n}"
    return before + hashlib.sha256(before).hexdigest().encode() + b'"\n}\n'


@pytest.mark.parametrize("version", [1, 2])
def test_a_folder_of_an_earlier_version_is_as_one_of_today(
    version: int, copy: Path, tiny_model: pocketlm.Model, tmp_path: Path, run: Run
) -> None:
    today = ModelFolder.open(copy).manifest
    (copy / MANIFEST).write_bytes(earlier(version, today.to_json()["files"]))
    model = pocketlm.load(copy, threads=1)
    found = model.folder.manifest
    assert found.format_version == version
    assert replace(found, source=today.source) == today
    texts = [one.generate("abc", max_tokens=5, temperature=0) for one in (model, tiny_model)]
    assert texts[0].token_ids == texts[1].token_ids
    assert f"of version {version}" in run("info", copy).out
    printed = json.loads(run("info", copy, "--json").out)
    assert printed["format_version"] == FORMAT_VERSION and "contract" not in printed
    assert run("quantize", copy, tmp_path / "out", "--to", "int8", "--quiet").code == 0
    assert ModelFolder.open(tmp_path / "out").manifest.format_version == FORMAT_VERSION


def test_a_folder_of_version_1_says_that_it_has_no_digest(copy: Path, run: Run) -> None:
    assert "without a digest" not in run("info", copy).out
    assert run("info", copy, "--verify").out.endswith("all files are as they were written\n")
    (copy / MANIFEST).write_bytes(earlier(1, ModelFolder.open(copy).manifest.to_json()["files"]))
    assert "of version 1, without a digest of itself" in run("info", copy).out
    ended = run("info", copy, "--verify")
    assert ended.code == 0 and "as they were written" not in ended.out
    assert ended.out.endswith("all other files are as the manifest says\n")


@pytest.mark.parametrize("file", EARLIER, ids=lambda file: file.stem)
def test_nothing_that_an_earlier_manifest_says_is_lost(file: Path, tmp_path: Path) -> None:
    before, found = json.loads(file.read_text()), read_manifest(file)
    graph, report = found.graphs[DECODER], found.precision.report
    after = found.to_json()
    for name in ("architecture", "num_parameters", "source", "decoder", "files"):
        assert after[name] == before[name]
    assert {"inputs": graph.inputs, "outputs": graph.outputs} == before["contract"]
    traced = before.get("graph", {})
    assert graph.cache.layout == traced.get("cache", "in-place")
    assert (graph.traced.made_by if graph.traced else None) == traced.get("made_by")
    assert (graph.traced.not_rewritten if graph.traced else None) == traced.get("not_rewritten")
    flat = {**after["precision"], **after["precision"].pop("report", {})}
    flat.pop("report", None)
    if report is not None:
        flat["skipped"] = [{"name": name, "reason": why} for name, why in report.skipped.items()]
    assert flat == before["precision"]
    (tmp_path / MANIFEST).write_bytes(manifest_bytes(found))
    assert read_manifest(tmp_path / MANIFEST) == found


def test_an_earlier_manifest_names_the_places_that_it_has(tmp_path: Path) -> None:
    file = tmp_path / MANIFEST
    for path, change, told in [
        ("2-growing", set_at("graph", "cache", to="paged"), "'paged' as 'graph.cache', expected i"),
        ("2-fp32", without("contract", "outputs"), "nothing as 'contract.outputs', expected an o"),
        ("2-int4", without("precision", "head"), "nothing as 'precision.head', expected text"),
        ("1-int4", set_at("precision", "skipped", to=[{}]), "as 'precision.skipped.0.name', exp"),
        ("1-int4", without("files", "model.onnx"), "no model.onnx in 'files', expected at least"),
    ]:
        fields = json.loads((Path(__file__).parent / "manifests" / f"{path}.json").read_text())
        fields |= {"format_version": 1}
        fields.pop("sha256", None)
        change(fields)
        file.write_text(json.dumps(fields))
        with pytest.raises(ModelFolderError, match=f"found .*{told}"):
            read_manifest(file)


# Types -------------------------------------------------------------------------------------------

Place = tuple[Any, ...]
OTHERS: list[Any] = [None, True, -1, 7, 10**30, 0.5, 1e300, "", "x", [], [1], {}, {"x": 1}]


def places(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every value in a JSON value, with where it stands."""
    pairs = value.items() if isinstance(value, dict) else ()
    for key, inner in enumerate(value) if isinstance(value, list) else pairs:
        yield (*place, key), inner
        yield from places(inner, (*place, key))


def with_value(fields: Fields, place: Place, value: Any) -> Fields:
    changed = copying.deepcopy(fields)
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
    """A folder whose manifest has every field: traced, rotated, quantized in part, from the hub."""
    decoder = open_decoder(tiny_folder)
    adapter = AdapterEntry(
        name="lora", weight=0.5, base_model="org/name", files={"adapter_config.json": "0" * 64}
    )
    source = replace(decoder.source(), repository="org/name", commit="0" * 40)
    source = replace(source, quantized=("Q4_1",), adapters=(adapter,))
    folder = export_model(
        replace(
            decoder,
            source=lambda: source,
            traced=Tracing(made_by="a test 1.0", not_rewritten="no need"),
        ),
        tmp_path_factory.mktemp("written") / "out",
        precision_of("int4", 64, "fp32", prefill=True),  # 64 does not divide: with reasons
    )
    prefill = folder.manifest.precision.prefill
    assert prefill is not None
    tensors = tuple(replace(tensor, reason="a reason") for tensor in prefill.tensors)
    precision = replace(
        folder.manifest.precision,
        prefill=replace(prefill, tensors=tensors),
        rotation=RotationEntry(seed=0, parts=("R1",), skipped={"R2": "a reason"}),
        calibration=CalibrationEntry(kind="dream", seed=0, tokens=16_384, digest="0" * 64),
        promise=PromiseEntry(
            max_kl=0.01, max_bytes=80_000_000, kl=0.009, tokens=4096, text="other.txt"
        ),
    )
    return with_manifest(folder.path, replace(folder.manifest, precision=precision))


def test_the_plan_of_a_folder_asks_for_what_was_asked_for(written: ModelFolder) -> None:
    rotation = plan_of(written).rotation
    assert rotation is not None and rotation.parts == ("R1", "R2")


def test_a_value_of_another_type_is_refused_or_does_no_harm(
    written: ModelFolder, tmp_path: Path, run: Run
) -> None:
    copy = Path(shutil.copytree(written.path, tmp_path / "copy"))
    refused: list[Fields] = []
    fields = written.manifest.to_json()
    one_of_each = {generic(place): (place, value) for place, value in places(fields)}
    for place, value in one_of_each.values():
        for other in OTHERS:
            if place in {("format_version",), ("sha256",)} or same_kind(other, value):
                continue
            changed = with_value(fields, place, other)
            (copy / MANIFEST).write_bytes(sealed(changed))
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
        (copy / MANIFEST).write_bytes(sealed(changed))
        assert_refused(run("info", copy), "pocketlm.json: found .*, expected")
        assert_refused(run("info", copy, "--json"), "pocketlm.json: found .*, expected")
        refusal = run("quantize", copy, tmp_path / "out", "--to", "int8")
        assert_refused(refusal, "pocketlm.json: found .*, expected")


def test_a_wrong_field_is_named_by_every_verb(copy: Path, tmp_path: Path, run: Run) -> None:
    fields = json.loads((copy / MANIFEST).read_text())
    fields["precision"] = {"name": "fp32", "report": {"tensors": [{"x": 1}], "share_quantized": 1}}
    (copy / MANIFEST).write_bytes(sealed(fields))
    told = "found nothing as 'precision.report.bytes_before', expected a positive integer"
    for arguments in (["info", copy], ["info", copy, "--json"], ["run", copy, "x"]):
        assert_refused(run(*arguments), told)
    assert_refused(run("quantize", copy, tmp_path / "out", "--to", "int8"), told)


def test_an_earlier_value_of_another_type_is_refused_or_read(tmp_path: Path) -> None:
    file = tmp_path / MANIFEST
    refused = 0
    for example in EARLIER:
        fields = json.loads(example.read_text()) | {"format_version": 1}
        fields.pop("sha256", None)
        for place, value in places(fields):
            other = random.Random(str(place)).choice(OTHERS)
            if place == ("format_version",) or same_kind(other, value):
                continue
            file.write_text(json.dumps(with_value(fields, place, other)))
            try:
                read_manifest(file)
            except ModelFolderError as error:
                assert "expected" in str(error)
                refused += 1
    assert refused > 100


# Reading is the inverse of writing ---------------------------------------------------------------

texts = st.text(max_size=8)
of_kind: dict[Any, st.SearchStrategy[Any]] = {
    str: texts,
    kinds.COUNT: st.integers(0, (1 << 63) - 1),
    kinds.POSITIVE: st.integers(1, (1 << 63) - 1),
    kinds.SIZE: st.integers(1, (1 << 31) - 1),
    kinds.FIGURE: st.floats(0, 1e99) | st.integers(0, 10**20),
    kinds.SIZES: st.lists(st.integers(1, (1 << 31) - 1), min_size=1, max_size=8).map(tuple),
    kinds.SHA256: st.text("0123456789abcdef", min_size=64, max_size=64),
    kinds.LAYOUT: st.sampled_from(["in-place", "growing"]),
    kinds.DTYPE: st.sampled_from(["float32", "int8"]),
}


def of_type(annotation: Any) -> st.SearchStrategy[Any]:
    """Whatever a field of that type may hold."""
    if dataclasses.is_dataclass(annotation):
        assert isinstance(annotation, type)
        return records(annotation)
    inner = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return of_kind[inner[1]] if inner[1] in of_kind else of_type(inner[0])
    if get_origin(annotation) is dict:
        return st.dictionaries(texts, of_type(inner[1]), max_size=2)
    if get_origin(annotation) is tuple:
        return st.lists(of_type(inner[0]), max_size=2).map(tuple)
    return of_kind[annotation]


def records(record: type) -> st.SearchStrategy[Any]:
    """Instances of a dataclass, with and without what may be left out."""
    types = field_types(record)
    fields = [field for field in dataclasses.fields(record) if field.compare]
    given = {
        field.name: of_type(types[field.name])
        if field.default is dataclasses.MISSING
        else st.none() | of_type(types[field.name])
        for field in fields
    }
    return st.builds(record, **given)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """Manifests whose files and graphs are those that a folder must have, or more."""
    files, graphs = of_type(kinds.FileEntry), of_type(GraphEntry)
    names = draw(st.lists(st.from_regex(r"[a-z]{1,8}\.bin", fullmatch=True), max_size=2))
    listed = {name: draw(files) for name in (*REQUIRED_FILES, *names)}
    file = st.sampled_from(sorted(listed))
    named = {
        name: replace(draw(graphs), file=draw(file)) for name in (DECODER, *draw(st.lists(texts)))
    }
    manifest: Manifest = draw(records(Manifest))
    return replace(manifest, files=listed, graphs=named)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("place") / MANIFEST


@settings(deadline=None, max_examples=40)  # a busy machine is no failure
@given(manifest=manifests(), bit=st.integers(0))
def test_reading_inverts_writing_and_finds_any_flipped_bit(
    place: Path, manifest: Manifest, bit: int
) -> None:
    data = manifest_bytes(manifest)
    place.write_bytes(data)
    assert read_manifest(place) == manifest
    place.write_bytes(flipped(data, bit % (8 * len(data))))
    with pytest.raises(ModelFolderError):
        read_manifest(place)


def test_what_may_be_left_out_is_shown_where_it_is(
    written: ModelFolder, copy: Path, run: Run
) -> None:
    opened = ModelFolder.open(copy)
    given = written.manifest.precision
    shown = "precision     int4, blocks of 64, head in fp32; "
    for precision, line in (
        (given, shown),
        (replace(given, block_size=None, head=None), "precision     int4; "),
        (kinds.PrecisionEntry(name="fp32"), "precision     fp32\n"),
    ):
        with_manifest(copy, replace(opened.manifest, precision=precision))
        assert line in run("info", copy).out


def test_names_that_are_no_fields_are_passed_over(copy: Path) -> None:
    before = ModelFolder.open(copy).manifest
    fields = before.to_json() | {"more": {"x": None}}
    fields["graphs"]["decoder"]["more"] = [1]
    (copy / MANIFEST).write_bytes(sealed(fields))
    assert ModelFolder.open(copy).manifest == before


# Graphs ------------------------------------------------------------------------------------------


def with_second_graph(copy: Path, data: bytes, dtype: str) -> ModelFolder:
    """A folder with another graph over the same weights."""
    opened = ModelFolder.open(copy)
    name = GRAPH_FILES[INT8_KV_DECODER]
    (copy / name).write_bytes(data)
    cache = kinds.CacheKind(layout="in-place", dtype=dtype)
    graph = replace(opened.graph(), file=name, cache=cache)
    manifest = replace(
        opened.manifest,
        graphs=opened.manifest.graphs | {INT8_KV_DECODER: graph},
        files=opened.files
        | {name: kinds.FileEntry(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())},
    )
    return with_manifest(copy, manifest)


def test_any_named_graph_is_checked_as_the_first_is(copy: Path, run: Run) -> None:
    data = (copy / "model.onnx").read_bytes()
    folder = with_second_graph(copy, data, "float32")
    assert folder.graph_file(INT8_KV_DECODER) == copy / "model_int8_kv.onnx"
    check_graph(folder, INT8_KV_DECODER)
    assert run("info", copy, "--verify").code == 0
    # As long, but for what it is: the other graph stays right.
    changed = with_second_graph(
        copy, data.replace(b"LayerNormalization", b"LayerNormalizatioX"), "float32"
    )
    check_graph(changed)
    with pytest.raises(ModelFolderError, match=r"model_int8_kv\.onnx: found the operator"):
        check_graph(changed, INT8_KV_DECODER)
    assert_refused(run("info", copy, "--verify"), r"model_int8_kv\.onnx: found the operator")


def test_a_cache_of_another_dtype_than_the_manifest_says_is_refused(copy: Path) -> None:
    folder = with_second_graph(copy, (copy / "model.onnx").read_bytes(), "int8")
    with pytest.raises(ModelFolderError, match="past_key_values.0.key of float32 .* of int8"):
        check_graph(folder, INT8_KV_DECODER)


def test_a_graph_that_is_not_there_is_named_with_those_that_are(tiny_folder: ModelFolder) -> None:
    with pytest.raises(ModelFolderError, match="found the graphs decoder, expected encoder among"):
        tiny_folder.graph("encoder")


# The page in docs/ -------------------------------------------------------------------------------

WORDS = {
    **{kinds.LAYOUT: "text", kinds.DTYPE: "text", kinds.SHA256: "text"},
    **{kinds.COUNT: "whole number", kinds.POSITIVE: "positive", kinds.FIGURE: "number"},
    **{kinds.SIZE: "size", kinds.SIZES: "sizes"},
}


def described(annotation: Any, path: str) -> Iterator[tuple[str, str, str]]:
    """(path, word for its type, always or optional) of what is in a value of that type."""
    if dataclasses.is_dataclass(annotation):
        assert isinstance(annotation, type)
        for field in dataclasses.fields(annotation):
            left_out = field.default is None and field.name != "sha256"
            inner = field_types(annotation)[field.name]
            where = f"{path}.{field.name}".lstrip(".")
            yield where, word(inner), "optional" if left_out else "always"
            yield from described(inner, where)
    elif get_origin(annotation) is Annotated:
        if get_args(annotation)[1] is not kinds.SIZES:
            yield from described(get_args(annotation)[0], path)
    elif get_origin(annotation) in (dict, tuple):
        inner = get_args(annotation)[get_origin(annotation) is dict]
        yield f"{path}.*", word(inner), "always"
        yield from described(inner, f"{path}.*")


def word(annotation: Any) -> str:
    """What the page calls a type."""
    if get_origin(annotation) is Annotated:
        return WORDS.get(get_args(annotation)[1], "object")
    if annotation is str:
        return "text"
    return "list" if get_origin(annotation) is tuple else "object"


DESCRIBED = list(described(Manifest, ""))


def generic(place: Place) -> str:
    """The documented path that a place of a manifest is of; itself for others."""
    for path, _, _ in DESCRIBED:
        steps = path.split(".")
        if len(steps) == len(place) and all(
            step in ("*", key) for step, key in zip(steps, place, strict=True)
        ):
            return path
    return ".".join(map(str, place))


def test_the_page_lists_exactly_the_fields_with_their_types(written: ModelFolder) -> None:
    page = (ROOT / "docs" / "pocketlm-json.md").read_text("utf-8")
    assert f"at most {LARGEST_MANIFEST // 10**6} MB" in page
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \| (\w+) \|", page, re.MULTILINE)
    assert rows == DESCRIBED
    found = {generic(place) for place, _ in places(written.manifest.to_json())}
    for name in ("report", "prefill"):
        found -= {f"precision.{name}.tensors.{i}.shape.{j}" for i in range(99) for j in range(8)}
    assert {path for path, _, _ in rows} == found  # that fixture leaves nothing out
