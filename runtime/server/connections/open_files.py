"""How many connections the system's bound on open files leaves room for."""

from __future__ import annotations

OTHERS = 32  # files that a server has beside: of models, of workers, the log


def most_connections(asked: int) -> int:
    """As many as were ``asked`` for, or fewer: who cannot be accepted has no other ended."""
    try:
        import resource
    except ImportError:  # Windows
        return asked
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return asked if files == resource.RLIM_INFINITY else max(1, min(asked, files - OTHERS))
