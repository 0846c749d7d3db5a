"""How many threads a session should use on this machine, container or affinity mask."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path
from typing import Any

from .errors import RequestError
from .whole_number import brief, whole_number

PROCESSORS = Path("/sys/devices/system/cpu")
GROUP = Path("/sys/fs/cgroup")
UNLIMITED = 1 << 16


def default_threads() -> int:
    """Physical cores this process may run on, capped by the container's CPU quota; at least 1.

    ONNX Runtime's own default counts the host's cores and ignores a container's quota.
    """
    return max(1, min(allowed_cores(), cpu_quota()))


def most_threads() -> int:
    """Four for every processor of the machine, at least 64: more gain nothing and may never start.

    So many that a number which serves on one machine is seldom refused on another.
    """
    return max(64, 4 * (os.cpu_count() or 1))


def check_threads(threads: Any) -> int:
    """``threads``, or ``default_threads`` for None. RequestError says the bound."""
    if threads is None:
        return default_threads()
    number, most = whole_number(threads), most_threads()
    if number is None or not 1 <= number <= most:
        raise RequestError(
            f"threads is {brief(threads)}, expected an integer from 1 to {most} (here; four for "
            "every processor, at least 64); leave it out for the cores at hand"
        )
    return number


def allowed_cores(root: Path = PROCESSORS) -> int:
    """Physical cores in the affinity mask: two hardware threads of one core count once."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cpus = os.sched_getaffinity(0)
    cores = set()
    for cpu in cpus:
        siblings = root / f"cpu{cpu}" / "topology" / "thread_siblings_list"
        try:
            cores.add(siblings.read_text())
        except OSError:
            return len(cpus)
    return len(cores)


def cpu_quota(root: Path = GROUP) -> int:
    """Whole CPUs that cgroup v2 (``cpu.max``) or v1 (``cpu.cfs_quota_us``) allows, rounded up.

    UNLIMITED where there is no quota.
    """
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (root / "cpu.max").read_text().split()
        return UNLIMITED if quota == "max" else math.ceil(int(quota) / int(period))
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota = (root / "cpu" / "cpu.cfs_quota_us").read_text()
        period = (root / "cpu" / "cpu.cfs_period_us").read_text()
        if int(quota) > 0:
            return math.ceil(int(quota) / int(period))
    return UNLIMITED
