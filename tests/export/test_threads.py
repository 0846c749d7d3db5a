"""Threads by default: the cores this process may use, within the container's quota."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pocketlm.export import threads
from pocketlm.export.errors import RequestError
from pocketlm.export.threads import UNLIMITED, check_threads, default_threads
from pocketlm.export.whole_number import brief


def cgroup(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def v1(quota: str, period: str = "100000\n") -> dict[str, str]:
    return {"cpu/cpu.cfs_quota_us": quota, "cpu/cpu.cfs_period_us": period}


@pytest.mark.parametrize(
    "files, expected",
    [
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "1000 100000\n"}, 1),
        ({"cpu.max": "50000 10000\n"}, 5),
        ({"cpu.max": "max 100000\n"}, UNLIMITED),
        (v1("400000\n"), 4),
        (v1("50000\n"), 1),
        (v1("-1\n"), UNLIMITED),
        ({"cpu.max": "300000 100000\n"} | v1("100000\n"), 3),
        ({}, UNLIMITED),
        ({"cpu.max": ""}, UNLIMITED),
        ({"cpu.max": "many 100000"}, UNLIMITED),
        ({"cpu.max": "100000 0"}, UNLIMITED),
        ({"cpu.max": "damaged"} | v1("200000\n"), 2),
        (v1("abc"), UNLIMITED),
        (v1("100000", "0"), UNLIMITED),
        ({"cpu/cpu.cfs_quota_us": "100000"}, UNLIMITED),
    ],
    ids=str,
)
def test_quota_of_the_control_group(files: dict[str, str], expected: int, tmp_path: Path) -> None:
    assert threads.cpu_quota(cgroup(tmp_path, files)) == expected


def topology(root: Path, siblings: dict[int, str]) -> Path:
    """Files as in /sys/devices/system/cpu, two hardware threads of a core naming each other."""
    for cpu, names in siblings.items():
        file = root / f"cpu{cpu}" / "topology" / "thread_siblings_list"
        file.parent.mkdir(parents=True)
        file.write_text(names + "\n")
    return root


@pytest.mark.parametrize(
    "affinity, expected",
    [({0, 1, 2, 3}, 2), ({0, 2}, 1), ({0, 1}, 2), ({3}, 1), ({0, 1, 2, 3, 9}, 5)],
    ids=str,
)
def test_hardware_threads_of_one_core_count_once(
    affinity: set[int], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CPU 9 has no topology file, as in some containers: then every CPU counts."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: affinity, raising=False)
    root = topology(tmp_path, {0: "0,2", 2: "0,2", 1: "1,3", 3: "1,3"})
    assert threads.allowed_cores(root) == expected


def test_without_affinity_every_cpu_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert threads.allowed_cores(tmp_path) == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert threads.allowed_cores(tmp_path) == 1


@pytest.mark.parametrize("cores, quota, expected", [(8, 2, 2), (2, 8, 2), (4, UNLIMITED, 4)])
def test_default_is_the_smaller_of_both(
    cores: int, quota: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "allowed_cores", lambda: cores)
    monkeypatch.setattr(threads, "cpu_quota", lambda: quota)
    assert default_threads() == expected


def test_default_on_this_machine_is_within_its_cpus() -> None:
    assert 1 <= default_threads() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(("cpus", "most"), [(1, 64), (2, 64), (16, 64), (17, 68), (128, 512)])
def test_the_bound_is_four_for_every_processor(
    cpus: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cpus)
    assert check_threads(most) == most
    with pytest.raises(
        RequestError, match=f"threads is {most + 1}, expected an integer from 1 to {most} .*; leave"
    ):
        check_threads(most + 1)


def test_any_whole_number_will_do_and_none_is_the_default() -> None:
    assert check_threads(1) == check_threads(np.int64(1)) == 1
    assert type(check_threads(np.int64(1))) is int
    assert check_threads(None) == default_threads()


@pytest.mark.parametrize(
    "threads", [0, -1, 1.5, 2.0, "2", True, np.True_, [1], 10**5000], ids=brief
)
def test_other_threads_are_refused(threads: Any) -> None:
    with pytest.raises(RequestError, match="threads is .*, expected an integer from 1 to"):
        check_threads(threads)
