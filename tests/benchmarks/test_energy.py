"""Energy counters in a folder like the kernel's: which are added, running over, unreadable."""

from __future__ import annotations

from pathlib import Path

import pytest

from pocketlm.benchmarks.energy import EnergyMeter

LIMIT = 262_143_328_850  # microjoules, of a real package


def write_zone(folder: Path, zone: str, name: str, energy: int, limit: int = LIMIT) -> Path:
    (folder / zone).mkdir(parents=True, exist_ok=True)
    (folder / zone / "name").write_text(f"{name}\n")
    (folder / zone / "max_energy_range_uj").write_text(f"{limit}\n")
    counter = folder / zone / "energy_uj"
    counter.write_text(f"{energy}\n")
    return counter


@pytest.fixture
def zones(tmp_path: Path) -> dict[str, Path]:
    """Two packages, one with memory, and what holds or repeats them."""
    (tmp_path / "intel-rapl").mkdir()
    return {
        zone: write_zone(tmp_path, zone, name, 1_000_000)
        for zone, name in {
            "intel-rapl:0": "package-0",
            "intel-rapl:0:0": "core",
            "intel-rapl:0:1": "dram",
            "intel-rapl:1": "package-1",
            "intel-rapl:2": "psys",
            "intel-rapl-mmio:0": "package-0",
        }.items()
    }


def test_packages_and_memory_are_added_once(zones: dict[str, Path], tmp_path: Path) -> None:
    meter = EnergyMeter.open(tmp_path)
    assert meter is not None
    meter.start()
    for power, counter in enumerate(zones.values()):
        counter.write_text(f"{1_000_000 + 10**power * 1_000_000}\n")
    # intel-rapl:0 is 1 J, its dram 100 J, intel-rapl:1 1000 J.
    assert meter.joules() == 1101
    meter.start()
    assert meter.joules() == 0


def test_a_counter_may_run_over(tmp_path: Path) -> None:
    counter = write_zone(tmp_path, "intel-rapl:0", "package-0", LIMIT - 3_000_000)
    meter = EnergyMeter.open(tmp_path)
    assert meter is not None
    counter.write_text("1999999\n")  # from the limit it goes to 0
    assert meter.joules() == 5


@pytest.mark.parametrize("content", [None, "not a number"])
def test_an_unreadable_counter_is_no_counter(
    zones: dict[str, Path], tmp_path: Path, content: str | None
) -> None:
    counter = zones["intel-rapl:1"]
    counter.unlink()
    if content is None:
        counter.mkdir()  # also to root it is not readable as a file
    else:
        counter.write_text(content)
    assert EnergyMeter.open(tmp_path) is None


def test_a_machine_without_counters_has_no_meter(tmp_path: Path) -> None:
    assert EnergyMeter.open(tmp_path) is None
    assert EnergyMeter.open(tmp_path / "missing") is None
