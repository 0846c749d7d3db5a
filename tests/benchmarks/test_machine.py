"""What a measurement says about its machine, what others used of it, and the peak of memory."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest

from pocketlm.benchmarks.machine import (
    CpuWatch,
    OthersUse,
    busy_sentence,
    describe_machine,
    load_sentence,
    machine_sentence,
)
from pocketlm.export.memory import peak_rss_bytes
from pocketlm.runtime import processor


def test_description_has_all_that_a_reader_needs_and_is_json() -> None:
    found = json.loads(json.dumps(describe_machine(3)))
    assert list(found) == [
        "cpu",
        "features",
        "cores",
        "threads",
        "memory_bytes",
        "system",
        "python",
        "onnxruntime",
        "numpy",
        "pocketlm",
        "load_average",
        "command",
    ]
    assert found["threads"] == 3
    assert found["cores"] == os.cpu_count()
    assert found["memory_bytes"] > 1 << 28
    assert found["python"] == platform.python_version()
    assert found["load_average"] >= 0
    assert found["cpu"]


def test_the_build_for_cuda_is_onnxruntime_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a package of another name, and the only one where it is installed as it should be."""
    found = importlib.metadata.Distribution.from_name

    def from_name(name: str) -> importlib.metadata.Distribution:
        if name == "onnxruntime":
            raise importlib.metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(importlib.metadata.Distribution, "from_name", from_name)
    assert describe_machine(1)["onnxruntime"] == onnxruntime.__version__


PROCESSORS = {
    "x86": (
        "model name\t: Fast (R) 9\nflags\t\t: fpu avx2 avx512f\n",
        "Fast (R) 9",
        ["avx2", "avx512f"],
    ),
    "ARM": ("CPU part\t: 0xd0c\nFeatures\t: fp asimd asimddp i8mm\n", "here", ["asimddp", "i8mm"]),
}


@pytest.mark.parametrize(("text", "name", "features"), PROCESSORS.values(), ids=PROCESSORS)
def test_a_processor_is_named_with_the_features_that_decide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, name: str, features: list[str]
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(platform, "processor", lambda: "here")
    found = describe_machine(1)
    assert (found["cpu"], found["features"]) == (name, features)
    assert f"{name} ({', '.join(features)}), " in machine_sentence(found)


def test_a_mac_tells_its_processor_and_no_features_are_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "sysctl"
    program.write_text('#!/bin/sh\n[ "$2" = machdep.cpu.brand_string ] && echo "Apple M9"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "missing")
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert ": Apple M9, " in machine_sentence(describe_machine(1))


def test_a_system_without_a_load_average_is_described_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(os, "getloadavg")
    assert describe_machine(1)["load_average"] is None
    assert load_sentence({"before": None, "after": None}) == ""
    assert busy_sentence(None, load_before=None) is None


def test_the_load_average_is_told_for_the_times_it_is_known_of() -> None:
    assert (
        load_sentence({"before": 0.25, "after": 2.0}) == "; load average 0.2 before and 2.0 after"
    )
    assert load_sentence({"before": 1.26, "after": None}) == "; load average 1.3 before"


def test_peak_memory_grows_with_what_is_touched_and_stays() -> None:
    # In a process of its own: the peak of this one may be anywhere above.
    program = """
from pocketlm.export.memory import peak_rss_bytes
print(peak_rss_bytes())
data = bytearray(b"x") * 50_000_000
print(peak_rss_bytes())
del data
print(peak_rss_bytes())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    before, during, after = map(int, done.stdout.split())
    # The kernel counts pages in batches per processor, so each figure is off by some hundred kB.
    assert 49_000_000 < during - before < 60_000_000
    assert after > during - 1_000_000
    assert 1_000_000 < before < 1 << 30


def test_peak_memory_is_in_bytes() -> None:
    assert peak_rss_bytes() > 10_000_000  # NumPy and ONNX Runtime alone take more


# What others used --------------------------------------------------------------------------------


class FakeProcessor:
    """The seconds of a system, a clock and our own seconds, all to be set."""

    def __init__(self, *kinds: str) -> None:
        self.now = 0.0
        self.own = 0.0
        self.seconds = dict.fromkeys(kinds, 1000.0)

    def run(self, seconds: float, own: float = 0.0, **others: float) -> None:
        """``seconds`` pass, in which we used ``own`` and others so much of each kind."""
        self.now += seconds
        self.own += own
        self.seconds["user"] += own
        for kind, used in others.items():
            self.seconds[kind] += used

    def watch(self) -> CpuWatch:
        return CpuWatch(lambda: SimpleNamespace(**self.seconds), lambda: self.own, lambda: self.now)


def astuple(watch: CpuWatch) -> tuple[float, float]:
    """Cores of others and stolen ones until now."""
    found = watch.stop()
    assert found is not None
    return found.other_cores, found.stolen_cores


@pytest.fixture
def fake() -> FakeProcessor:
    """One of Linux, which tells the most."""
    kinds = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest")
    return FakeProcessor(*kinds)


def test_our_own_time_is_nobody_elses(fake: FakeProcessor) -> None:
    watch = fake.watch()
    fake.run(10, own=18.5, idle=1.5)
    assert astuple(watch) == (0, 0)


@pytest.mark.parametrize("kind", ["user", "nice", "system", "irq", "softirq"])
def test_every_kind_of_work_that_is_not_ours_counts(fake: FakeProcessor, kind: str) -> None:
    watch = fake.watch()
    fake.run(10, own=12, idle=1, iowait=2, **{kind: 5})
    assert astuple(watch) == pytest.approx((0.5, 0))


def test_waiting_is_not_work_and_a_guest_is_in_the_users_time(fake: FakeProcessor) -> None:
    watch = fake.watch()
    fake.run(10, own=3, idle=7, iowait=9, guest=3)
    assert astuple(watch) == (0, 0)


def test_stolen_time_is_told_apart(fake: FakeProcessor) -> None:
    watch = fake.watch()
    fake.run(20, own=10, steal=8, user=2)
    assert astuple(watch) == pytest.approx((0.1, 0.4))


def test_a_system_that_tells_less_is_watched_too() -> None:
    fake = FakeProcessor("user", "nice", "system", "idle")  # as on macOS
    watch = fake.watch()
    fake.run(10, own=5, system=4, idle=11)
    assert astuple(watch) == pytest.approx((0.4, 0))


def test_a_system_that_hides_it_is_not_known() -> None:
    def hidden() -> None:
        raise PermissionError

    assert CpuWatch(hidden).stop() is None


@pytest.mark.skipif(sys.platform == "win32", reason="children's time is not to be had there")
def test_a_busy_process_that_is_not_ours_is_seen() -> None:
    """A child that has not been waited for counts as another's; one that has been, as ours."""
    loop = "import time; end = time.process_time() + 0.6\nwhile time.process_time() < end: pass"
    watch = CpuWatch()
    started = time.monotonic()
    with subprocess.Popen([sys.executable, "-c", loop]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and stays
        during = watch.stop()
        elapsed = time.monotonic() - started
    after = watch.stop()
    assert during is not None and after is not None
    # Ticks of 10 ms, and whatever else this machine is doing adds to it.
    assert during.other_cores * elapsed > 0.5
    assert after.other_cores < during.other_cores


def test_a_quiet_machine_is_not_called_busy() -> None:
    assert busy_sentence(OthersUse(0.03, 0.01), load_before=3.0) is None


def test_a_core_that_others_use_is_said_with_the_figure() -> None:
    found = busy_sentence(OthersUse(0.97, 0.0), load_before=0.0)
    assert found is not None
    assert f"other processes used 0.97 of its {os.cpu_count()} cores while" in found
    assert "the machine was busy" in found and "measure again" in found


def test_a_core_that_the_hypervisor_withholds_is_said_too() -> None:
    found = busy_sentence(OthersUse(0.0, 0.5), load_before=0.0)
    assert found is not None and "its hypervisor withheld 0.50" in found


def test_the_load_average_speaks_where_nothing_else_does() -> None:
    assert busy_sentence(None, load_before=0.4) is None
    assert "load average 2.3 before we began" in str(busy_sentence(None, load_before=2.3))
