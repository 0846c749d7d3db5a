"""Memory of a model that is gone, given back to the system.

What is freed the C library keeps for the process: half of a model, or more.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable


def give_back(is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
    """Has glibc return what is free, and what it keeps for no other reason; elsewhere nothing.

    Nor at the end of the interpreter, where nothing can be imported and all memory goes anyway.
    """
    if is_finalizing():
        return
    import ctypes  # not above: most processes end with their model

    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


class GivesBack:
    """Does so when it goes; for the last attribute of an object, which goes after the others."""

    def __del__(self, give_back: Callable[[], None] = give_back) -> None:
        # Bound above, as is its own: at the end of a frozen application this module is empty
        # before its objects go.
        give_back()
