"""The self-test: the demo as it is, damaged, absent, changed by its company, and slow."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from model_folders import file_entry, with_manifest

import pocketlm
from pocketlm.doctor import self_test
from pocketlm.doctor.finding import OK, UNKNOWN, WARNING, WRONG, Finding
from pocketlm.doctor.golden import GOLDEN, PROMPT, TEXT
from pocketlm.doctor.self_test import check_demo, demo_folder, rows, speed, tokens
from pocketlm.export.errors import (
    CheckpointError,
    MissingExtraError,
    ModelFolderError,
    ResourceError,
    StorageError,
)
from pocketlm.export.manifest import DATA_FILE
from pocketlm.models.local import demo_model
from pocketlm.quantize.precisions import PRECISIONS


@pytest.fixture(scope="module")
def int8() -> pocketlm.Model:
    return pocketlm.load("demo", threads=1, prefix_cache_bytes=0)


def test_the_demo_as_it_is_is_well_and_leaves_nothing(
    int8: pocketlm.Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With one that is in the cache, and one that is not."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(self_test, "PRECISIONS", ["int8", "int4"])
    monkeypatch.setenv("POCKETLM_CACHE", str(tmp_path / "cache"))
    shutil.copytree(int8.folder.path, demo_model("int8").place(tmp_path / "cache"))
    found = {finding.name: finding for finding in check_demo()}
    assert list(found) == ["tokens", "rows", "speed"]
    assert found["tokens"].state == found["rows"].state == OK, found
    assert found["tokens"].figures["right"] == ["int8", "int4"]
    assert set(found["rows"].figures["groups"]) == {"int8", "int4"}
    assert found["speed"].figures["tokens_per_second"] > 0
    assert found["speed"].figures["read_bytes_per_second"] > 0
    assert [file.name for file in tmp_path.iterdir()] == ["cache"]
    assert len(list((tmp_path / "cache" / "models").iterdir())) == 1


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_runner_up_is_far_behind_at_every_stored_place(precision: str) -> None:
    model = pocketlm.load("demo", precision=precision, threads=1)
    ids = model.tokenizer.encode(TEXT)
    cache = model.session.new_cache()
    logits = model.session.step(ids[:PROMPT], cache)
    for place in range(PROMPT, len(ids) + 1):
        if place in GOLDEN:
            behind = sorted(logits.tolist())[-2]
            assert logits[GOLDEN[place]] - behind >= 1.8, place
        if place < len(ids):
            logits = model.session.step([ids[place]], cache)
    assert max(GOLDEN) == len(ids)


def test_other_weights_have_other_tokens(int8: pocketlm.Model, tmp_path: Path) -> None:
    """A copy that is whole by its manifest, as after products that are wrong."""
    shutil.copytree(int8.folder.path, tmp_path / "copy")
    file = tmp_path / "copy" / DATA_FILE
    data = bytearray(file.read_bytes())
    data[2 << 20 : 4 << 20] = data[2 << 20 : 4 << 20][::-1]
    file.write_bytes(data)
    files = int8.folder.files | {DATA_FILE: file_entry(file)}
    changed = with_manifest(tmp_path / "copy", replace(int8.folder.manifest, files=files))
    found = tokens({"int8": pocketlm.Model(changed, threads=1)})
    assert found.state == WRONG
    assert f"of {len(GOLDEN)} are not the stored ones: after " in found.found
    assert found.figures == {"right": [], "wrong": ["int8"], "not_tried": []}
    assert found.advice is not None and "pip install" in found.advice


def test_a_model_that_cannot_be_made_or_run_is_wrong(int8: pocketlm.Model) -> None:
    class Broken:
        tokenizer = int8.tokenizer

        @property
        def session(self) -> None:
            raise RuntimeError("Non-zero status code")

    broken: Any = Broken()
    refused = ModelFolderError("x: ONNX Runtime cannot open it; export it again")
    found = tokens({"fp32": refused, "int8": int8, "int4": broken})
    assert (found.state, found.figures["wrong"]) == (WRONG, ["fp32", "int4"])
    assert found.figures["right"] == ["int8"]
    assert (
        "fp32: x: ONNX Runtime cannot" in found.found
        and "int4: Non-zero status code" in found.found
    )


@pytest.mark.parametrize(
    "missing",
    [
        MissingExtraError("needs onnx; install it"),
        StorageError("x: found 3 MB free, expected 12 MB; free some space"),
        ResourceError("x: found no memory, expected more; close other programs"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_cannot_be_made_for_want_of_other_things_is_not_called_wrong(
    missing: Exception, int8: pocketlm.Model
) -> None:
    """Of a disk or memory that is full their own checks tell."""
    found = tokens({"int8": int8, "int4": missing})
    assert (found.state, found.figures["not_tried"]) == (OK, ["int4"])
    assert found.advice == str(missing).partition("; ")[2]
    alone = tokens({"int4": missing})
    assert (alone.state, alone.advice) == (UNKNOWN, found.advice)
    assert rows({"int4": missing}).state == speed({"int4": missing}).state == UNKNOWN


def test_an_application_without_the_demo_is_not_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    error = CheckpointError("x: found no demo model, expected it; bring the data")
    assert tokens({"int8": error}).state == WRONG
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert tokens({"int8": error}).state == UNKNOWN


def test_company_that_shows_is_wrong(int8: pocketlm.Model) -> None:
    class Other:
        row_group = 1

        def generate_many(self, texts: list[str], **options: Any) -> Iterator[Any]:
            for result in int8.generate_many(texts, **options):
                last_bit = result.logprobs and result.index == 2
                logprobs = [value * (1 + 2e-16) for value in result.logprobs or ()]
                yield replace(result, logprobs=logprobs) if last_bit else result

        generate = int8.generate

    other: Any = Other()
    found = rows({"int8": other})
    assert found.state == WRONG
    assert found.found == "int8: what is computed beside them changes 1 of 5 texts"
    assert rows({"int8": int8}).state == OK


def speed_of(model: pocketlm.Model, roof: float, busy: str | None = None) -> Finding:
    return speed({"int8": model}, lambda threads: roof, lambda: lambda: busy)


def test_a_speed_far_below_that_of_memory_is_told(int8: pocketlm.Model) -> None:
    found = speed_of(int8, 1e15)
    assert (found.state, found.figures["read_bytes_per_second"]) == (WARNING, 10**15)
    assert "far less than memory allows" in found.found
    assert speed_of(int8, 1e7).state == OK


def test_a_busy_machine_is_told(int8: pocketlm.Model) -> None:
    found = speed_of(int8, 1e7, "the machine was busy: others used 1.5 of its cores; measure again")
    assert (found.state, found.advice) == (WARNING, "measure again")
    assert found.found.endswith("; the machine was busy: others used 1.5 of its cores")


def test_speed_is_told_where_memory_cannot_be_measured(
    int8: pocketlm.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in an application that comes without the benchmarks."""
    monkeypatch.setitem(sys.modules, "pocketlm.benchmarks.speed.bandwidth", None)
    monkeypatch.setitem(sys.modules, "pocketlm.benchmarks.machine", None)
    found = speed({"int8": int8})
    assert (found.state, found.figures["read_bytes_per_second"]) == (OK, None)
    assert "tokens/s of the demo" in found.found


def test_a_model_in_the_cache_is_the_one_that_is_run(
    int8: pocketlm.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert demo_folder("int8", tmp_path / "out").path == int8.folder.path
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(self_test, "cache_folder", lambda: None)
    assert demo_folder("int8", tmp_path / "out").path == tmp_path / "out"


def test_an_application_runs_the_demo_that_it_brings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    brought = SimpleNamespace(path=tmp_path / "brought")
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr("pocketlm.models.loading.find_folder", lambda name: brought)
    assert demo_folder("int8", tmp_path / "out").path == brought.path
