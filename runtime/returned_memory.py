"""Memory of a model that is gone, given back to the system.

What is freed the C library keeps for the process: half of a model, or more.
"""

from __future__ import annotations

import contextlib
import sys


def give_back() -> None:
    """Has glibc return what is free, and what it keeps for no other reason; elsewhere nothing."""
    import ctypes  # not above: most processes end with their model

    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


class GivesBack:
    """Does so when it goes; for the last attribute of an object, which goes after the others."""

    def __del__(self) -> None:
        if not sys.is_finalizing():  # then all of it goes anyway
            give_back()
