"""Keeps NumPy's products to one thread where several threads make many small ones.

OpenBLAS, which NumPy's wheels hold, cuts a product of 128 x 128 x 128 for all cores and waits for
each: on a busy machine that is a hundred times slower than one core alone. It has no setting for
one caller, so this one holds for the process, for as long as anyone asks for it.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

_lock = threading.Lock()
_inside = 0
_before = 0


@contextmanager
def one_thread() -> Iterator[None]:
    """Products of NumPy take one thread each; does nothing where NumPy has another library."""
    global _inside, _before
    library = _openblas()
    if library is None:
        yield
        return
    get, set_to = library
    with _lock:
        if not _inside:
            _before = get()
            set_to(1)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                set_to(_before)


@cache
def _openblas() -> tuple[Any, Any] | None:
    """What reads and what sets the number of threads, of the OpenBLAS in NumPy's wheel."""
    package = Path(np.__file__).parent
    for path in [
        *package.parent.glob("numpy.libs/*openblas*"),
        *package.glob(".dylibs/*openblas*"),
    ]:
        library = ctypes.CDLL(str(path))  # loaded already: this is a handle to it
        for name in ("scipy_openblas_{}_num_threads64_", "openblas_{}_num_threads"):
            get, set_to = (getattr(library, name.format(verb), None) for verb in ("get", "set"))
            if get is not None and set_to is not None:
                return get, set_to
    return None
