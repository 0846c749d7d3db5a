"""The circumstances of a measurement: what it ran on, with which versions, beside what else."""

from __future__ import annotations

import os
import platform
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Instruction sets that decide which kernels ONNX Runtime uses on x86, as /proc/cpuinfo spells them.
FEATURES = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8")
PROC_STAT = Path("/proc/stat")
MEMINFO = Path("/proc/meminfo")
# Cores that others may use before we call the machine busy: daemons take some hundredths of one.
BUSY_CORES = 0.2
BUSY_LOAD = 1.0  # where the kernel does not tell: the load average before we began


def describe_machine(threads: int) -> dict[str, Any]:
    """CPU model and features, cores, threads, memory in bytes, versions, load average."""
    model, flags = _cpu()
    return {
        "cpu": model,
        "features": [name for name in FEATURES if name in flags],
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "onnxruntime": version("onnxruntime"),
        "numpy": version("numpy"),
        "pocketlm": version("pocketlm"),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "command": _command(),
    }


def machine_sentence(about: dict[str, Any]) -> str:
    """What ``describe_machine`` found, for a reader of figures: command, processor, versions."""
    features = ", ".join(about["features"]) or "no vector extensions"
    return (
        f"{about['command']}: {about['cpu']} ({features}), {about['cores']} cores, "
        f"{about['threads']} threads, ONNX Runtime {about['onnxruntime']}, Python {about['python']}"
    )


def available_bytes(meminfo: Path = MEMINFO) -> int | None:
    """Memory that programs can still take, as the kernel sees it; None where it does not tell."""
    try:
        found = re.search(r"^MemAvailable: +(\d+) kB$", meminfo.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _command() -> str:
    """What was typed, with the module's name in place of its path."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = (
        f"python -m {spec.name.removesuffix('.__main__')}"
        if spec is not None
        else os.path.basename(sys.argv[0])
    )
    return " ".join([program, *sys.argv[1:]])


def _cpu() -> tuple[str, set[str]]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown", set()
    fields = dict(
        (name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in lines)
    )
    flags = fields.get("flags", fields.get("Features", ""))
    return fields.get("model name", platform.processor() or "unknown"), set(flags.split())


@dataclass(frozen=True)
class OthersUse:
    """Cores that were not ours on average: of other processes, and withheld by the hypervisor."""

    other_cores: float
    stolen_cores: float


def own_cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended and been waited for."""
    return sum(os.times()[:4])


class CpuWatch:
    """What other processes take from the processor between its making and ``stop``.

    That is what the kernel counts as busy, on all cores, less what we used ourselves; so the
    children whose time is ours must begin after the one and have been waited for before the other.
    """

    def __init__(
        self,
        stat: Path = PROC_STAT,
        own: Callable[[], float] = own_cpu_seconds,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stat, self._own, self._clock = stat, own, clock
        self._before = self._read()

    def stop(self) -> OthersUse | None:
        """None where the kernel does not tell."""
        before, after = self._before, self._read()
        if before is None or after is None:
            return None
        seconds, busy, stolen, own = (b - a for a, b in zip(before, after, strict=True))
        if seconds <= 0:
            return None
        return OthersUse(max(0.0, busy - own) / seconds, stolen / seconds)

    def _read(self) -> tuple[float, float, float, float] | None:
        """Wall, busy, stolen and own seconds."""
        try:
            busy, stolen = _processor_seconds(self._stat.read_text())
        except (OSError, ValueError, IndexError):
            return None
        return self._clock(), busy, stolen, self._own()


def _processor_seconds(text: str) -> tuple[float, float]:
    """Busy and stolen seconds of all cores, from the first line of /proc/stat.

    cpu  user nice system idle iowait irq softirq steal guest guest_nice, in ticks; a guest's time
    is within that of user. See proc_stat(5).
    """
    name, *numbers = text.split("\n", 1)[0].split()
    if name != "cpu":
        raise ValueError(name)
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, numbers[:8])
    ticks = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + softirq) / ticks, steal / ticks


def busy_sentence(others: OthersUse | None, load_before: float) -> str | None:
    """What to shout if others used the processor while we measured; None for a quiet machine."""
    advice = "these figures are off: measure again on a quiet machine"
    if others is None:
        if load_before < BUSY_LOAD:
            return None
        return f"the machine was busy: load average {load_before:.1f} before we began; {advice}"
    if others.other_cores + others.stolen_cores < BUSY_CORES:
        return None
    stolen = (
        f", and its hypervisor withheld {others.stolen_cores:.2f}"
        if others.stolen_cores >= BUSY_CORES / 4
        else ""
    )
    return (
        f"the machine was busy: other processes used {others.other_cores:.2f} of its "
        f"{os.cpu_count()} cores{stolen} while we measured; {advice}"
    )
