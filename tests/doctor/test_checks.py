"""Every check, where all is well and where it is not: made so for real, or by what it is told."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest
from command_line import Run

from pocketlm.doctor.cache import check_cache, check_disk, check_locks, check_models
from pocketlm.doctor.cores import check_cores
from pocketlm.doctor.finding import OK, UNKNOWN, WARNING, WRONG, Finding
from pocketlm.doctor.memory import check_memory
from pocketlm.doctor.onnxruntime_build import check_onnxruntime, judged
from pocketlm.doctor.packages import (
    EXTRAS,
    Requirement,
    check_extras,
    check_packages,
    check_python,
    requirements,
)
from pocketlm.doctor.processor import check_processor, precisions
from pocketlm.doctor.provider import check_provider
from pocketlm.doctor.telemetry import check_telemetry
from pocketlm.export.folder import MINIMUM_ONNXRUNTIME, ModelFolder
from pocketlm.export.lock import locked
from pocketlm.models.local import demo_model, lock_file
from pocketlm.runtime import processor, providers
from pocketlm.runtime.providers import Obstacle


def only(findings: Iterator[Finding]) -> Finding:
    (finding,) = findings
    return finding


# Python and packages -----------------------------------------------------------------------------


def test_an_old_python_is_wrong() -> None:
    assert only(check_python()).state == OK
    found = only(check_python((3, 10, 9)))
    assert (found.state, found.advice) == (WRONG, "install Python 3.11 or newer")
    assert found.found.startswith("3.10.9 ") and "expected 3.11" in found.found


def test_a_requirement_is_read_as_metadata_has_it() -> None:
    parse = Requirement.parse
    assert parse("numpy>=2.0") == Requirement("numpy", (), "2.0", None)
    assert parse('onnx>=1.21; extra == "export"') == Requirement("onnx", (), "1.21", "export")
    assert parse("pocketlm[export,hub]; extra == 'cli'") == Requirement(
        "pocketlm", ("export", "hub"), None, "cli"
    )
    assert parse('ray[data]>=2.9; extra == "ray"') == Requirement("ray", ("data",), "2.9", "ray")
    assert parse('transformers<4.56; extra == "optimum"').floor is None


def test_extras_are_those_of_the_package() -> None:
    assert set(EXTRAS) <= {requirement.extra for requirement in requirements()}


ASKED = [
    Requirement("numpy", (), "2.0", None),
    Requirement("onnxruntime", (), "1.31", None),
    Requirement("jinja2", (), "3.1.6", "chat"),
    Requirement("onnx", (), "1.21", "export"),
    Requirement("pocketlm", ("export", "chat"), None, "cli"),
    Requirement("torch", (), "2.10", "optimum"),
]
HAVE = {"pocketlm": "0.1.0", "numpy": "2.4.6", "jinja2": "3.1.6", "onnx": "1.21", "torch": "2.1"}


@pytest.mark.parametrize(
    ("other", "state", "advice"),
    [
        ({}, OK, None),
        ({"numpy": "1.26.4"}, WRONG, 'install it with: pip install "numpy>=2.0"'),
        ({"numpy": None}, WRONG, 'install it with: pip install "numpy>=2.0"'),
        ({"jinja2": "3.1.2"}, WARNING, 'install it with: pip install "jinja2>=3.1.6"'),
        ({"jinja2": None}, OK, None),
    ],
)
def test_a_package_that_is_old_or_missing_is_told(
    other: dict[str, str | None], state: str, advice: str | None
) -> None:
    found = only(check_packages(ASKED, (HAVE | other).get))
    assert (found.state, found.advice) == (state, advice)
    assert "torch" not in found.found  # of an extra that is not for using models


def test_extras_that_are_not_whole_are_told_with_the_command() -> None:
    found = only(check_extras(ASKED, (HAVE | {"onnx": None}).get))
    assert found.state == OK
    assert {"chat"} <= set(found.figures["installed"])
    assert found.figures["missing"] == ["cli", "export"]
    assert found.advice == 'install it with: pip install "pocketlm[cli,export]"'


def test_an_application_is_not_told_to_use_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    advice = only(check_packages(ASKED, (HAVE | {"numpy": "1.26"}).get)).advice
    assert advice is not None and advice.startswith("whoever makes this application has to ")
    assert only(check_extras(ASKED, HAVE.get)).state == UNKNOWN


# ONNX Runtime ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("builds", "version", "state", "said"),
    [
        ({"onnxruntime": "1.32.0"}, "1.32.0", OK, "1.32.0"),
        ({"onnxruntime-gpu": "1.32.0"}, "1.32.0", OK, "1.32.0 (onnxruntime-gpu)"),
        ({}, "1.32.0", OK, "1.32.0"),  # a frozen application without metadata
        ({"onnxruntime": "1.30.2"}, "1.30.2", WRONG, f"1.30.2, expected {MINIMUM_ONNXRUNTIME} or"),
        ({"onnxruntime": "1.32.0"}, "1.29.0", WRONG, "1.29.0 of place/onnxruntime was imported"),
        (
            {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.0"},
            "1.32.0",
            WRONG,
            "onnxruntime 1.32.0 and onnxruntime-gpu 1.31.0, which are in one folder",
        ),
    ],
)
def test_onnxruntime_is_one_build_and_new_enough(
    builds: dict[str, str], version: str, state: str, said: str
) -> None:
    found = judged(builds, version, Path("place", "onnxruntime"))
    assert found.state == state
    assert said in found.found
    assert (found.advice is None) == (state == OK)


def test_two_builds_are_mended_by_one_command() -> None:
    advice = judged({"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.32.0"}, "1.32.0", Path()).advice
    assert advice == (
        "install it with: pip uninstall -y onnxruntime onnxruntime-gpu && "
        "pip install onnxruntime-gpu"
    )


def test_the_onnxruntime_here_is_looked_at() -> None:
    found = only(check_onnxruntime())
    assert found.state == OK
    assert found.figures["version"] == onnxruntime.__version__


def test_half_an_onnxruntime_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pocketlm.runtime.engine")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    found = only(check_onnxruntime())
    assert (found.state, "no package onnxruntime" in found.found) == (WRONG, True)
    assert found.advice is not None and "pip install onnxruntime" in found.advice


@pytest.mark.parametrize(
    ("value", "order", "state", "said"),
    [
        ("1", ["os", "pocketlm", "onnxruntime"], OK, "off"),
        ("1", ["pocketlm"], OK, "off"),
        ("1", ["onnxruntime", "pocketlm"], WARNING, "imported before pocketlm"),
        ("0", ["pocketlm", "onnxruntime"], WARNING, "is 0"),
        (None, ["pocketlm"], WARNING, "not set"),
    ],
)
def test_telemetry_that_may_be_on_is_told(
    value: str | None, order: list[str], state: str, said: str
) -> None:
    environment = {} if value is None else {"ORT_DISABLE_TELEMETRY": value}
    found = only(check_telemetry(environment, order))
    assert (found.state, said in found.found) == (state, True)


# The processor -----------------------------------------------------------------------------------

ZEN = ("avx2", "avx_vnni", "avx512f", "avx512_vnni")
PROCESSORS: dict[str, tuple[tuple[str, ...], bool, set[str], str]] = {
    "AMX": ((*ZEN, "amx_int8"), True, set(), "by AMX"),
    "VNNI": (ZEN, True, set(), "by VNNI"),
    "AVX2 and VNNI": (("avx2", "avx_vnni"), True, set(), "by VNNI"),
    "AVX2": (("avx2",), False, {"int8"}, "twice as long"),
    "no AVX": ((), True, {"fp32", "int8", "int8-weight", "int4"}, "without VNNI; tried, and exact"),
}


@pytest.mark.parametrize(
    ("features", "exact", "warned", "int8"), PROCESSORS.values(), ids=PROCESSORS
)
def test_a_processor_is_told_what_it_means(
    features: tuple[str, ...], exact: bool, warned: set[str], int8: str
) -> None:
    found = {finding.name: finding for finding in precisions(features, exact, "x86_64")}
    assert list(found) == ["fp32", "int8", "int8-weight", "int4"]
    assert {name for name in found if found[name].state == WARNING} == warned
    assert all(found[name].state == OK for name in set(found) - warned)
    assert int8 in found["int8"].found
    assert all(found[name].advice for name in warned)


def test_products_that_overflow_count_more_than_what_a_processor_claims() -> None:
    found = {finding.name: finding for finding in precisions(ZEN, False, "x86_64")}
    assert found["int8"].state == WARNING
    assert found["int8"].advice == "take --precision int4, or int8-weight"


def test_a_system_that_does_not_tell_claims_nothing() -> None:
    found = {finding.name: finding for finding in precisions(None, True, "AMD64")}
    assert found["int8"].found == "products of integers; tried, and exact"
    assert {found[name].state for name in ("fp32", "int4", "int8-weight")} == {UNKNOWN}


def test_arm_is_told_by_its_own_instructions() -> None:
    found = {f.name: f for f in precisions(("asimddp", "i8mm"), True, "aarch64")}
    assert "by dot products and i8mm" in found["int4"].found
    assert {finding.state for finding in found.values()} == {OK}


def test_the_processor_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("model name\t: Fast (R) 9\nflags\t\t: fpu avx2\n")
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    found, *_ = check_processor()
    assert found.found == "Fast (R) 9; instructions: avx2"
    assert found.figures == {"name": "Fast (R) 9", "features": ["avx2"]}


# Cores and memory --------------------------------------------------------------------------------


def test_limits_of_a_container_and_an_affinity_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(4)), raising=False)
    for cpu in range(4):
        file = tmp_path / f"cpu{cpu}" / "topology" / "thread_siblings_list"
        file.parent.mkdir(parents=True)
        file.write_text(f"{cpu % 3}")
    found = only(check_cores(tmp_path, tmp_path))
    assert found.found == (
        "8 processors, this process may run on 4 of them, which are 3 cores, "
        "3 threads unless --threads says otherwise"
    )
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    found = only(check_cores(tmp_path, tmp_path))
    assert (found.state, found.figures["quota"], found.figures["threads"]) == (WARNING, 1, 1)
    assert "its container may use 1" in found.found


@pytest.mark.parametrize(
    ("free", "state"), [(8_000_000_000, OK), (700_000_000, WARNING), (90_000_000, WRONG)]
)
def test_little_memory_is_told(free: int, state: str, tmp_path: Path) -> None:
    found = only(check_memory(16_000_000_000, free, tmp_path))
    assert found.state == state
    assert (found.advice is None) == (state == OK)
    assert found.figures == {"total_bytes": 16_000_000_000, "free_bytes": free, "limit_bytes": None}


def test_the_memory_of_a_container_is_told(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("512000000\n")
    (tmp_path / "memory.current").write_text("100000000\n")
    found = only(check_memory(16_000_000_000, 412_000_000, tmp_path))
    assert "412 MB free of 16.0 GB (its container may take 512 MB)" in found.found
    assert found.figures["limit_bytes"] == 512_000_000


def test_the_memory_here_is_looked_at() -> None:
    found = only(check_memory())
    assert 0 < found.figures["free_bytes"] <= found.figures["total_bytes"]


# The cache ---------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("POCKETLM_CACHE", str(folder))
    return folder


def test_a_cache_is_told_with_its_size(cache: Path) -> None:
    (cache / "models").mkdir(parents=True)
    (cache / "models" / "x").write_bytes(bytes(3000))
    assert only(check_cache()).found == f"{cache}, 3.00 kB"


def test_a_cache_that_cannot_be_written_is_wrong(cache: Path) -> None:
    cache.write_text("a file in its place")
    found = only(check_cache())
    assert found.state == WRONG and f"{cache} cannot be written (" in found.found
    assert found.advice is not None and "POCKETLM_CACHE=FOLDER" in found.advice


def test_no_home_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("POCKETLM_CACHE")
    monkeypatch.setattr(Path, "home", homeless)
    assert only(check_cache()).state == WRONG
    assert only(check_models()).state == only(check_locks()).state == OK


@pytest.mark.skipif(not hasattr(os, "statvfs"), reason="Windows tells of a disk in another way")
@pytest.mark.parametrize(
    ("blocks", "files", "state"),
    [(10_000_000, 1000, OK), (100_000, 1000, WARNING), (100, 1000, WRONG), (10_000_000, 0, WRONG)],
)
def test_a_full_disk_is_wrong(
    blocks: int, files: int, state: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = SimpleNamespace(f_frsize=4096, f_blocks=10**8, f_bfree=blocks, f_bavail=blocks)
    status.f_files, status.f_favail = 10**6, files
    monkeypatch.setattr(os, "statvfs", lambda path: status)
    found = only(check_disk())
    assert (found.state, found.figures["free_bytes"]) == (state, blocks * 4096)
    assert (found.advice is None) == (state == OK)


def test_a_disk_that_sets_no_number_of_files_is_not_full(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = SimpleNamespace(f_frsize=4096, f_blocks=10**8, f_bfree=10**7, f_bavail=10**7)
    status.f_files = status.f_favail = 0
    monkeypatch.setattr(os, "statvfs", lambda path: status)
    assert only(check_disk()).figures["free_files"] is None


@pytest.fixture
def model(cache: Path, tiny_folder: ModelFolder) -> Path:
    """A model in the cache, where the demo's would be."""
    place = demo_model(None).place(cache)
    shutil.copytree(tiny_folder.path, place)
    return place


def test_whole_models_are_counted(model: Path) -> None:
    assert only(check_models()) == Finding(
        "models", OK, "1 model", None, {"models": 1, "downloads": 0, "broken": [], "unfinished": []}
    )


@pytest.mark.parametrize("damage", ["changed", "cut"])
def test_a_broken_model_is_wrong_and_what_to_type_removes_it(
    model: Path, damage: str, run: Run
) -> None:
    file = model / "model.onnx_data"
    data = bytearray(file.read_bytes())
    data[1000] ^= 1
    file.write_bytes(data if damage == "changed" else data[:-1])
    found = only(check_models())
    assert found.state == WRONG and str(model) in found.found
    (name,) = found.figures["broken"]
    assert found.advice == f"pocketlm remove {name}  # then ask for it again"
    assert run("remove", name).code == 0 and not model.exists()


def test_leftovers_are_told(model: Path, cache: Path) -> None:
    (model.parent / f".{model.name}.partial").mkdir()
    (model.parent / ".removed-0123").mkdir()
    found = only(check_models())
    assert found.state == WARNING
    assert "unfinished: " in found.found and "half removed: " in found.found
    (name,) = found.figures["unfinished"]
    removed = f"remove the folder {model.parent / '.removed-0123'}"
    assert found.advice == f"pocketlm remove {name}  # then ask for it again, {removed}"
    (model.parent / f".{model.name}.partial").rmdir()
    assert only(check_models()).advice == removed


def test_locks_are_told_held_or_left(cache: Path) -> None:
    assert only(check_locks()).found == "none is held"
    held, left = lock_file(cache, "int8-1"), lock_file(cache, "int8-2")
    with locked(held, lambda holder: None):
        found = only(check_locks())
        assert (found.state, found.found) == (OK, f"process {os.getpid()} is making int8-1")
        left.write_text("123\n")
        found = only(check_locks())
    assert (found.state, found.figures) == (WARNING, {"held": ["int8-1"], "stale": [str(left)]})
    assert found.advice == f"nothing, or remove: {left}"


# Providers ---------------------------------------------------------------------------------------


def test_cuda_is_told_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "has_cuda_build", lambda: True)
    monkeypatch.setattr(providers, "cuda_obstacle", lambda formats: None)
    found = only(check_provider())
    assert (found.state, found.figures["providers"]) == (OK, ["cuda", "cpu"])


@pytest.mark.parametrize(("built", "state"), [(True, WARNING), (False, OK)])
def test_what_keeps_from_cuda_is_told(
    built: bool, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    obstacle = Obstacle("no NVIDIA driver", "a GPU", "install the driver")
    monkeypatch.setattr(providers, "has_cuda_build", lambda: built)
    monkeypatch.setattr(providers, "cuda_obstacle", lambda formats: obstacle)
    found = only(check_provider())
    assert (found.state, found.figures["providers"]) == (state, ["cpu"])
    assert found.advice == ("install the driver" if built else None)
    assert "no NVIDIA driver" in found.found
