"""The processor: its name, and which of the instructions that decide about kernels it has."""

from __future__ import annotations

import platform
from pathlib import Path

# Instruction sets that decide which kernels ONNX Runtime uses, as /proc/cpuinfo spells them; the
# first five are x86's, the others ARM's.
FEATURES = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8", "asimddp", "i8mm", "sve")
CPUINFO = Path("/proc/cpuinfo")


def processor() -> tuple[str, set[str]]:
    """Its name, and the features that the kernel lists: all of them, on Linux; elsewhere none."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return _name_of_mac() or platform.processor() or platform.machine(), set()
    fields = dict(
        (name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in lines)
    )
    flags = fields.get("flags", fields.get("Features", ""))
    name = fields.get("model name") or platform.processor() or platform.machine()
    return name, set(flags.split())


def deciding(flags: set[str]) -> list[str]:
    """Those of ``FEATURES`` that are among ``flags``, in their order."""
    return [name for name in FEATURES if name in flags]


def _name_of_mac() -> str:
    """What macOS calls its processor, which Python does not know; nothing elsewhere."""
    if platform.system() != "Darwin":
        return ""
    import subprocess

    command = ["sysctl", "-n", "machdep.cpu.brand_string"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()
