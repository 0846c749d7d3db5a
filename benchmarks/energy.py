"""Energy that the processor's own counters (RAPL) saw, where the kernel lets us read them.

    /sys/class/powercap/intel-rapl:0/{name, energy_uj, max_energy_range_uj}      package-0
    /sys/class/powercap/intel-rapl:0:1/…                                         dram of package 0

Packages and their memory are summed; cores and graphics are parts of a package, and "psys" holds
everything again. The counters are those of the whole machine, whoever used it, and start again at
0 after max_energy_range_uj. Since Linux 5.10 only root may read them. AMD's go by the same name.
Source: the kernel's Documentation/power/powercap/powercap.rst.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
COUNTED = ("package", "dram")  # how the names of the counters that we add begin


@dataclass(frozen=True)
class _Counter:
    file: Path
    limit: int  # microjoules; the counter is at most this

    def read(self) -> int:
        return int(self.file.read_text())


class EnergyMeter:
    """The counters of this machine, readable and not none."""

    def __init__(self, counters: list[_Counter]) -> None:
        self._counters = counters
        self._before = self._read()

    @classmethod
    def open(cls, folder: Path = POWERCAP) -> EnergyMeter | None:
        """None where there are no counters, or one of them may not be read."""
        try:
            counters = [
                _Counter(zone / "energy_uj", int((zone / "max_energy_range_uj").read_text()))
                for zone in sorted(folder.glob("intel-rapl:*"))
                if (zone / "name").read_text().startswith(COUNTED)
            ]
            return cls(counters) if counters else None
        except (OSError, ValueError):
            return None

    def start(self) -> None:
        """Counts from here."""
        self._before = self._read()

    def joules(self) -> float:
        """Since ``start``; of a counter that ran over once, which takes minutes, too."""
        pairs = zip(self._counters, self._before, self._read(), strict=True)
        return sum((after - before) % (counter.limit + 1) for counter, before, after in pairs) / 1e6

    def _read(self) -> list[int]:
        return [counter.read() for counter in self._counters]
