"""How much memory this process holds; lean, for the plan of an export and for measurements."""

from __future__ import annotations

import sys
from pathlib import Path


def rss_bytes() -> int:
    """Resident set of this process now, in bytes (VmRSS; the peak where it is not to be had)."""
    return _status("VmRSS") or peak_rss_bytes()


def peak_rss_bytes() -> int:
    """Highest resident set of this process so far, in bytes (VmHWM; ru_maxrss elsewhere)."""
    found = _status("VmHWM")
    if found:
        return found
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _status(field: str) -> int:
    """A line of Linux's account of this process, in bytes; 0 elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    sizes = [int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")]
    return sizes[0] if sizes else 0
