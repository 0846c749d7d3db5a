"""How much memory this process holds and may still take, and what it means when there is no more.

Lean: for the plan of an export, for measurements and for the runtime.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import PocketLMError, ResourceError
from .quantities import size_text

MEMORY = Path("/proc/meminfo")
GROUP = Path("/sys/fs/cgroup")
SMALLER = "close other programs, or take a smaller model or precision"
# How those say it whose errors have no class for it: ONNX Runtime, with the bytes asked for if it
# knows them, and threads.
EXHAUSTED = re.compile(
    r"bad allocation|bad_alloc|out of memory|[Cc]annot allocate memory|pthread_create failed|"
    r"can't start new thread|failed to map segment from shared object(?!: Operation not permitted)|"
    r"[Ff]ailed to allocate memory(?:.* size (\d{1,20}))?"
)


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


@contextmanager
def memory_errors(what: str, needed: int | None = None, advice: str = SMALLER) -> Iterator[None]:
    """Turns memory that ran out, however it is told, into a ResourceError with the numbers.

    ``what`` needed it, ``needed`` bytes if that is known; ``advice`` is what makes do with less.
    """
    try:
        yield
    except Exception as error:
        if not is_exhaustion(error):
            raise
        found = EXHAUSTED.search(str(error))
        if needed is None and found is not None and found[1]:
            needed = int(found[1])
        raise exhausted(what, needed, advice) from error


def is_exhaustion(error: Exception) -> bool:
    """Whether memory ran out; False of an error of ours, which says it in its own way."""
    if isinstance(error, PocketLMError):
        return False
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or EXHAUSTED.search(str(error)) is not None


def exhausted(what: str, needed: int | None = None, advice: str = SMALLER) -> ResourceError:
    """The error of a ``what`` for which there was no memory."""
    try:
        free = free_bytes()
    except MemoryError:  # not even for the question
        free = 0
    told = free is not None and (needed is None or free < needed)
    found = f"{size_text(free)} of memory free" if told and free is not None else "no memory"
    expected = "more" if needed is None else f"at least {size_text(needed)} for it"
    return ResourceError(f"{what}: found {found}, expected {expected}; {advice}")


def free_bytes() -> int | None:
    """What this process may still take: of the machine, its control group and its own limits.

    None where nothing tells: beyond Linux.
    """
    machine = _kilobytes(MEMORY, "MemAvailable")
    group = group_memory()
    left = None if group is None else group[0] - group[1]
    rooms = [room for room in (machine, left, *_limit_rooms()) if room is not None]
    return max(0, min(rooms)) if rooms else None


def machine_bytes() -> int | None:
    """The memory of the machine; None where nothing tells: on Windows."""
    if total := _kilobytes(MEMORY, "MemTotal"):
        return total
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def group_memory(root: Path = GROUP) -> tuple[int, int] | None:
    """Limit and use, in bytes, of a control group, version 2 or 1; None without a limit."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):  # "max": no limit
            return int((root / limit).read_text()), int((root / used).read_text())
    return None


def _limit_rooms() -> Iterator[int]:
    """Of this process's limits, those it has."""
    try:  # not the module resource: at its limit a process cannot load that any more
        limits = Path("/proc/self/limits").read_text()
    except OSError:
        return
    for limit, field in (("address space", "VmSize"), ("data size", "VmData")):
        most, used = re.search(rf"^Max {limit} +(\d+)", limits, re.MULTILINE), _status(field)
        if most is not None and used:
            yield int(most[1]) - used


def _status(field: str) -> int:
    """A line of Linux's account of this process, in bytes; 0 elsewhere."""
    return _kilobytes(Path("/proc/self/status"), field) or 0


def _kilobytes(file: Path, field: str) -> int | None:
    """The line of ``field`` in a file of Linux's, in bytes; None elsewhere."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    sizes = [int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")]
    return sizes[0] if sizes else None
