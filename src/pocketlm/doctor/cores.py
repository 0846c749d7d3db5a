"""How many cores there are, how many this process may use, and how many threads that makes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from pocketlm.doctor.finding import OK, WARNING, Finding
from pocketlm.export.threads import GROUP, PROCESSORS, UNLIMITED, allowed_cores, cpu_quota


def check_cores(processors: Path = PROCESSORS, group: Path = GROUP) -> Iterator[Finding]:
    """The folders are those in which Linux tells of them."""
    there, allowed, quota = os.cpu_count() or 1, allowed_cores(processors), cpu_quota(group)
    threads = max(1, min(allowed, quota))
    mask = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else there
    parts = [f"{there} processor{'s' * (there != 1)}"]
    if mask < there:
        parts.append(f"this process may run on {mask} of them")
    if allowed < mask:
        parts.append(f"which are {allowed} core{'s' * (allowed != 1)}")
    if quota < UNLIMITED:
        parts.append(f"its container may use {quota}")
    figures = {
        "processors": there,
        "allowed": mask,
        "cores": allowed,
        "quota": quota if quota < UNLIMITED else None,
        "threads": threads,
    }
    parts.append(f"{threads} thread{'s' * (threads != 1)} unless --threads says otherwise")
    limited = threads == 1 < there and min(mask, quota) == 1
    advice = "give the container or process more processors" if limited else None
    yield Finding("cores", WARNING if limited else OK, ", ".join(parts), advice, figures)
