"""The circumstances of a measurement: what it ran on, with which versions, beside what else."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from ..export.importing import importing
from ..runtime.engine import onnxruntime
from ..runtime.processor import deciding, processor

with importing("measuring", "cli"):
    import psutil

# Cores that others may use before we call the machine busy: daemons take some hundredths of one.
BUSY_CORES = 0.2
# Time that a core works for this system; a guest's is within that of user.
BUSY_KINDS = ("user", "nice", "system", "irq", "softirq")
BUSY_LOAD = 1.0  # where the system does not tell: the load average before we began


def describe_machine(threads: int) -> dict[str, Any]:
    """CPU model and features, cores, threads, memory in bytes, versions, load average.

    Features are known on Linux only, and the load average (None) is not on Windows.
    """
    model, flags = processor()
    return {
        "cpu": model,
        "features": deciding(flags),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,  # its builds are packages of different names
        "numpy": np.__version__,
        "pocketlm": version("pocketlm"),
        "load_average": load_average(),
        "command": _command(),
    }


def machine_sentence(about: dict[str, Any]) -> str:
    """What ``describe_machine`` found, for a reader of figures: command, processor, versions."""
    features = f" ({', '.join(about['features'])})" if about["features"] else ""
    return (
        f"{about['command']}: {about['cpu']}{features}, {about['cores']} cores, "
        f"{about['threads']} threads, ONNX Runtime {about['onnxruntime']}, Python {about['python']}"
    )


def load_average() -> float | None:
    """Of the last minute; None where the system keeps none."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def load_sentence(load: dict[str, float | None]) -> str:
    """The load average before and, if it is there, after; nothing where the system keeps none."""
    known = [f"{value:.1f} {when}" for when, value in load.items() if value is not None]
    return f"; load average {' and '.join(known)}" if known else ""


def available_bytes() -> int:
    """Memory that programs can still take, as the system sees it."""
    return int(psutil.virtual_memory().available)


def _command() -> str:
    """What was typed, with the module's name in place of its path."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = (
        f"python -m {spec.name.removesuffix('.__main__')}"
        if spec is not None
        else os.path.basename(sys.argv[0])
    )
    return " ".join([program, *sys.argv[1:]])


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

    That is what the system counts as busy, on all cores, less what we used ourselves; so the
    children whose time is ours must begin after the one and have been waited for before the other.
    ``times`` are those of all cores, as psutil gives them.
    """

    def __init__(
        self,
        times: Callable[[], Any] = psutil.cpu_times,
        own: Callable[[], float] = own_cpu_seconds,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._times, self._own, self._clock = times, own, clock
        self._before = self._read()

    def stop(self) -> OthersUse | None:
        """None where the system does not tell."""
        before, after = self._before, self._read()
        if before is None or after is None:
            return None
        seconds, busy, stolen, own = (b - a for a, b in zip(before, after, strict=True))
        if seconds <= 0:
            return None
        return OthersUse(max(0.0, busy - own) / seconds, stolen / seconds)

    def _read(self) -> tuple[float, float, float, float] | None:
        """Wall, busy, stolen and own seconds; Windows does not say what our children used."""
        if sys.platform == "win32":
            return None
        try:
            times = self._times()
        except OSError:  # some sandboxes hide it
            return None
        busy = sum(getattr(times, kind, 0.0) for kind in BUSY_KINDS)
        return self._clock(), busy, getattr(times, "steal", 0.0), self._own()


def busy_sentence(others: OthersUse | None, load_before: float | None) -> str | None:
    """What to shout if others used the processor while we measured; None for a quiet machine."""
    advice = "these figures are off: measure again on a quiet machine"
    if others is None:
        if load_before is None or load_before < BUSY_LOAD:
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
