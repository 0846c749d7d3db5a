"""The circumstances of a measurement: what it ran on, with which versions, beside what else."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Instruction sets that decide which kernels ONNX Runtime uses on x86, as /proc/cpuinfo spells them.
FEATURES = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8")


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


def _command() -> str:
    """What was typed, with the module's name in place of its path."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = f"python -m {spec.name}" if spec is not None else sys.argv[0]
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
