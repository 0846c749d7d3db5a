"""What a measurement says about its machine, what others used of it, and the peak of memory."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pocketlm.benchmarks import machine
from pocketlm.benchmarks.machine import CpuWatch, OthersUse, busy_sentence, describe_machine
from pocketlm.export.memory import peak_rss_bytes


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
    assert len(found["load_average"]) == 3
    assert found["cpu"]


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

TICKS = os.sysconf("SC_CLK_TCK")


class FakeProcessor:
    """A /proc/stat, a clock and our own seconds, all to be set."""

    def __init__(self, folder: Path) -> None:
        self.stat = folder / "stat"
        self.now = 0.0
        self.own = 0.0
        self.ticks = dict.fromkeys(
            ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest"), 1000
        )
        self.write()

    def write(self) -> None:
        numbers = " ".join(str(ticks) for ticks in self.ticks.values())
        self.stat.write_text(f"cpu  {numbers} 0\ncpu0 1 2 3\nintr 5\n")

    def run(self, seconds: float, own: float = 0.0, **others: float) -> None:
        """``seconds`` pass, in which we used ``own`` and others so much of each kind."""
        self.now += seconds
        self.own += own
        self.ticks["user"] += round(own * TICKS)
        for kind, used in others.items():
            self.ticks[kind] += round(used * TICKS)
        self.write()

    def watch(self) -> CpuWatch:
        return CpuWatch(self.stat, lambda: self.own, lambda: self.now)


def astuple(watch: CpuWatch) -> tuple[float, float]:
    """Cores of others and stolen ones until now."""
    found = watch.stop()
    assert found is not None
    return found.other_cores, found.stolen_cores


@pytest.fixture
def processor(tmp_path: Path) -> FakeProcessor:
    return FakeProcessor(tmp_path)


def test_our_own_time_is_nobody_elses(processor: FakeProcessor) -> None:
    watch = processor.watch()
    processor.run(10, own=18.5, idle=1.5)
    assert astuple(watch) == (0, 0)


@pytest.mark.parametrize("kind", ["user", "nice", "system", "irq", "softirq"])
def test_every_kind_of_work_that_is_not_ours_counts(processor: FakeProcessor, kind: str) -> None:
    watch = processor.watch()
    processor.run(10, own=12, idle=1, iowait=2, **{kind: 5})
    assert astuple(watch) == pytest.approx((0.5, 0))


def test_waiting_is_not_work_and_a_guest_is_in_the_users_time(processor: FakeProcessor) -> None:
    watch = processor.watch()
    processor.run(10, own=3, idle=7, iowait=9, guest=3)
    assert astuple(watch) == (0, 0)


def test_stolen_time_is_told_apart(processor: FakeProcessor) -> None:
    watch = processor.watch()
    processor.run(20, own=10, steal=8, user=2)
    assert astuple(watch) == pytest.approx((0.1, 0.4))


@pytest.mark.parametrize("text", ["", "cpu 1 2", "nothing like it 1 2 3 4 5 6 7 8", None])
def test_a_kernel_that_does_not_tell_is_not_known(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "stat").write_text(text)
    assert CpuWatch(tmp_path / "stat").stop() is None


@pytest.mark.skipif(not machine.PROC_STAT.exists(), reason="needs /proc/stat, which Linux has")
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
