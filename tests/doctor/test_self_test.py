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
from pocketlm.doctor.finding import OK, UNKNOWN, WARNING, WRONG
from pocketlm.doctor.golden import GOLDEN, PROMPT, TEXT
from pocketlm.doctor.self_test import check_demo, demo_folder, rows, speed, tokens
from pocketlm.export.errors import CheckpointError, MissingExtraError, StorageError
from pocketlm.export.manifest import DATA_FILE
from pocketlm.quantize.precisions import PRECISIONS


@pytest.fixture(scope="module")
def int8() -> pocketlm.Model:
    return pocketlm.load("demo", threads=1, prefix_cache_bytes=0)


def test_the_demo_as_it_is_is_well_in_every_precision_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = {finding.name: finding for finding in check_demo()}
    assert list(found) == ["tokens", "rows", "speed"]
    assert found["tokens"].state == found["rows"].state == OK, found
    assert found["tokens"].figures["right"] == list(PRECISIONS)
    assert set(found["rows"].figures["groups"]) == {"int8", "int4"}
    assert found["speed"].figures["tokens_per_second"] > 0
    assert found["speed"].figures["bandwidth"] > 0
    assert list(tmp_path.iterdir()) == []


def test_the_runner_up_is_far_behind_at_every_stored_place(int8: pocketlm.Model) -> None:
    ids = int8.tokenizer.encode(TEXT)
    cache = int8.session.new_cache()
    logits = int8.session.step(ids[:PROMPT], cache)
    for place in range(PROMPT, len(ids) + 1):
        if place in GOLDEN:
            behind = sorted(logits.tolist())[-2]
            assert logits[GOLDEN[place]] - behind >= 1.8, place
        if place < len(ids):
            logits = int8.session.step([ids[place]], cache)
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
    found = tokens({"fp32": StorageError("x: disk full; free it"), "int8": int8, "int4": broken})
    assert (found.state, found.figures["wrong"]) == (WRONG, ["fp32", "int4"])
    assert found.figures["right"] == ["int8"]
    assert "fp32: x: disk full" in found.found and "int4: Non-zero status code" in found.found


def test_what_an_extra_would_make_is_not_wrong(int8: pocketlm.Model) -> None:
    missing = MissingExtraError('needs onnx; install it with: pip install "pocketlm[export]"')
    found = tokens({"int8": int8, "int4": missing})
    assert (found.state, found.figures["not_tried"]) == (OK, ["int4"])
    assert found.advice == 'install it with: pip install "pocketlm[export]"'
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


def test_a_speed_far_below_that_of_memory_is_told(int8: pocketlm.Model) -> None:
    found = speed({"int8": int8}, bandwidth=lambda threads: 1e15)
    assert (found.state, found.figures["bandwidth"]) == (WARNING, 10**15)
    assert "far less than memory allows" in found.found
    assert speed({"int8": int8}, bandwidth=lambda threads: 1.0).state == OK


def test_speed_is_told_where_memory_cannot_be_measured(int8: pocketlm.Model) -> None:
    def absent(threads: int) -> float:
        raise ModuleNotFoundError("No module named 'pocketlm.benchmarks'")

    found = speed({"int8": int8}, bandwidth=absent)
    assert (found.state, found.figures["bandwidth"]) == (OK, None)
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
    brought = SimpleNamespace(path="brought")
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr("pocketlm.models.loading.find_folder", lambda name: brought)
    assert demo_folder("int8", tmp_path / "out").path == "brought"
